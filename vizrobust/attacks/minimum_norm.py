"""What attacks that look for the smallest perturbation share, and two whose ball follows the boundary: FMN and DDN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, State, initial_state, input_gradient, is_finite, record
from vizrobust.attacks.losses import ce, margin
from vizrobust.attacks.threat_models import (
    L0,
    L1,
    L1_SPARSITY,
    L2,
    TINY,
    Ball,
    Linf,
    dual_norm,
    epsilon,
    movable,
    per_image,
    sparse_step,
)
from vizrobust.rng import Streams
from vizrobust.spec import spec

A = TypeVar("A", bound=Any)


class MinimumNormAttack(Attack):
    """An attack that needs no eps; fields named `positive` must be above 0, `gamma` below 1 too."""

    minimum_norm = True
    positive: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {"steps": 0}
    run: ClassVar[type[Any]]

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (self.run(self),)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.positive:
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{type(self).__name__}: {name} must be above 0, got {value:g}")
        if not 0 < (gamma := getattr(self, "gamma", 0.5)) < 1:
            raise ValueError(f"{type(self).__name__}: gamma must be between 0 and 1, got {gamma:g}")


@dataclass(frozen=True)
class MinimumNormRun(Generic[A]):
    """The only run of such an attack; ``at`` is the point of its state, wherever it lies."""

    attack: A

    minimum_norm: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return type(self.attack).__name__

    component = name

    @property
    def steps(self) -> int:
        return int(self.attack.steps)

    def evaluate(self, net: nn.Module, state: State) -> None:
        record_minimum_norm(state, self.attack.ball, net(state["at"]), state["at"])


def record_minimum_norm(
    state: State, ball: Ball, logits: Tensor, point: Tensor, counts: Tensor | None = None, norm: Tensor | None = None
) -> Tensor:
    """Record a point (N, C, H, W) with minus its distance as its loss; (N,) bool: whether it is misclassified.

    The image is broken only by a misclassified point within `ball` (anywhere if it has no eps) that `counts`. `norm` (N,)
    is the point's distance where that is known.
    """
    norm = ball.norm(point - state["x"]) if norm is None else norm
    if ball.eps is not None:
        inside = norm <= epsilon(ball)
        counts = inside if counts is None else inside & counts
    record(state, logits, -norm, counts, point)
    return is_finite(logits) & (logits.argmax(1) != state["y"])


def projected(ball: Ball, x: Tensor, point: Tensor) -> Tensor:
    """The point that a run returns: where it went, projected into the ball."""
    return point if ball.eps is None else ball.project_image(x, point)


# Step and radius change by this share, or this much, at the end (both papers).
LAST_ALPHA, LAST_GAMMA = 0.01, 0.001
# At most so many values move in a steepest L1 step: the 1 % of PGD are far too many in large images.
SPARSE_VALUES = 8


class FMNRun(MinimumNormRun["FMN"]):
    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return radius_state(x, y, streams, 1.0 if isinstance(self.attack.ball, L0) else math.inf)

    def step(self, net: nn.Module, state: State) -> None:
        attack, x, at = self.attack, state["x"], state["at"].detach().requires_grad_()
        logits = net(at)
        lead = margin(logits, state["y"]).to(x.dtype)
        grad = input_gradient(lead, at, state)
        at, done = at.detach(), per_image(cosine(state, self.steps), x)
        norm = attack.ball.norm(at - x)
        wrong = record_minimum_norm(state, attack.ball, logits.detach(), at, norm=norm)
        gamma = LAST_GAMMA + (attack.gamma - LAST_GAMMA) * done.flatten()
        state["nearest"] = torch.where(wrong, torch.minimum(norm, state["nearest"]), state["nearest"])
        state["radius"] = radius = self._radius(state, wrong, norm, lead.detach(), grad, gamma)
        state["at"] = self._moved(x, at, grad, radius, done)
        state["adv"] = projected(attack.ball, x, state["at"])

    def _radius(self, state: State, wrong: Tensor, norm: Tensor, lead: Tensor, grad: Tensor, gamma: Tensor) -> Tensor:
        ball, radius, nearest = self.attack.ball, state["radius"], state["nearest"]
        smaller, larger = radius * (1 - gamma), radius * (1 + gamma)
        if isinstance(ball, L0):  # whole numbers, by one at least
            smaller, larger = torch.minimum(radius - 1, smaller.floor()), torch.maximum(radius + 1, larger.floor())
        else:
            # A hair beyond the plane: on it a linear network is undecided, and the radius would grow no more.
            to_plane = norm + lead.abs().nan_to_num() / dual_norm(ball, grad).clamp_min(TINY)
            larger = torch.where(nearest.isfinite(), larger, (1 + LAST_GAMMA) * to_plane)
        # No point of [0, 1] is farther than the image's corner farthest from it.
        farthest = ball.norm(torch.maximum(state["x"], 1 - state["x"]))
        return torch.where(wrong, torch.minimum(smaller, nearest), larger).clamp_min(0).minimum(farthest)

    def _moved(self, x: Tensor, at: Tensor, grad: Tensor, radius: Tensor, done: Tensor) -> Tensor:
        ball, alpha = self.attack.ball, self.attack.alpha * (LAST_ALPHA + (1 - LAST_ALPHA) * done)
        if not self.attack.steepest:
            to = at + alpha * L2().steepest_direction(grad)
        elif isinstance(ball, L0):
            to = at + alpha * ball.steepest_direction(grad, at)
        elif isinstance(ball, L1):
            share = torch.full_like(radius, min(L1_SPARSITY, SPARSE_VALUES / x[0].numel()))
            to = (at + alpha * per_image(radius, x) * sparse_step(movable(grad, at), share)).clamp_(0, 1)
        else:
            to = at + alpha * per_image(radius, x) * ball.steepest_direction(movable(grad, at))
        if isinstance(ball, L0) and self.attack.steepest:
            return ball.project_image(x, to, radius)
        assert isinstance(ball, Linf | L2 | L1 | L0)
        return (x + ball.project(to - x, radius)).clamp_(0, 1)


@spec
@dataclass(frozen=True)
class FMN(MinimumNormAttack):
    """The fast minimum-norm attack (Pintor et al. 2021): each image's ball shrinks where a point in it is misclassified.

    Each of the K = `steps` gradients of the margin moves a point, which is projected into a ball of the image's own
    radius. That radius is the distance to the linearised boundary until a point is misclassified; from then on it falls
    by the share `gamma` after a misclassified point and grows by it after any other. Steps have length `alpha` (in L2)
    at first, a hundredth of it at the end, `gamma` 0.001, both along a half cosine. The ball is Linf, L2, L1 or L0,
    which counts values; without eps it is unbounded, with one only points in it break an image.

    ``steepest=True`` is not in the paper: the step goes in the ball's direction of steepest ascent and is `alpha` times the
    present radius long, so one alpha fits every norm, image size and distance.

    >>> FMN(steps=20, norm="L1")(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 21 evaluated points each)
    """

    steps: int = 100
    ball: Ball = Linf()
    alpha: float = 1.0
    gamma: float = 0.05
    steepest: bool = False

    balls = (Linf, L2, L1, L0)
    positive = ("alpha",)
    run = FMNRun


class DDNRun(MinimumNormRun["DDN"]):
    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return radius_state(x, y, streams, self.attack.initial_norm)

    def step(self, net: nn.Module, state: State) -> None:
        ball, gamma, x, at = self.attack.ball, self.attack.gamma, state["x"], state["at"].detach().requires_grad_()
        logits = net(at)
        grad = input_gradient(ce(logits, state["y"]).to(x.dtype), at, state)
        at = at.detach()
        alpha = LAST_ALPHA + (1 - LAST_ALPHA) * per_image(cosine(state, self.steps), x)
        wrong = record_minimum_norm(state, ball, logits.detach(), at)
        farthest = ball.norm(torch.maximum(x, 1 - x))
        state["radius"] = (state["radius"] * torch.where(wrong, 1 - gamma, 1 + gamma)).minimum(farthest)
        move = at - x + alpha * ball.steepest_direction(grad)
        state["at"] = (x + move * per_image(state["radius"] / ball.norm(move).clamp_min(TINY), x)).clamp_(0, 1)
        state["adv"] = projected(ball, x, state["at"])


@spec
@dataclass(frozen=True)
class DDN(MinimumNormAttack):
    """Decoupled direction and norm (Rony et al. 2019): steps on a sphere whose radius follows the decision boundary.

    Each of the K = `steps` gradients of the cross entropy moves a point by a length of 1 at first and 0.01 at the end;
    the change is then scaled to the image's radius, which starts at `initial_norm`, falls by the share `gamma` after a
    misclassified point and grows by it after any other. The ball is L2; without eps it is unbounded, with one only
    points in it break an image.

    >>> DDN(steps=20)(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 21 evaluated points each)
    """

    steps: int = 100
    ball: Ball = L2()
    gamma: float = 0.05
    initial_norm: float = 1.0

    balls = (L2,)
    positive = ("initial_norm",)
    run = DDNRun


def radius_state(x: Tensor, y: Tensor, streams: Streams, radius: float) -> State:
    """A state with the point ``at``, the ``radius`` (N,) of its ball, and the norm ``nearest`` (N,) of what was found."""
    return {
        **initial_state(x, y, x, streams), "at": x, "radius": torch.full_like(x[:, 0, 0, 0], radius),
        "nearest": torch.full_like(x[:, 0, 0, 0], torch.inf),
    }  # fmt: skip


def cosine(state: State, steps: int) -> Tensor:
    """(N,): half a cosine over the steps, from 1 at an image's first step down towards 0 after its last."""
    return (1 + torch.cos(state["step"].to(state["x"].dtype) * (math.pi / steps))) / 2
