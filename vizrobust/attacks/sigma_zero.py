"""sigma-zero: the fewest values that must change, by descent on a smooth count of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, MinimumNormRun, State, check_least, initial_state, input_gradient
from vizrobust.attacks.boundary_attacks import projected, record_minimum_norm
from vizrobust.attacks.carlini_wagner import BETA1, BETA2
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import L0, TINY, Ball, per_image
from vizrobust.rng import Streams
from vizrobust.spec import spec

# How smooth the count is: a value of size s counts s² / (s² + this).
SIGMA = 0.001


@spec
@dataclass(frozen=True)
class SigmaZero(Attack):
    """sigma-zero (Cinà et al. 2025): Adam on max(-margin, 0) + a smooth count of the values that change, over all values.

    The gradient is scaled to a largest entry of 1; after each step changes below a threshold are set to 0. The threshold
    starts at `threshold` and rises by a hundredth of the step after a misclassified point, else it falls by that much.
    The step falls from `lr` to a tenth of it along a half cosine. K = `steps` gradients. The ball is L0 and counts values
    of the tensor, not pixels; without eps it is unbounded, with one only points in it break an image.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x = torch.rand(5, 1, 4, 4)
    >>> SigmaZero(steps=20)(net, x, net(x).argmax(1)).best.shape
    torch.Size([5, 1, 4, 4])
    """

    steps: int = 100
    ball: Ball = L0()
    lr: float = 1.0
    threshold: float = 0.3

    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.ball, L0):
            raise ValueError(f"SigmaZero: the ball must be L0, got {type(self.ball).__name__}")
        check_least(self, steps=0, threshold=0)
        if self.lr <= 0:
            raise ValueError(f"SigmaZero: lr must be above 0, got {self.lr:g}")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (SigmaZeroRun(self),)


@dataclass(frozen=True)
class SigmaZeroRun(MinimumNormRun):
    attack: SigmaZero

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        zero = torch.zeros_like(x)
        threshold = torch.full_like(x[:, 0, 0, 0], self.attack.threshold)
        return {**initial_state(x, y, x, streams), "at": x, "mean": zero, "square": zero, "threshold": threshold}

    def step(self, net: nn.Module, state: State) -> None:
        attack, x, at = self.attack, state["x"], state["at"].detach().requires_grad_()
        logits = net(at)
        lead = margin(logits, state["y"]).to(x.dtype)
        grad = input_gradient(lead, at, state)
        at, delta = at.detach(), at.detach() - x
        i = state["step"]
        wrong = record_minimum_norm(state, attack.ball, logits.detach(), at)
        count = 2 * SIGMA * delta / (delta**2 + SIGMA) ** 2 / x[0].numel()
        slope = count - per_image(lead < 0, x) * grad
        slope = slope / per_image(slope.abs().flatten(1).amax(1).clamp_min(TINY), x)
        state["mean"] = BETA1 * state["mean"] + (1 - BETA1) * slope
        state["square"] = BETA2 * state["square"] + (1 - BETA2) * slope**2
        t = (i + 1).to(x.dtype)
        lr = attack.lr * torch.where(i == 0, 1.0, self._schedule(i - 1))
        size = (state["square"] / per_image(1 - BETA2**t, x)).sqrt() + 1e-8
        delta = (at - per_image(lr / (1 - BETA1**t), x) * state["mean"] / size).clamp_(0, 1) - x
        change = 0.01 * attack.lr * self._schedule(i)
        state["threshold"] = (state["threshold"] + torch.where(wrong, change, -change)).clamp(0, 1)
        kept = delta.abs() >= per_image(state["threshold"], x)
        state["at"] = torch.where(kept, (x + delta).clamp_(0, 1), x)
        state["adv"] = projected(attack.ball, x, state["at"])

    def evaluate(self, net: nn.Module, state: State) -> None:
        record_minimum_norm(state, self.attack.ball, net(state["at"]), state["at"])

    def _schedule(self, i: Tensor) -> Tensor:
        return 0.1 + 0.45 * (1 + torch.cos(i * (math.pi / self.steps)))
