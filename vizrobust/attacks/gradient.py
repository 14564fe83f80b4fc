"""The gradient attacks FGSM, BIM and PGD; and how common parameters set the fields of an attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import (
    Attack,
    AttackRun,
    State,
    ball_of,
    initial_state,
    input_gradient,
    random_targets,
    record,
)
from vizrobust.attacks.losses import LOSSES, PLAIN_LOSSES, SOFT_LOSSES, log_probabilities
from vizrobust.attacks.threat_models import BALLS, Ball, EpsShare, Linf, epsilon, is_positive, step_size
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams
from vizrobust.spec import lookup, named, spec, vary


class GradientAttack(Attack):
    """What FGSM, BIM and PGD check alike: the loss, and which fields exclude each other."""

    loss: str
    targeted: bool
    target: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        lookup(ASCENT_LOSSES, self.loss, "loss")
        steps = getattr(self, "steps", 1)
        if steps < 0:
            raise ValueError(f"{name}: steps must not be negative, got {steps}")
        alpha = getattr(self, "alpha", None)
        if alpha is not None and not is_positive(alpha):
            raise ValueError(f"{name}: alpha must not be negative, got {alpha!r}")
        if self.target is not None and not self.targeted:
            raise ValueError(f"{name}: target={self.target} needs targeted=True")
        if self.loss in SOFT_LOSSES and (self.targeted or not getattr(self, "random_start", False)):
            raise ValueError(
                f"{name}: loss={self.loss!r} is 0 with gradient 0 at the image itself and has no target class; "
                "use PGD with its random start and without targeted"
            )
        if self.target is not None and self.target < 0:
            raise ValueError(f"{name}: target must be a class number from 0 on, got {self.target}")


@spec
@dataclass(frozen=True)
class FGSM(GradientAttack):
    """The fast gradient sign method (Goodfellow et al. 2015): one step of eps from the image itself.

    `targeted` draws a wrong class for each image, or takes `target`, and descends towards it. In balls other than L-inf
    the step goes in their direction of steepest ascent. Raises ``ValueError`` for an unknown loss, and for fields
    that exclude each other.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> found = FGSM(eps=0.1)(net, torch.rand(5, 1, 4, 4), torch.arange(5) % 3)
    >>> found.x.shape, found.correct.shape
    (torch.Size([5, 1, 4, 4]), torch.Size([2, 5]))
    """

    ball: Ball = Linf()
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (_gradient_run(self, steps=1, alpha=epsilon(self.ball)),)


@spec
@dataclass(frozen=True)
class BIM(GradientAttack):
    """The basic iterative method, or iterative sign method (Kurakin et al. 2017): `steps` steps of `alpha`, no random start.

    alpha None is eps/steps; ``alpha=eps/16`` in a text is `EpsShare(1 / 16)`. ``project=False`` is the iteration without
    projection: it leaves the ball if steps * alpha > eps, so it says nothing about robustness at eps and never enters a
    verdict. `targeted` and `target` as in `FGSM`.

    >>> BIM(eps=8 / 255, steps=5)
    BIM(steps=5, ball=Linf(eps=8/255))
    """

    steps: int = 10
    ball: Ball = Linf()
    alpha: float | EpsShare | None = None
    project: bool = True
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        eps = epsilon(self.ball)
        alpha = step_size(self, eps, eps / max(self.steps, 1))
        return (_gradient_run(self, steps=self.steps, alpha=alpha, project=self.project),)


@spec
@dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent (Madry et al. 2018): K = `steps` gradient evaluations, the K-th iterate.

    alpha None is min(eps, 2.5 eps / steps); ``alpha=eps/16`` in a text is `EpsShare(1 / 16)`. `random_start` starts
    uniformly in the ball; each of `restarts` starts at another point, and the worst counts for each image. One step =
    step, projection onto the ball, clip to [0, 1].

    Without `clip_start` the random start may lie outside [0, 1], as published for training (Wong et al. 2020): on dark
    images clipping halves the noise. Such a start never counts as an example. ``loss="kl"`` moves away from the network's
    own prediction on the image, without the label (TRADES, Zhang et al. 2019).

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(5, 1, 4, 4), torch.arange(5) % 3
    >>> found = PGD(eps=0.1, steps=3)(net, x, y)
    >>> found.x.shape, found.correct.shape, bool((found.x - x).abs().max() <= 0.1 + 1e-6)
    (torch.Size([5, 1, 4, 4]), torch.Size([4, 5]), True)
    """

    steps: int = 40
    ball: Ball = Linf()
    alpha: float | EpsShare | None = None
    random_start: bool = True
    clip_start: bool = True
    restarts: int = 1
    loss: str = "ce"
    targeted: bool = False
    target: int | None = None

    least: ClassVar = {"restarts": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"PGD: {self.restarts} restarts without a random start would be equal; leave out random_start=False")
        if not self.clip_start and not (self.random_start and self.steps):
            raise ValueError("PGD: clip_start=False needs a random start and at least one step, which ends in [0, 1]")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        eps = epsilon(self.ball)
        alpha = step_size(self, eps, min(eps, 2.5 * eps / max(self.steps, 1)))
        one = _gradient_run(self, steps=self.steps, alpha=alpha, random_start=self.random_start, clip_start=self.clip_start)
        return tuple(replace(one, restart=number) for number in range(self.restarts))


