"""The smallest perturbation as an unconstrained optimisation problem: the attack of Carlini & Wagner, ALMA and sigma-zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import State, initial_state, input_gradient, is_finite
from vizrobust.attacks.losses import dlr, margin
from vizrobust.attacks.minimum_norm import MinimumNormAttack, MinimumNormRun, projected, record_minimum_norm
from vizrobust.attacks.threat_models import L0, L1, L2, TINY, Ball, per_image
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
BETA1, BETA2, LEAST_DIVISOR = 0.9, 0.999, 1e-8


class CWRun(MinimumNormRun["CW"]):
    """All rounds of the binary search as one run; each image has its own c, bounds and optimizer state."""

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
        size = (state["square"] / per_image(1 - BETA2 ** state["k"], slope)).sqrt() + LEAST_DIVISOR
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


@spec
@dataclass(frozen=True)
class CW(MinimumNormAttack):
    """The L2 attack of Carlini & Wagner (2017): Adam on ``|x' - x|² + c · max(confidence - lead, 0)`` with x' = tanh(w).

    The lead is the largest wrong logit minus the label's. A binary search for each image finds its c: `search_steps`
    rounds of `steps` steps each, from `initial_c`, ten times as much after each round without success until one
    succeeds, then halving the interval. (The authors' lr of 0.01 needs a thousand steps a round.) With a `confidence`
    only points with so large a lead count. Without eps the ball is unbounded, with one only points in it break an image.

    >>> CW(steps=20, search_steps=3)(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 61 evaluated points each)
    """

    steps: int = 100
    search_steps: int = 9
    ball: Ball = L2()
    confidence: float = 0.0
    lr: float = 0.05
    initial_c: float = 0.1

    balls = (L2,)
    positive = ("lr", "initial_c")
    least: ClassVar = {"steps": 0, "search_steps": 1, "confidence": 0}
    run = CWRun


def _variable(x: Tensor) -> Tensor:
    """w with `_image(w)` = x."""
    return torch.atanh((x - 0.5) / (0.5 + SLACK))


def _image(w: Tensor) -> Tensor:
    return (0.5 + (0.5 + SLACK) * w.tanh()).clamp_(0, 1)


# Of the paper: steps between two checks of the constraint, the share that it must have fallen to, and by what the
# penalty rises otherwise; the smoothing of multiplier, squares and momentum.
CHECK, IMPROVED, PENALTY_RAISE = 10, 0.95, 1.2
SMOOTH = 0.9
# A wrong class must lead by this much, or the point that is approached would be a tie.
LEAD = 1e-4
MULTIPLIERS = 1e-6, 1e12


class ALMARun(MinimumNormRun["ALMA"]):
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
        state["penalty"] = penalty = torch.where(stuck, PENALTY_RAISE * state["penalty"], state["penalty"])
        state["checked"] = torch.where(check, constraint, state["checked"])
        smoothed = SMOOTH * state["multiplier"] + (1 - SMOOTH) * _slope(constraint, penalty, state["multiplier"])
        state["multiplier"] = multiplier = torch.where(first, state["multiplier"], smoothed.clamp(*MULTIPLIERS))
        state["found_at"] = torch.where(wrong & ~found, i.to(x.dtype), state["found_at"])
        delta = at - x
        # The distance's own slope; at the image itself it has none.
        near = delta.sign() if isinstance(ball, L1) else delta / per_image(ball.norm(delta).clamp_min(TINY), x)
        slope = (near - per_image(_slope(constraint, penalty, multiplier), x) * grad).nan_to_num(0.0)
        state["square"] = SMOOTH * state["square"] + (1 - SMOOTH) * slope**2
        state["momentum"] = SMOOTH * state["momentum"] + slope / (state["square"].sqrt() + LEAST_DIVISOR)
        since = (i - state["found_at"]).clamp_min(0) / (self.steps - state["found_at"]).clamp_min(1)
        state["at"] = (at - per_image(self.attack.lr * 0.01**since, x) * state["momentum"]).clamp_(0, 1)
        state["adv"] = projected(ball, x, state["at"])


@spec
@dataclass(frozen=True)
class ALMA(MinimumNormAttack):
    """The augmented Lagrangian attack (Rony et al. 2021): RMSProp with momentum on distance + penalty(-DLR).

    The penalty is their P2 with a multiplier of each image's own, averaged over the steps; its parameter rises by 1.2
    after every 10 steps in which the constraint has not fallen by 5 %, until a point is misclassified. From there on the
    step `lr` falls to a hundredth. K = `steps` gradients. The ball is L2 or L1; without eps it is unbounded, with one only
    points in it break an image.

    >>> x = torch.rand(3, 1, 2, 2)
    >>> ALMA(steps=20)(nn.Flatten(), x, x.flatten(1).argmax(1)).correct.all(0)
    tensor([False, False, False])
    """

    steps: int = 100
    ball: Ball = L2()
    lr: float = 0.1

    balls = (L2, L1)
    positive = ("lr",)
    run = ALMARun


def _slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """(N,): the derivative by y of P2(y, rho, mu): mu y + mu rho y² + rho² y³ / 6 where y >= 0, else mu y / (1 - rho y)."""
    above, below = y.clamp_min(0), y.clamp_max(0)
    return torch.where(y >= 0, mu + 2 * mu * rho * above + rho**2 * above**2 / 2, mu / (1 - rho * below) ** 2)


# How smooth the count is: a value of size s counts s² / (s² + this).
SIGMA = 0.001


class SigmaZeroRun(MinimumNormRun["SigmaZero"]):
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
        size = (state["square"] / per_image(1 - BETA2**t, x)).sqrt() + LEAST_DIVISOR
        delta = (at - per_image(lr / (1 - BETA1**t), x) * state["mean"] / size).clamp_(0, 1) - x
        change = 0.01 * attack.lr * self._schedule(i)
        state["threshold"] = (state["threshold"] + torch.where(wrong, change, -change)).clamp(0, 1)
        kept = delta.abs() >= per_image(state["threshold"], x)
        state["at"] = torch.where(kept, (x + delta).clamp_(0, 1), x)
        state["adv"] = projected(attack.ball, x, state["at"])

    def _schedule(self, i: Tensor) -> Tensor:
        return 0.1 + 0.45 * (1 + torch.cos(i * (math.pi / self.steps)))


@spec
@dataclass(frozen=True)
class SigmaZero(MinimumNormAttack):
    """sigma-zero (Cinà et al. 2025): Adam on max(-margin, 0) + a smooth count of the values that change, over all values.

    The gradient is scaled to a largest entry of 1; after each step changes below a threshold are set to 0. The threshold
    starts at `threshold` and rises by a hundredth of the step after a misclassified point, else it falls by that much.
    The step falls from `lr` to a tenth of it along a half cosine. K = `steps` gradients. The ball is L0 and counts values
    of the tensor, not pixels; without eps it is unbounded, with one only points in it break an image.

    >>> x = torch.rand(3, 1, 2, 2)
    >>> found = SigmaZero(steps=20)(nn.Flatten(), x, x.flatten(1).argmax(1))
    >>> L0().norm(found.best - x)
    tensor([1., 1., 1.])
    """

    steps: int = 100
    ball: Ball = L0()
    lr: float = 1.0
    threshold: float = 0.3

    balls = (L0,)
    positive = ("lr",)
    least: ClassVar = {"steps": 0, "threshold": 0}
    run = SigmaZeroRun
