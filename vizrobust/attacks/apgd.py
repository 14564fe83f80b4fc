"""APGD, projected gradient descent that finds its own step sizes: with cross entropy, with DLR, and towards classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.aim import Aim
from vizrobust.attacks.apgd_l1 import L1APGDWalk
from vizrobust.attacks.balls import L1, Ball, Linf, per_image, radius
from vizrobust.attacks.losses import LOSSES
from vizrobust.attacks.walk import Attacked, State, Walk, class_count, mark, opened, run
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec

# Croce & Hein (2020), section 3: the share of the steps up to the first checkpoint, by how much the distances between
# checkpoints shrink, and their least; the share of rising steps below which a step size is too long; the momentum.
FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06
RISING = 0.75
MOMENTUM = 0.75


@spec
@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce & Hein 2020): steps of 2 eps with momentum, halved at checkpoints where the loss does not rise.

    An image whose step is halved goes back to its point of highest loss. ``loss="ce"`` is APGD-CE, ``"dlr"`` is
    APGD-DLR; `targeted` with ``"dlr"`` is APGD-T: one run towards each of the `targets` likeliest wrong classes, at most
    classes - 1, in the order of the clean image's logits. `restarts` of each. For the L1 ball it is L1-APGD (Croce &
    Hein 2021), whose iterates begin outside the ball and count once they are in it. K = `steps` gradients a run.

    >>> from vizrobust.models import architecture
    >>> net, x, y = architecture("small_cnn", (1, 28, 28), 10)(), torch.rand(5, 1, 28, 28), torch.arange(5)
    >>> attack = APGD(steps=3, ball=Linf(eps=0.1), loss="dlr", targeted=True, targets=2)
    >>> [walk.name for walk in attack.stages(net, x)]
    ['APGD-T 1', 'APGD-T 2']
    >>> attack(net, x, y, Streams(0, range(5))).correct.shape
    torch.Size([4, 5])
    """

    steps: int = 100
    ball: Ball = Linf()
    loss: str = "ce"
    restarts: int = 1
    targeted: bool = False
    targets: int = 9
    random_start: bool = True

    def __post_init__(self) -> None:
        lookup(LOSSES, self.loss, "loss")
        for name, least in (("steps", 0), ("restarts", 1), ("targets", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"APGD: {name} must be at least {least}, got {value}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"APGD: {self.restarts} restarts without a random start would all be the same")

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        radius(self.ball)
        kind = L1APGDWalk if isinstance(self.ball, L1) else APGDWalk
        ranks = range(1, max(2, min(self.targets + 1, class_count(net, x)))) if self.targeted else (0,)
        aims = (Aim(self.loss, rank, restart) for rank in ranks for restart in range(self.restarts))
        return tuple(kind(aim, self.ball, self.steps, self.random_start) for aim in aims)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class APGDWalk:
    """One run of APGD in a ball whose steps have momentum: Linf or L2."""

    aim: Aim
    ball: Ball
    steps: int
    random_start: bool = True

    @property
    def name(self) -> str:
        return self.aim.name

    @property
    def member(self) -> str:
        return self.aim.member

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        streams = self.aim.streams(streams)
        start = (x + self.ball.sample(x, streams)).clamp_(0, 1) if self.random_start else x
        first = torch.full_like(streams.keys, max(int(FIRST * self.steps), 1), device=x.device)
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return {
            **opened(x, y, start, streams),
            "towards": self.aim.towards(net, x, y),
            "before": start,
            "peak": start,
            "peak_grad": torch.zeros_like(x),
            "peak_loss": lowest,
            "stride": torch.full_like(lowest, 2 * radius(self.ball)),
            "previous_loss": lowest,
            "rises": torch.zeros_like(first),
            "window": first,
            "checkpoint": first,
            "checked_loss": lowest,
            # As if halved before: whether the best loss is a new one is asked from the second checkpoint on.
            "halved": torch.ones_like(first, dtype=torch.bool),
        }

    def step(self, net: nn.Module, state: State) -> None:
        t, x = state["t"], state["x"]
        adv, grad, loss, logits = self.aim.climb(net, state)
        mark(state, logits, loss)
        better = loss > state["peak_loss"]
        state["peak"] = torch.where(per_image(better, adv), adv, state["peak"])
        state["peak_grad"] = torch.where(per_image(better, adv), grad, state["peak_grad"])
        state["peak_loss"] = torch.where(better, loss, state["peak_loss"])
        halve = self._halve(state, t, loss)
        stride = state["stride"] = torch.where(halve, state["stride"] / 2, state["stride"])
        here = torch.where(per_image(halve, adv), state["peak"], adv)
        grad = torch.where(per_image(halve, adv), state["peak_grad"], grad)
        aimed = self.ball.project_image(x, here + per_image(stride, x) * self.ball.steepest(grad, here))
        share = per_image(torch.where(t == 0, 1.0, MOMENTUM).to(x.dtype), x)
        moved = (aimed - here).mul_(share).add_(here).add_((here - state["before"]).mul_(1 - share))
        state["before"], state["adv"] = here, self.ball.project_image(x, moved)

    def judge(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        mark(state, logits, self.aim.loss_of(logits, state))

    def _halve(self, state: State, t: Tensor, loss: Tensor) -> Tensor:
        """(N,) bool: the images at a checkpoint whose loss rose too seldom since the last, or has no new best."""
        # From the start point on. The authors' code compares the first step with a loss of 0 instead of the start's, an
        # index that wraps around, so that with cross entropy it always counts as a rise.
        state["rises"] = state["rises"] + ((loss > state["previous_loss"]) & (t > 0))
        state["previous_loss"] = loss
        due = t == state["checkpoint"]
        seldom = state["rises"] <= RISING * state["window"]
        halve = due & (seldom | (~state["halved"] & (state["peak_loss"] <= state["checked_loss"])))
        state["halved"] = torch.where(due, halve, state["halved"])
        state["checked_loss"] = torch.where(due, state["peak_loss"], state["checked_loss"])
        state["rises"] = state["rises"].masked_fill(due, 0)
        shrink, least = max(int(SHRINK * self.steps), 1), max(int(LEAST * self.steps), 1)
        state["window"] = torch.where(due, (state["window"] - shrink).clamp_min(least), state["window"])
        state["checkpoint"] = torch.where(due, t + state["window"], state["checkpoint"])
        return halve
