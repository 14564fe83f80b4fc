"""The gradient attacks of the lecture: FGSM, the iterative sign method and projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import Ball, Linf, per_image, radius
from vizrobust.attacks.losses import LOSSES, Loss
from vizrobust.models import borrowed
from vizrobust.rng import Streams
from vizrobust.spec import lookup, named, spec


@dataclass(frozen=True)
class Attacked:
    """What an attack found for N images.

    `x` (N, C, H, W) is the K-th iterate, what training uses; `best` a wrong iterate if one was met, else the one
    of highest loss. `loss` (K + 1, N) and `correct` (K + 1, N, bool) follow the iterates from the start point on;
    with restarts they are the worst over them. All three are None when the attack was asked not to judge.
    """

    x: Tensor
    best: Tensor | None = None
    loss: Tensor | None = None
    correct: Tensor | None = None


@runtime_checkable
class Attack(Protocol):
    """``attack(net, x, y, streams)``: images (N, C, H, W) in [0, 1], true labels (N,) -> `Attacked`.

    ``judge=False`` skips the last forward pass and all bookkeeping, for training.
    """

    @property
    def ball(self) -> Ball: ...
    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked: ...


@spec
@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method (Goodfellow et al. 2015): one step of eps from the image itself.

    `targeted` draws a wrong class for each image, or takes `target`, and descends towards it.
    """

    ball: Ball = Linf()
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return _attack(net, x, y, streams, judge, _plan(self, 1, radius(self.ball)))


@spec
@dataclass(frozen=True)
class ISM:
    """The iterative sign method (Kurakin et al. 2017): steps of `alpha` from the image, no random start.

    alpha None is eps/steps. ``project=False`` is the lecture's iteration without projection: it leaves the ball
    when steps * alpha > eps, so it says nothing about robustness at eps and never enters a verdict.
    """

    steps: int = 10
    ball: Ball = Linf()
    alpha: float | None = None
    project: bool = True
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        alpha = radius(self.ball) / max(self.steps, 1) if self.alpha is None else self.alpha
        return _attack(net, x, y, streams, judge, _plan(self, self.steps, alpha, project=self.project))


@spec
@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (Madry et al. 2018): K = `steps` gradient evaluations, the K-th iterate.

    alpha None is min(eps, 2.5 eps / steps). `random_start` begins uniformly in the ball; each of `restarts` begins
    elsewhere, and the worst counts for each image. One step = step, projection onto the ball, clip to [0, 1].

    >>> from vizrobust.models import architecture
    >>> net, x, y = architecture("small_cnn", (1, 28, 28), 10)(), torch.rand(5, 1, 28, 28), torch.arange(5)
    >>> found = PGD(steps=3, ball=Linf(eps=0.1))(net, x, y, Streams(0, range(5)))
    >>> found.x.shape, found.correct.shape, bool((found.x - x).abs().max() <= 0.1 + 1e-6)
    (torch.Size([5, 1, 28, 28]), torch.Size([4, 5]), True)
    """

    steps: int = 40
    ball: Ball = Linf()
    alpha: float | None = None
    random_start: bool = True
    restarts: int = 1
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.restarts < 1:
            raise ValueError(f"PGD: restarts must be at least 1, got {self.restarts}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"PGD: {self.restarts} restarts without a random start would all be the same")

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        eps = radius(self.ball)
        alpha = min(eps, 2.5 * eps / max(self.steps, 1)) if self.alpha is None else self.alpha
        plan = _plan(self, self.steps, alpha, random_start=self.random_start)
        if self.restarts == 1:
            return _attack(net, x, y, streams, judge, plan)
        # Only verdicts tell which restart is the worst, so they are needed here in any case.
        runs = (_attack(net, x, y, streams, True, plan) for _ in range(self.restarts))
        found = reduce(_worse, runs)
        return found if judge else Attacked(found.x)


ATTACKS = named(FGSM, ISM, PGD)


@dataclass(frozen=True)
class _Plan:
    """One run of an attack: `steps` steps of length `alpha` up the loss, or down towards a target."""

    ball: Ball
    steps: int
    alpha: float
    loss: Loss
    targeted: bool
    target: int | None
    random_start: bool = False
    project: bool = True


def _plan(attack: FGSM | ISM | PGD, steps: int, alpha: float, random_start: bool = False, project: bool = True) -> _Plan:
    loss = lookup(LOSSES, attack.loss, "loss")
    return _Plan(attack.ball, steps, alpha, loss, attack.targeted, attack.target, random_start, project)


def _attack(net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool, plan: _Plan) -> Attacked:
    """Climb the goal from the start point; every iterate's loss comes with the gradient pass that leaves it."""
    ball, loss = plan.ball, plan.loss
    towards = _targets(net, x, y, streams, plan.target) if plan.targeted else y
    sign = -1 if plan.targeted else 1
    record = _Record(y) if judge else None
    with borrowed(net):
        start = x.detach()
        adv = (start + ball.sample(start, streams)).clamp(0, 1) if plan.random_start else start
        for _ in range(plan.steps):
            adv = adv.detach().requires_grad_()
            logits = net(adv)
            climbed = sign * loss(logits, towards)
            # On the unwrapped network, summed: no weight gradient is computed and no image meets another.
            (grad,) = torch.autograd.grad(climbed.sum(), adv)
            adv = adv.detach()
            if record:
                record.add(adv, logits.detach(), climbed.detach())
            # Outside the graph: torch's clamp has zero gradient at its bound and would mask saturated pixels.
            adv = adv + plan.alpha * ball.steepest(grad)
            if plan.project:
                adv = start + ball.project(adv - start)
            adv = adv.clamp_(0, 1)
        if record is None:
            return Attacked(adv)
        with torch.no_grad():
            logits = net(adv)
            record.add(adv, logits, sign * loss(logits, towards))
    return Attacked(adv, record.best, torch.stack(record.losses), torch.stack(record.corrects))


