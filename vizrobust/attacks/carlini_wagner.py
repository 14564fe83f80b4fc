"""The attack of Carlini and Wagner (2017): the smallest L2 perturbation as an unconstrained optimisation problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import (
    Attack,
    AttackRun,
    MinimumNormRun,
    State,
    check_ball,
    check_least,
    initial_state,
    input_gradient,
    is_finite,
)
from vizrobust.attacks.boundary_attacks import projected, record_minimum_norm
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import L2, Ball, per_image
from vizrobust.rng import Streams
from vizrobust.spec import spec

# tanh reaches this far beyond [0, 1], and the excess is cut off. With a range of exactly [0, 1] a black or white pixel
# would sit at infinity, or, squeezed inside by 1e-6 as is usual, so far out that it takes a thousand steps to come back.
SLACK = 0.01
# Until a c works it is raised by this factor (Carlini & Wagner's code).
RAISE = 10.0
# A slope whose square float32 still holds.
LARGEST = 1e18
# Adam's constants (Kingma & Ba 2015).
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8


@spec
@dataclass(frozen=True)
class CW(Attack):
    """The L2 attack of Carlini & Wagner (2017): Adam on ``|x' - x|² + c · max(confidence - lead, 0)`` with x' = tanh(w).

    The lead is the largest wrong logit minus the label's. A binary search for each image finds its c: `search_steps`
    rounds of `steps` steps each, from `initial_c`, ten times as much after each round without success until one
    succeeds, then halving the interval. (The authors' lr of 0.01 needs a thousand steps a round.) With a `confidence`
    only points with so large a lead count. Without eps the ball is unbounded, with one only points in it break an image.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x = torch.rand(5, 1, 4, 4)
    >>> CW(steps=20, search_steps=3)(net, x, net(x).argmax(1)).best.shape
    torch.Size([5, 1, 4, 4])
    """

    steps: int = 100
    search_steps: int = 9
    ball: Ball = L2()
    confidence: float = 0.0
    lr: float = 0.05
    initial_c: float = 0.1

    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ball(self, L2)
        check_least(self, steps=0, search_steps=1, confidence=0)
        for name in ("lr", "initial_c"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"CW: {name} must be above 0, got {value:g}")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (CWRun(self),)


@dataclass(frozen=True)
class CWRun(MinimumNormRun):
    """All rounds of the binary search as one run; each image has its own c, bounds and optimizer state."""

    attack: CW

    @property
    def steps(self) -> int:
        return self.attack.steps * self.attack.search_steps

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        zero = x.new_zeros(len(x))
        return {
            **initial_state(x, y, x, streams),
            "at": x,
            "w": _variable(x),
            "mean": torch.zeros_like(x),
            "square": torch.zeros_like(x),
            "k": zero,  # steps of this round
            "found": torch.zeros_like(zero, dtype=torch.bool),  # whether this round has met a point that counts
            "c": zero + self.attack.initial_c,
            "low": zero,
            "high": zero + torch.inf,
        }

    def step(self, net: nn.Module, state: State) -> None:
        x, at = state["x"], state["at"].detach().requires_grad_()
        logits = net(at)
        lead = margin(logits, state["y"]).to(x.dtype)
        grad = input_gradient(lead, at, state)
        at, lead = at.detach(), lead.detach()
        state["found"] = state["found"] | self._record(state, at, logits.detach(), lead)
        # The hinge has no slope once the wrong class leads by the confidence.
        push = state["c"] * (lead < self.attack.confidence)
        # Both ends from w: Adam would take the rounding between x and its w for a slope, and pixels of no use would move.
        moved = _image(state["w"]) - _image(_variable(x))
        slope = (2 * moved - per_image(push, x) * grad).nan_to_num(0.0).clamp(-LARGEST, LARGEST)
        # Through tanh by hand: the cut at 0 and 1 is not differentiated.
        self._adam(state, slope * (0.5 + SLACK) * (1 - state["w"].tanh() ** 2))
        self._next_round(state)
        state["at"] = _image(state["w"])
        state["adv"] = projected(self.attack.ball, x, state["at"])

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["at"])
        self._record(state, state["at"], logits, margin(logits, state["y"]))

    def _record(self, state: State, at: Tensor, logits: Tensor, lead: Tensor) -> Tensor:
        """Record the point; (N,) bool: whether it is one that the search looks for."""
        finite = is_finite(logits)
        sure = finite & (lead >= self.attack.confidence)
        # An image that is misclassified as it is needs no confidence.
        untouched = (at == state["x"]).flatten(1).all(1)
        return record_minimum_norm(state, self.attack.ball, logits, at, sure | untouched | ~finite) & sure

    def _adam(self, state: State, slope: Tensor) -> None:
        state["k"] = state["k"] + 1
        state["mean"] = BETA1 * state["mean"] + (1 - BETA1) * slope
        state["square"] = BETA2 * state["square"] + (1 - BETA2) * slope**2
        mean = state["mean"] / per_image(1 - BETA1 ** state["k"], slope)
        size = (state["square"] / per_image(1 - BETA2 ** state["k"], slope)).sqrt() + TINY
        state["w"] = state["w"] - self.attack.lr * mean / size

    def _next_round(self, state: State) -> None:
        """Where the point just judged was the last of its round: halve c's interval and start again at the image."""
        judged = state["step"] - 1
        over = (judged > 0) & (judged % self.attack.steps == 0)
        c, found = state["c"], state["found"]
        low = torch.where(found, state["low"], torch.maximum(state["low"], c))
        high = torch.where(found, torch.minimum(state["high"], c), state["high"])
        fresh = {
            "low": low,
            "high": high,
            "c": torch.where(high.isinf(), RAISE * c, (low + high) / 2),
            "w": _variable(state["x"]),
            "found": torch.zeros_like(found),
            **{name: torch.zeros_like(state[name]) for name in ("mean", "square", "k")},
        }
        for name, value in fresh.items():
            state[name] = torch.where(per_image(over, value), value, state[name])


def _variable(x: Tensor) -> Tensor:
    """w with `_image(w)` = x."""
    return torch.atanh((x - 0.5) / (0.5 + SLACK))


def _image(w: Tensor) -> Tensor:
    return (0.5 + (0.5 + SLACK) * w.tanh()).clamp_(0, 1)
