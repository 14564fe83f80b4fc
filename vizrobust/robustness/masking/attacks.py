"""The attacks that the masking checks share, each run once, when a check first asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from vizrobust.attacks import APGD, FGSM, L2, PGD, Attack, Attacked, Ball, Linf, Noise, Square, Transfer, ball_of, radius
from vizrobust.attacks.square import MOVES
from vizrobust.compute import Compute
from vizrobust.data import Split, Subset
from vizrobust.models import borrowed
from vizrobust.rng import Streams
from vizrobust.robustness.accuracy import CLEAN, PartialResult, merge_results
from vizrobust.robustness.evaluation import BATCH_SIZE, evaluate
from vizrobust.robustness.first_order import FirstOrder, first_order, input_gradient
from vizrobust.robustness.masking.check import AttackBudget, NetworkUnderTest


def in_ball(attack: Attack, ball: Ball) -> Attack:
    """The attack in another ball; a step size of its own is scaled with the radius."""
    own = ball_of(attack)
    if own is None or own == ball:
        return attack
    changes: dict[str, object] = {"ball": ball}
    alpha = getattr(attack, "alpha", None)
    if alpha is not None and own.eps:
        # Where the norm changes too, the radius is all that the two have in common.
        changes["alpha"] = alpha * radius(ball) / own.eps
    return replace(attack, **changes)  # type: ignore[type-var]


def scaled(ball: Ball, by: float) -> Ball:
    """The ball with its radius times `by`; pixels have no more than [0, 1] to move in."""
    eps = radius(ball) * by
    return replace(ball, eps=min(eps, 1.0) if isinstance(ball, Linf) else eps)  # type: ignore[type-var]


def whole_range(ball: Ball, images: Split) -> Ball:
    """The ball that holds every image there is: eps = 1 in L-inf."""
    d = math.prod(images.take(torch.arange(1)).shape[1:])
    eps = {Linf: 1.0, L2: math.sqrt(d)}.get(type(ball), float(d))
    return replace(ball, eps=eps)  # type: ignore[type-var]


# Evaluates an attack on the network's images, those at the places given or all, e.g. in a run folder.
Evaluate = Callable[[Attack, Sequence[int] | None], Iterator[PartialResult]]


class MaskingAttacks:
    """The attacks on one subject, each run when it is first asked for, and its probes.

    A verdict tensor (n,) bool says who survives. Attacks other than PGD with cross entropy meet only what that left
    over, as the question is what it missed. `report` is told what is going on, in words.
    """

    def __init__(
        self, subject: NetworkUnderTest, compute: Compute, effort: AttackBudget | None = None, seed: int = 0,
        batch_size: int = BATCH_SIZE, report: Callable[[str], None] = lambda _text: None, evaluate: Evaluate | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.compute, self.effort, self.seed, self.report = subject, compute, effort or AttackBudget(), seed, report
        self.batch_size, self.evaluate = batch_size, evaluate or self._evaluate
        self.n = len(subject.images)
        if not self.n:
            raise ValueError("there are no images to diagnose with; choose a split that has some")
        self.broken: dict[Attack, Tensor] = {}

    @cached_property
    def net(self) -> nn.Module:
        """The network on its device; one that has no gradient at all gets a zero one, so that attacks can run on it."""
        self.compute.place(self.subject.net)
        return self.subject.net if self.gradient_error is None else ZeroGradient(self.subject.net)

    @cached_property
    def gradient_error(self) -> str | None:
        """What autograd says when it is asked for an image gradient; None where it gives one."""
        net = self.compute.place(self.subject.net)
        x = self.compute.images(self.subject.images.take(torch.arange(1)))
        with borrowed(net), self.compute.autocast():
            point = x.detach().requires_grad_()
            try:
                torch.autograd.grad(net(point).sum(), point)
            except RuntimeError as error:
                return str(error).splitlines()[0]
        return None

    @cached_property
    def classes(self) -> int:
        with borrowed(self.net), torch.no_grad():
            return int(self.net(self.compute.images(self.subject.images.take(torch.arange(1)))).shape[1])

    @cached_property
    def _unchanged(self) -> list[PartialResult]:
        """The verdicts on the unchanged images, the first that every evaluation gives."""
        nothing = PGD(steps=0, ball=self.ball, random_start=False)
        return [part for part in self._run(nothing, None) if part.run == CLEAN]

    @cached_property
    def clean(self) -> Tensor:
        """(n,) bool: right unchanged. ``ValueError`` where nothing is: there is nothing to attack then."""
        right = merge_results(PGD(ball=self.ball), self._unchanged).clean
        if not right.any():
            raise ValueError(f"the network classifies none of {self.n} images correctly; is this its data set (--data)?")
        return right

    @property
    def ball(self) -> Ball:
        return self.subject.ball

    def survivors(self, attack: Attack, indices: Tensor | None = None) -> Tensor:
        """(n,) bool: right unchanged and not broken; images outside `indices` (n,) bool are not attacked and survive."""
        if attack not in self.broken:
            places = (self.clean if indices is None else self.clean & indices).nonzero()[:, 0].tolist()
            parts = list(self._run(attack, places)) if places else []
            self.broken[attack] = self.clean & ~merge_results(attack, [*self._unchanged, *parts]).robust
        return self.clean & ~self.broken[attack]

    def _run(self, attack: Attack, indices: Sequence[int] | None) -> Iterator[PartialResult]:
        """The parts of an evaluation, reported as they come."""
        total = self.n if indices is None else len(indices)
        met: dict[str, int] = {}
        for part in self.evaluate(attack, indices):
            met[part.run] = met.get(part.run, 0) + len(part.indices)
            self.report(f"{attack}: {part.run}, {met[part.run]} of {total} images")
            yield part

    def _evaluate(self, attack: Attack, indices: Sequence[int] | None) -> Iterator[PartialResult]:
        known = () if indices is None else self._unchanged
        images = self.subject.images
        return evaluate(self.net, attack, images, self.compute, self.seed, self.batch_size, indices=indices, known=known)

    # The attacks, by the part they play.

    @cached_property
    def pgd(self) -> PGD:
        """PGD with cross entropy and restarts: what gradients find."""
        return PGD(steps=self.effort.steps, ball=self.ball, restarts=self.effort.restarts)

    @cached_property
    def by_gradients(self) -> Tensor:
        return self.survivors(self.pgd)

    @cached_property
    def by_one_step(self) -> Tensor:
        return self.survivors(FGSM(ball=self.ball))

    @cached_property
    def training_attacks(self) -> tuple[Attack, ...]:
        """What the network was trained against, in the ball of evaluation; one step where that is not known.

        Of several those of the same norm, if there are any. Empty for standard training, and where no attack of
        training has a ball. Noise is none: it looks for nothing, so nobody can have learnt to hide from it.
        """
        trained = self.subject.trained
        if trained is None:
            return (FGSM(ball=self.ball),)
        looking = [attack for attack in trained if not isinstance(attack, Noise)]
        balls = [(attack, ball) for attack in looking if (ball := ball_of(attack)) is not None]
        same = [attack for attack, ball in balls if type(ball) is type(self.ball)]
        return tuple(in_ball(attack, self.ball) for attack in same or [attack for attack, _ in balls])

    @cached_property
    def by_training_attacks(self) -> Tensor | None:
        alive = [self.survivors(attack) for attack in self.training_attacks]
        return torch.stack(alive).all(0) if alive else None

    @cached_property
    def by_margin(self) -> Tensor:
        return self.survivors(replace(self.pgd, loss="margin"), self.by_gradients)

    @cached_property
    def by_plain_loss(self) -> Tensor:
        """(n,) bool: of the images that PGD breaks, who survives it on cross entropy as other tools compute it."""
        return self.survivors(replace(self.pgd, loss="plain_ce", restarts=1), ~self.by_gradients)

    @cached_property
    def by_noise(self) -> Tensor:
        return self.survivors(Noise(draws=self.effort.draws, ball=self.ball), self.by_gradients)

    @cached_property
    def square(self) -> Square | None:
        """None in a ball that Square knows no windows for."""
        return Square(queries=self.effort.queries, ball=self.ball) if type(self.ball) in MOVES else None

    @cached_property
    def by_square(self) -> Tensor | None:
        return None if self.square is None else self.survivors(self.square, self.by_gradients)

    @cached_property
    def by_transfer(self) -> Tensor | None:
        if self.subject.source is None:
            return None
        attack = PGD(steps=self.effort.steps, ball=self.ball, loss="margin")
        return self.survivors(Transfer(self.subject.source, attack), self.by_gradients)

    @cached_property
    def by_retries(self) -> Tensor:
        """(n,) bool: who survives PGD with more restarts too, of those that any attack but a gradient's own broke.

        All others of `by_gradients` survive; nobody claims that gradients would not have found them.
        """
        others = (self.by_margin, self.by_square, self.by_noise, self.by_transfer)
        claimed = torch.zeros_like(self.by_gradients)
        for verdicts in others:
            if verdicts is not None:
                claimed |= self.by_gradients & ~verdicts
        attack = replace(self.pgd, restarts=max(self.effort.confirm_restarts, self.effort.restarts))
        return self.by_gradients & (self.survivors(attack, claimed) if attack != self.pgd else self.by_gradients)

    @cached_property
    def by_apgd(self) -> Tensor:
        return self.survivors(APGD(steps=self.effort.steps, ball=self.ball, loss="dlr"), self.by_gradients)

    @cached_property
    def by_ensemble(self) -> Tensor | None:
        return None if self.subject.ensemble is None else self.survivors(self.subject.ensemble, self.by_gradients)

    @cached_property
    def by_unbounded(self) -> Tensor:
        """Who survives where every pixel may take any value, under cross entropy and under the margin loss."""
        attack = PGD(steps=self.effort.steps, ball=whole_range(self.ball, self.subject.images))
        left = self.survivors(attack)
        return left & self.survivors(replace(attack, loss="margin"), left)

    @cached_property
    def by_everything(self) -> Tensor:
        """(n,) bool: who survives the strongest attack found, the worst case over all that were run inside the ball."""
        found = (
            self.by_gradients, self.by_one_step, self.by_training_attacks, self.by_margin, self.by_noise, self.by_square,
            self.by_transfer, self.by_retries, self.by_apgd, self.by_ensemble,
        )  # fmt: skip
        alive = self.clean.clone()
        for verdicts in found:
            if verdicts is not None:
                alive &= verdicts
        return alive

    def at(self, share_of_eps: float, steps: int) -> Tensor:
        """(n,) bool: who survives PGD, or FGSM where `steps` is 0, at a share of the evaluation eps."""
        ball = scaled(self.ball, share_of_eps)
        return self.survivors(PGD(steps=steps, ball=ball) if steps else FGSM(ball=ball))

    # The probes: images that the network has right, as one batch.

    @cached_property
    def probes(self) -> Split:
        return Subset(self.subject.images, self.clean.nonzero()[: self.effort.probes, 0])

    @cached_property
    def probe_images(self) -> tuple[Tensor, Tensor]:
        """(p, C, H, W) on the device, and labels (p,)."""
        index = torch.arange(len(self.probes))
        return self.compute.images(self.probes.take(index)), self.probes.labels.to(self.compute.device)

    def streams(self, purpose: str) -> Streams:
        """Random numbers for the probes."""
        return Streams(self.seed, self.clean.nonzero()[: self.effort.probes, 0].tolist(), purpose)

    @cached_property
    def first_order(self) -> FirstOrder | None:
        """What the gradient promises of the margin, and what FGSM and PGD get; None where it is never right any more.

        That is so for a network that answers otherwise when gradients are asked for.
        """
        self.report("first-order prediction")
        x, y = self.probe_images
        if not bool((input_gradient(self.net, x, y, "margin")[0]).any()):
            return None
        return first_order(self.net, self.probes, self.ball, self.compute, "margin", seed=self.seed, batch_size=self.batch_size)

    @cached_property
    def trajectory(self) -> Attacked:
        """One run of PGD on the probes to its end, with every iterate's loss and verdict."""
        self.report("PGD step by step")
        attack = replace(self.pgd, restarts=1, loss="margin")
        x, y = self.probe_images
        with self.compute.autocast():
            return attack(self.net, x, y, self.streams("trajectory"))


class ZeroGradient(nn.Module):
    """A network without an image gradient, given one of zeros; its logits are the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)