ATTACKS = named(FGSM, BIM, PGD)
ASCENT_LOSSES = {**LOSSES, **PLAIN_LOSSES, **SOFT_LOSSES}


@dataclass(frozen=True)
class GradientRun:
    """`steps` steps of length `alpha` that raise the loss, or lower it for a target class."""

    kind: str
    ball: Ball
    steps: int
    alpha: float
    loss: str
    targeted: bool = False
    target: int | None = None
    random_start: bool = False
    clip_start: bool = True
    project: bool = True
    restart: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.restart + 1}" if self.restart else self.kind

    @property
    def component(self) -> str:
        return self.kind

    @property
    def leaves_ball(self) -> bool:
        return not self.project

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        target = self._reference(net, x, y, streams)
        if self.restart:
            streams = streams.child(f"restart {self.restart}")
        if not self.random_start:
            return {**initial_state(x, y, x, streams), "target": target}
        start = x + self.ball.sample(x, streams)
        state = {**initial_state(x, y, start.clamp(0, 1), streams), "target": target}
        return state if self.clip_start else {**state, "adv": start}

    def step(self, net: nn.Module, state: State) -> None:
        adv = state["adv"].detach().requires_grad_()
        logits = net(adv)
        ascent_loss = self._ascent_loss(logits, state)
        grad = input_gradient(ascent_loss, adv, state)
        self._mark(state, logits, ascent_loss)
        # Outside the graph: torch's clamp has zero gradient at its bound and would mask saturated pixels.
        adv = adv.detach()
        adv = adv + self.alpha * self.ball.steepest_direction(grad, adv)
        state["adv"] = self.ball.project_image(state["x"], adv) if self.project else adv.clamp_(0, 1)

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        self._mark(state, logits, self._ascent_loss(logits, state))

    def _mark(self, state: State, logits: Tensor, ascent_loss: Tensor) -> None:
        """Enter the verdict on the iterate; a point outside [0, 1] is no image and breaks nothing."""
        if self.clip_start:
            record(state, logits.detach(), ascent_loss)
        else:
            inside = ((state["adv"] >= 0) & (state["adv"] <= 1)).flatten(1).all(1)
            record(state, logits.detach(), ascent_loss.detach().masked_fill(~inside, -torch.inf), inside)

    def _ascent_loss(self, logits: Tensor, state: State) -> Tensor:
        """What the steps raise: (N,)."""
        loss = lookup(ASCENT_LOSSES, self.loss, "loss")(logits, state["target"])
        return -loss if self.targeted else loss

    def _reference(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """What the loss compares the logits with: labels, target classes, or what the network says of the clean images."""
        if self.loss in SOFT_LOSSES:
            with torch.no_grad():
                return log_probabilities(net(x))
        return random_targets(net, x, y, streams, self.target) if self.targeted else y


def _gradient_run(attack: FGSM | BIM | PGD, **how: Any) -> GradientRun:
    return GradientRun(
        type(attack).__name__, attack.ball, loss=attack.loss,
        targeted=attack.targeted, target=attack.target, **how,
    )  # fmt: skip


def configured(
    attack: Attack, default_eps: float | None = None, norm: str | None = None, *, unbounded: bool = False, **changes: Any
) -> Attack:
    """`attack` with another norm and other common fields, and the data set's eps where it names none.

    `default_eps` is an L-inf radius, so it fills only L-inf balls; any other ball without eps is a ``ValueError``,
    unless it may stay `unbounded`, for attacks that look for the smallest perturbation. In a wrapper the attack inside is
    changed; an attack without a ball keeps its own radius unless `changes` name another.

    >>> from vizrobust.attacks import EOT, PGD
    >>> configured(PGD(), default_eps=0.3, steps=7)
    PGD(steps=7, ball=Linf(eps=0.3))
    >>> configured(EOT(attack=PGD()), norm="L2", eps=2)
    EOT(attack=PGD(ball=L2(eps=2.0)))
    """
    ball = ball_of(attack)
    if norm is not None:
        other = lookup(BALLS, norm, "norm")()
        # Another norm's radius means something else: it is kept only where the norm stays.
        if ball is not None and not isinstance(ball, type(other)):
            attack = vary(attack, ball=other)
    attack = vary(attack, where_present=True, **{name: value for name, value in changes.items() if value is not None})
    ball = ball_of(attack)
    if ball is None or ball.eps is not None or unbounded:
        return attack
    name = type(ball).__name__
    if name != "Linf" or default_eps is None:
        raise ParameterError(f"{type(attack).__name__} with {name} has no eps; give {{eps}}, or {name}(eps=…)")
    return vary(attack, eps=default_eps)
