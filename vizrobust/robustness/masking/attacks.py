"""The attacks that the masking checks share, each run once per image, when a check first asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from vizrobust.attacks import (
    APGD,
    FGSM,
    L2,
    PGD,
    Attack,
    AttackResult,
    Ball,
    EpsShare,
    HopSkipJump,
    Linf,
    Noise,
    Square,
    Transfer,
    ball_of,
    epsilon,
)
from vizrobust.attacks.black_box import PERTURBATIONS
from vizrobust.compute import Compute
from vizrobust.data import Split, Subset
from vizrobust.intervals import CONFIDENCE
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN, PartialResult, merge_results
from vizrobust.robustness.evaluation import BATCH_SIZE, evaluate
from vizrobust.robustness.first_order import FirstOrder, first_order, input_gradient
from vizrobust.robustness.masking.findings import AttackBudget, NetworkUnderTest


def in_ball(attack: Attack, ball: Ball) -> Attack:
    """The attack in another ball; a step size of its own is scaled with the radius."""
    own = ball_of(attack)
    if own is None or own == ball:
        return attack
    changes: dict[str, object] = {"ball": ball}
    alpha = getattr(attack, "alpha", None)
    if alpha is not None and own.eps and not isinstance(alpha, EpsShare):
        # Where the norm changes too, the radius is all that the two have in common.
        changes["alpha"] = alpha * epsilon(ball) / own.eps
    return replace(attack, **changes)  # type: ignore[type-var]


def scaled(ball: Ball, by: float) -> Ball:
    """The ball with its radius times `by`; pixels have no more than [0, 1] to move in."""
    eps = epsilon(ball) * by
    return replace(ball, eps=min(eps, 1.0) if isinstance(ball, Linf) else eps)  # type: ignore[type-var]


def whole_range(ball: Ball, images: Split) -> Ball:
    """The ball that holds every image there is: eps = 1 in L-inf."""
    d = math.prod(images.take(torch.arange(1)).shape[1:])
    eps = 1.0 if isinstance(ball, Linf) else math.sqrt(d) if isinstance(ball, L2) else float(d)
    return replace(ball, eps=eps)  # type: ignore[type-var]


# Evaluates an attack on the network's images, those at the indices given or all, e.g. in a run folder.
Evaluate = Callable[[Attack, Sequence[int] | None], Iterator[PartialResult]]


# Attacks without PGD's gradient: where one succeeds, PGD gets more restarts.
CLAIMING = ("margin loss", "square", "noise", "transfer", "hopskipjump")


class Survivors:
    """By an attack's name which images survive it, (n,) bool; the attack runs when its name is first asked for."""

    def __init__(self, computed_by: Mapping[str, Callable[[], Tensor | None]]) -> None:
        self._computed_by = computed_by
        self._known: dict[str, Tensor | None] = {}

    def get(self, name: str) -> Tensor | None:
        """None where the attack does not apply to this network."""
        if name not in self._known:
            self._known[name] = self._computed_by[name]()
        return self._known[name]

    def __getitem__(self, name: str) -> Tensor:
        survivors = self.get(name)
        if survivors is None:
            raise KeyError(f"{name} does not apply to this network")
        return survivors


