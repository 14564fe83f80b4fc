"""ALMA: the smallest L2 or L1 perturbation by an augmented Lagrangian, whose multiplier each image finds for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, MinimumNormRun, State, check_least, initial_state, input_gradient
from vizrobust.attacks.boundary_attacks import projected, record_minimum_norm
from vizrobust.attacks.losses import dlr
from vizrobust.attacks.threat_models import L1, L2, TINY, Ball, per_image
from vizrobust.rng import Streams
from vizrobust.spec import spec

# Of the paper: steps between two checks of the constraint, the share that it must have fallen to, and by what the
# penalty rises otherwise; the smoothing of multiplier, squares and momentum.
CHECK, IMPROVED, RAISE = 10, 0.95, 1.2
SMOOTH = 0.9
# A wrong class must lead by this much, or the point that is approached would be a tie.
LEAD = 1e-4
SMALLEST, LARGEST = 1e-6, 1e12


@spec
@dataclass(frozen=True)
class ALMA(Attack):
    """The augmented Lagrangian attack (Rony et al. 2021): RMSProp with momentum on distance + penalty(-DLR).

    The penalty is their P2 with a multiplier of each image's own, averaged over the steps; its parameter rises by 1.2
    after every 10 steps in which the constraint has not fallen by 5 %, until a point is misclassified. From there on the
    step `lr` falls to a hundredth. K = `steps` gradients. The ball is L2 or L1; without eps it is unbounded, with one only
    points in it break an image.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x = torch.rand(5, 1, 4, 4)
    >>> ALMA(steps=20)(net, x, net(x).argmax(1)).best.shape
    torch.Size([5, 1, 4, 4])
    """

    steps: int = 100
    ball: Ball = L2()
    lr: float = 0.1

    minimum_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.ball, L2 | L1):
            raise ValueError(f"ALMA: the ball must be L2 or L1, got {type(self.ball).__name__}")
        check_least(self, steps=0)
        if self.lr <= 0:
            raise ValueError(f"ALMA: lr must be above 0, got {self.lr:g}")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (ALMARun(self),)


@dataclass(frozen=True)
class ALMARun(MinimumNormRun):
    attack: ALMA

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        one = torch.ones_like(x[:, 0, 0, 0])
        return {
            **initial_state(x, y, x, streams),
            "at": x,
            "square": torch.ones_like(x),
            "momentum": torch.zeros_like(x),
            "multiplier": one,
            "penalty": one,
            "checked": one * torch.inf,  # the constraint at the last check
            "found_at": one * (self.steps + 1),
        }

    def step(self, net: nn.Module, state: State) -> None:
        ball, x, at = self.attack.ball, state["x"], state["at"].detach().requires_grad_()
        logits = net(at)
        # A tie must not count as reached.
        largest = logits.detach().topk(min(3, logits.shape[1]), 1).values
        ahead = LEAD / (largest[:, 0] - largest[:, -1]).clamp_min(1e-8)
        lead = dlr(logits, state["y"]).to(x.dtype)
        grad = input_gradient(lead, at, state)
        at, constraint = at.detach(), (ahead - lead.detach()).to(x.dtype).nan_to_num()
        i = state["step"]
        wrong = record_minimum_norm(state, ball, logits.detach(), at)
        first, found = i == 0, state["found_at"] <= self.steps
        check = first | ((i + 1) % CHECK == 0)
        stuck = check & ~first & ~found & (constraint >= IMPROVED * state["checked"])
        state["penalty"] = penalty = torch.where(stuck, RAISE * state["penalty"], state["penalty"])
        state["checked"] = torch.where(check, constraint, state["checked"])
        smoothed = SMOOTH * state["multiplier"] + (1 - SMOOTH) * _slope(constraint, penalty, state["multiplier"])
        state["multiplier"] = multiplier = torch.where(first, state["multiplier"], smoothed.clamp(SMALLEST, LARGEST))
        state["found_at"] = torch.where(wrong & ~found, i.to(x.dtype), state["found_at"])
        delta = at - x
        # The distance's own slope; at the image itself it has none.
        near = delta.sign() if isinstance(ball, L1) else delta / per_image(ball.norm(delta).clamp_min(TINY), x)
        slope = (near - per_image(_slope(constraint, penalty, multiplier), x) * grad).nan_to_num(0.0)
        state["square"] = SMOOTH * state["square"] + (1 - SMOOTH) * slope**2
        state["momentum"] = SMOOTH * state["momentum"] + slope / (state["square"].sqrt() + 1e-8)
        since = (i - state["found_at"]).clamp_min(0) / (self.steps - state["found_at"]).clamp_min(1)
        state["at"] = (at - per_image(self.attack.lr * 0.01**since, x) * state["momentum"]).clamp_(0, 1)
        state["adv"] = projected(ball, x, state["at"])

    def evaluate(self, net: nn.Module, state: State) -> None:
        record_minimum_norm(state, self.attack.ball, net(state["at"]), state["at"])


def _slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """(N,): the derivative by y of P2(y, rho, mu): mu y + mu rho y² + rho² y³ / 6 where y >= 0, else mu y / (1 - rho y)."""
    above, below = y.clamp_min(0), y.clamp_max(0)
    return torch.where(y >= 0, mu + 2 * mu * rho * above + rho**2 * above**2 / 2, mu / (1 - rho * below) ** 2)