class _Record:
    """The losses and verdicts met on the way, and the best iterate so far."""

    def __init__(self, y: Tensor) -> None:
        self.y = y
        self.best: Tensor | None = None
        self.losses: list[Tensor] = []
        self.corrects: list[Tensor] = []
        self._wrong = torch.zeros_like(y, dtype=torch.bool)
        self._loss = torch.zeros(0)

    def add(self, x: Tensor, logits: Tensor, loss: Tensor) -> None:
        correct = logits.argmax(1) == self.y
        self.losses.append(loss)
        self.corrects.append(correct)
        if self.best is None:
            self.best, self._wrong, self._loss = x.clone(), ~correct, loss
            return
        better = _is_worse(self._wrong, self._loss, ~correct, loss)
        self.best = torch.where(per_image(better, x), x, self.best)
        self._wrong = self._wrong | ~correct
        self._loss = torch.where(better, loss, self._loss)


def _is_worse(wrong: Tensor, loss: Tensor, new_wrong: Tensor, new_loss: Tensor) -> Tensor:
    """Whether the new point is the stronger example: a wrong one before a right one, then the higher loss."""
    return (new_wrong & ~wrong) | ((new_wrong == wrong) & (new_loss > loss))


def _worse(a: Attacked, b: Attacked) -> Attacked:
    """Two restarts as one: for each image the stronger of them."""
    if a.loss is None or b.loss is None or a.correct is None or b.correct is None or a.best is None or b.best is None:
        return b
    last = _is_worse(~a.correct[-1], a.loss[-1], ~b.correct[-1], b.loss[-1])
    best = _is_worse(~a.correct.all(0), a.loss.amax(0), ~b.correct.all(0), b.loss.amax(0))
    return Attacked(
        torch.where(per_image(last, a.x), b.x, a.x),
        torch.where(per_image(best, a.best), b.best, a.best),
        torch.maximum(a.loss, b.loss),
        a.correct & b.correct,
    )


def _targets(net: nn.Module, x: Tensor, y: Tensor, streams: Streams, target: int | None) -> Tensor:
    """The class that each image is driven to: `target`, or a wrong class drawn at random."""
    with borrowed(net), torch.no_grad():
        classes = net(x[:1]).shape[1]
    if target is not None:
        if target >= classes:
            raise ValueError(f"target class {target} does not exist: the network has classes 0 to {classes - 1}")
        return torch.full_like(y, target)
    return (y + 1 + streams.child("target").integers(classes - 1).to(y.device)) % classes


def _check(attack: FGSM | ISM | PGD) -> None:
    name = type(attack).__name__
    lookup(LOSSES, attack.loss, "loss")
    steps = getattr(attack, "steps", 1)
    if steps < 0:
        raise ValueError(f"{name}: steps must not be negative, got {steps}")
    alpha = getattr(attack, "alpha", None)
    if alpha is not None and alpha < 0:
        raise ValueError(f"{name}: alpha must not be negative, got {alpha:g}")
    if attack.target is not None and not attack.targeted:
        raise ValueError(f"{name}: target={attack.target} needs targeted=True")
    if attack.target is not None and attack.target < 0:
        raise ValueError(f"{name}: target must be a class number from 0 on, got {attack.target}")