class MaskingAttacks:
    """The attacks on one network under test, each run when a check first asks for it, and the images for probing.

    ``survives[name]`` (n,) bool says which images an attack leaves:

    - ``"pgd"``: PGD on cross entropy with restarts, what gradients find; ``"fgsm"``; ``"training attacks"``;
    - ``"margin loss"``, ``"noise"``, ``"square"``, ``"transfer"``, ``"apgd"`` and ``"ensemble"`` attack only the images
      that PGD leaves, as the question is what PGD missed;
    - ``"hopskipjump"`` attacks only those of the first `decision_images` that PGD leaves;
    - ``"pgd, more restarts"``: what PGD leaves even when it attacks again the images on which one of them succeeded;
    - ``"plain loss"``: PGD on cross entropy as other tools compute it, on the images that PGD breaks;
    - ``"unbounded"``: PGD that may change every pixel at will;
    - ``"all"``: the worst case over all attacks inside the ball; images with outputs that are not finite do not count.

    `report` is called with a text whenever something has been computed. `confidence` is that of the one-sided bounds by
    which criteria are decided; `claims` are the attacks whose success sends an image to "pgd, more restarts".
    Raises ``ValueError`` for no images.

    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.tensor([0.9, 0.1, 0.6, 0.5]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> network = NetworkUnderTest(nn.Flatten(), images, Linf(eps=0.1))
    >>> MaskingAttacks(network, Compute("cpu"), AttackBudget(steps=3, restarts=1)).survives["pgd"]
    tensor([ True, False])
    """

    def __init__(
        self, network: NetworkUnderTest, compute: Compute, budget: AttackBudget | None = None, seed: int = 0,
        batch_size: int = BATCH_SIZE, report: Callable[[str], None] = lambda _text: None, evaluate: Evaluate | None = None,
        confidence: float = CONFIDENCE, claims: Sequence[str] = CLAIMING,
    ) -> None:  # fmt: skip
        self.network, self.compute, self.budget, self.seed, self.report = network, compute, budget or AttackBudget(), seed, report
        self.batch_size, self.evaluate = batch_size, evaluate or self._evaluate
        self.confidence, self.claims = confidence, tuple(claims)
        self.n = len(network.images)
        if not self.n:
            raise ValueError("there are no images to diagnose with; choose a split that has some")
        # By attack, the images (n,) bool that met it and those among them that it got misclassified.
        self._met: dict[Attack, tuple[Tensor, Tensor]] = {}
        # Images (n,) bool on which outputs were not finite, unchanged or at a point that an attack visited, and on which
        # gradients were not.
        self.undefined = torch.zeros(self.n, dtype=torch.bool)
        self.nonfinite_gradients = torch.zeros(self.n, dtype=torch.bool)
        self.survives = Survivors({
            "pgd": lambda: self.survivors(self.pgd),
            "fgsm": lambda: self.survivors(FGSM(ball=self.ball)),
            "training attacks": self._survive_training_attacks,
            "margin loss": lambda: self._survive_beside_pgd(replace(self.pgd, loss="margin")),
            "noise": lambda: self._survive_beside_pgd(Noise(samples=self.budget.noise_samples, ball=self.ball)),
            "square": lambda: self._survive_beside_pgd(self.square),
            "transfer": lambda: self._survive_beside_pgd(self.transfer),
            "hopskipjump": lambda: self._survive_beside_pgd(self.hop_skip_jump, self.budget.decision_images),
            "apgd": lambda: self._survive_beside_pgd(APGD(steps=self.budget.steps, ball=self.ball, loss="dlr")),
            "ensemble": lambda: self._survive_beside_pgd(self.network.ensemble),
            "pgd, more restarts": self._survive_more_restarts,
            "plain loss": lambda: self.survivors(replace(self.pgd, loss="standard_ce", restarts=1), ~self.survives["pgd"]),
            "unbounded": self._survive_unbounded,
            "all": self._survive_all,
        })  # fmt: skip

    @cached_property
    def net(self) -> nn.Module:
        """The network on its device; one that has no gradient at all gets a zero one, so that attacks can run on it."""
        self.compute.place(self.network.net)
        return self.network.net if self.gradient_error is None else ZeroGradient(self.network.net)

    @cached_property
    def probe_net(self) -> PerImageNoise:
        """The network for the probes: noise that it draws for an image does not depend on the other images."""
        noisy = PerImageNoise(self.net)
        noisy.noise_from(lambda: self.streams("noise of the network"))
        return noisy

    @cached_property
    def gradient_error(self) -> str | None:
        """What autograd says when it is asked for an image gradient; None where it gives one."""
        net = self.compute.place(self.network.net)
        x = self.compute.images(self.network.images.take(torch.arange(1)))
        with evaluating(net), self.compute.autocast(), seeded(self.seed, self.compute.device):
            point = x.detach().requires_grad_()
            try:
                torch.autograd.grad(net(point).sum(), point)
            except RuntimeError as error:
                return str(error).splitlines()[0]
        return None

    @cached_property
    def classes(self) -> int:
        with evaluating(self.net), torch.no_grad(), seeded(self.seed, self.compute.device):
            return int(self.net(self.compute.images(self.network.images.take(torch.arange(1)))).shape[1])

    @cached_property
    def _unchanged(self) -> list[PartialResult]:
        """The verdicts on the unchanged images, the first that every evaluation gives."""
        nothing = PGD(steps=0, ball=self.ball, random_start=False)
        return [part for part in self._run(nothing, None) if part.run == CLEAN]

    @cached_property
    def constant_prediction(self) -> int | None:
        """The class that the network predicts for every unchanged image, where some of them are of another; else None."""
        return merge_results(PGD(ball=self.ball), self._unchanged).constant_prediction

    @cached_property
    def clean(self) -> Tensor:
        """(n,) bool: right unchanged. ``ValueError`` where nothing is: there is nothing to attack then."""
        right = merge_results(PGD(ball=self.ball), self._unchanged).correct
        if not right.any():
            raise ValueError(
                f"the network classifies none of {self.n} images correctly; check that this is the network's data set"
            )
        return right

    @property
    def ball(self) -> Ball:
        return self.network.ball

    def survivors(self, attack: Attack, among: Tensor | None = None) -> Tensor:
        """(n,) bool: right unchanged and not misclassified under the attack, of the images `among` (n,) bool (None: all).

        Images outside `among` are not attacked and survive. The answer does not depend on what was asked before. A point
        whose outputs are not finite does not misclassify an image, but puts it among the `undefined` ones.
        """
        asked = self.clean if among is None else self.clean & among
        met, misclassified = self._met.get(attack) or (torch.zeros_like(asked), torch.zeros_like(asked))
        indices = (asked & ~met).nonzero()[:, 0].tolist()
        if indices:
            found = merge_results(attack, [*self._unchanged, *self._run(attack, indices)])
            misclassified = misclassified | (self.clean & ~found.robust & ~found.undefined)
            self.undefined |= found.undefined
        self._met[attack] = met | asked, misclassified
        return self.clean & ~(misclassified & asked)

    def _run(self, attack: Attack, indices: Sequence[int] | None) -> Iterator[PartialResult]:
        """The partial results of an evaluation, reported as they come."""
        total = self.n if indices is None else len(indices)
        met: dict[str, int] = {}
        for part in self.evaluate(attack, indices):
            met[part.run] = met.get(part.run, 0) + len(part.indices)
            self.nonfinite_gradients[list(part.nonfinite_gradients)] = True
            self.report(f"{attack}: {part.run}, {met[part.run]} of {total} images")
            yield part

    def _evaluate(self, attack: Attack, indices: Sequence[int] | None) -> Iterator[PartialResult]:
        known = () if indices is None else self._unchanged
        images = self.network.images
        return evaluate(self.net, attack, images, self.compute, self.seed, self.batch_size, indices=indices, known=known)

    # The attacks, by the part they play.

    @cached_property
    def pgd(self) -> PGD:
        """PGD with cross entropy and restarts: what gradients find."""
        return PGD(steps=self.budget.steps, ball=self.ball, restarts=self.budget.restarts)

    @cached_property
    def training_attacks(self) -> tuple[Attack, ...]:
        """What the network was trained against, in the ball of evaluation; one step where that is not known.

        Of several those of the same norm, if there are any. Empty for standard training, and where no attack of
        training has a ball. Noise does not count: it searches for nothing, so no network can have learned to hide from it.
        """
        trained = self.network.trained
        if trained is None:
            return (FGSM(ball=self.ball),)
        searching = [attack for attack in trained if not isinstance(attack, Noise)]
        balls = [(attack, ball) for attack in searching if (ball := ball_of(attack)) is not None]
        same = [attack for attack, ball in balls if type(ball) is type(self.ball)]
        return tuple(in_ball(attack, self.ball) for attack in same or [attack for attack, _ in balls])

    @cached_property
    def square(self) -> Square | None:
        """None in a ball that Square has no perturbations for."""
        return Square(queries=self.budget.queries, ball=self.ball) if type(self.ball) in PERTURBATIONS else None

    @cached_property
    def transfer(self) -> Transfer | None:
        """None without a second network."""
        if self.network.source is None:
            return None
        return Transfer(self.network.source, PGD(steps=self.budget.steps, ball=self.ball, loss="margin"))

    @cached_property
    def hop_skip_jump(self) -> HopSkipJump | None:
        """With a few rounds in its queries; None where it meets no images, and in a ball that it does not know."""
        if not self.budget.decision_images or not isinstance(self.ball, HopSkipJump.balls):
            return None
        return HopSkipJump(queries=self.budget.queries, ball=self.ball, samples=max(1, self.budget.queries // 25))

    def _survive_beside_pgd(self, attack: Attack | None, first: int | None = None) -> Tensor | None:
        """Of an attack that meets only the images (the `first` ones) that PGD leaves; None where there is no such attack."""
        if attack is None:
            return None
        among = self.survives["pgd"]
        return self.survivors(attack, among if first is None else among & (torch.arange(self.n) < first))

    def _survive_training_attacks(self) -> Tensor | None:
        survivors = [self.survivors(attack) for attack in self.training_attacks]
        return torch.stack(survivors).all(0) if survivors else None

    def _survive_more_restarts(self) -> Tensor:
        """PGD meets again, with more restarts, the images on which an attack without its gradient succeeded.

        All others that PGD leaves survive: no attack says that gradients should have found them.
        """
        under_pgd = self.survives["pgd"]
        claimed = torch.zeros_like(under_pgd)
        for name in self.claims:
            if (survivors := self.survives.get(name)) is not None:
                claimed |= under_pgd & ~survivors
        attack = replace(self.pgd, restarts=max(self.budget.confirm_restarts, self.budget.restarts))
        return under_pgd & (self.survivors(attack, claimed) if attack != self.pgd else under_pgd)

    def _survive_unbounded(self) -> Tensor:
        """Every pixel may take any value, under cross entropy and under the margin loss."""
        attack = PGD(steps=self.budget.steps, ball=whole_range(self.ball, self.network.images))
        left = self.survivors(attack)
        return left & self.survivors(replace(attack, loss="margin"), left) & ~self.undefined

    def _survive_all(self) -> Tensor:
        names = (
            "pgd", "fgsm", "training attacks", "margin loss", "noise", "square", "transfer", "hopskipjump", "pgd, more restarts",
            "apgd", "ensemble",
        )  # fmt: skip
        survivors = self.clean.clone()
        for name in names:
            if (found := self.survives.get(name)) is not None:
                survivors &= found
        return survivors & ~self.undefined

    def at(self, share_of_eps: float, steps: int) -> Tensor:
        """(n,) bool: which images survive PGD, or FGSM where `steps` is 0, at a share of the evaluation eps."""
        ball = scaled(self.ball, share_of_eps)
        return self.survivors(PGD(steps=steps, ball=ball) if steps else FGSM(ball=ball))

    # The probes: images that the network has right, as one batch.

    @cached_property
    def probes(self) -> Split:
        return Subset(self.network.images, self.clean.nonzero()[: self.budget.probes, 0])

    @cached_property
    def probe_images(self) -> tuple[Tensor, Tensor]:
        """(p, C, H, W) on the device, and labels (p,)."""
        index = torch.arange(len(self.probes))
        return self.compute.images(self.probes.take(index)), self.probes.labels.to(self.compute.device)

    def streams(self, purpose: str) -> Streams:
        """Random numbers for the probes."""
        return Streams(self.seed, self.clean.nonzero()[: self.budget.probes, 0].tolist(), purpose)

    @cached_property
    def first_order(self) -> FirstOrder | None:
        """What the gradient promises of the margin, and what FGSM and PGD get; None where it is never right any more.

        That is so for a network that answers otherwise when gradients are asked for.
        """
        self.report("first-order prediction")
        x, y = self.probe_images
        with seeded(self.seed, self.compute.device):
            if not bool((input_gradient(self.probe_net, x, y, "margin")[0]).any()):
                return None
            return first_order(
                self.net, self.probes, self.ball, self.compute, "margin", seed=self.seed, batch_size=self.batch_size
            )

    @cached_property
    def trajectory(self) -> AttackResult:
        """One run of PGD on the probes to its end, with every iterate's loss and verdict."""
        self.report("PGD step by step")
        attack = replace(self.pgd, restarts=1, loss="margin")
        x, y = self.probe_images
        with self.compute.autocast(), seeded(self.seed, self.compute.device):
            return attack(self.probe_net, x, y, streams=self.streams("trajectory"))


class ZeroGradient(nn.Module):
    """A network without an image gradient, given one of zeros; its logits are the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True)
