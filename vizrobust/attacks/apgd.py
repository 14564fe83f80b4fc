"""APGD: projected gradient descent that adapts its step size, for Linf, L2 and L1 (Croce & Hein 2020, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, State, initial_state, input_gradient, is_finite, num_classes, record
from vizrobust.attacks.boundary_attacks import competing_classes
from vizrobust.attacks.losses import LOSSES, TARGETED_LOSSES, fallback
from vizrobust.attacks.threat_models import L1, Ball, Linf, epsilon, nearest_in_l1, per_image, sparse_step
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec


@dataclass(frozen=True)
class Variant:
    """A loss, a target and a restart: the wrong class of this `rank` by the clean logits, 1 the likeliest, 0 no target."""

    loss: str
    rank: int = 0
    restart: int = 0

    @property
    def component(self) -> str:
        if not self.rank:
            return f"APGD-{self.loss.upper()}"
        return "APGD-T" if self.loss == "dlr" else f"APGD-{self.loss.upper()}-T"

    @property
    def name(self) -> str:
        rank = f" {self.rank}" if self.rank else ""
        return f"{self.component}{rank}" + (f" restart {self.restart + 1}" if self.restart else "")

    def streams(self, streams: Streams) -> Streams:
        """The streams of this run: each run has its own start point."""
        streams = streams.child(f"target {self.rank}") if self.rank > 1 else streams
        return streams.child(f"restart {self.restart}") if self.restart else streams

    def target(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(N,): the class that each image is moved to, or its own class, away from which it is moved."""
        if not self.rank:
            return y
        with torch.no_grad():
            return competing_classes(net(x), y)[:, self.rank - 1]

    def loss_of(self, logits: Tensor, state: State) -> Tensor:
        """(N,), larger = better for the attacker."""
        if self.rank:
            return lookup(TARGETED_LOSSES, self.loss, "loss")(logits, state["y"], state["target"])
        return lookup(LOSSES, self.loss, "loss")(logits, state["y"])

    def ascend(self, net: nn.Module, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The current iterate, the gradient of the loss there, the loss (N,) and the logits, all detached."""
        adv = state["adv"].detach().requires_grad_()
        logits = net(adv)
        loss = self.loss_of(logits, state)
        grad = input_gradient(loss, adv, state)
        # A point whose outputs are not finite is never the best one.
        loss = torch.where(is_finite(logits) & ~loss.isnan(), loss, -torch.inf)
        return adv.detach(), grad, loss.detach().to(adv.dtype), logits.detach()


# Croce & Hein (2021), section 3: the radii in eps, and the share of the steps that each of the first two is given.
RADII, SHARE = (3.0, 2.0, 1.0), 0.3
# How often the sparsity is looked at, in steps of a radius; the values moved are so many times fewer than the best
# point has changed; a step that did not make that sparser is shortened by this, down to a tenth of the radius.
CHECKED = 0.04
FEWER = SHORTER = 1.5
SHORTEST = 0.1
# The best point has become sparser if it changes less than this share of what it did.
SPARSER = 0.95
# The share of values moved from a start that is the image itself.
FIRST_MOVED = 0.2


@dataclass(frozen=True)
class _AdaptiveRun:
    """What both runs of APGD are made of."""

    variant: Variant
    ball: Ball
    steps: int
    random_start: bool = True

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def component(self) -> str:
        return self.variant.component


@dataclass(frozen=True)
class L1APGDRun(_AdaptiveRun):
    """One run of L1-APGD: within 3 eps for 3/10 of the steps, within 2 eps for as many, then within eps.

    Each radius starts at the last one's point of highest loss. Points outside eps break nothing, and the loss recorded
    for them is the clean image's.
    """

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        streams = self.variant.streams(streams)
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        state = {
            **initial_state(x, y, x, streams),
            "target": self.variant.target(net, x, y),
            "peak": x,
            "peak_grad": torch.zeros_like(x),
            "peak_loss": lowest,
            "stride": torch.zeros_like(lowest),
            "changed": torch.zeros_like(lowest),
            "share": torch.full_like(lowest, FIRST_MOVED),
        }
        with torch.no_grad():
            state["clean_loss"] = state["best_loss"] = self.variant.loss_of(net(x), state).to(x.dtype)
        if self.random_start:
            noise = streams.normal(*x.shape[1:]).to(x)
            state["adv"] = nearest_in_l1(x, x + noise, self._radius(state["step"], x))
        return state

    def step(self, net: nn.Module, state: State) -> None:
        t, x = state["step"], state["x"]
        adv, grad, loss, logits = self.variant.ascend(net, state)
        self._mark(state, logits, loss)
        opens = self._opens(t)
        better = opens | (loss > state["peak_loss"])
        state["peak"] = torch.where(per_image(better, adv), adv, state["peak"])
        state["peak_grad"] = torch.where(per_image(better, adv), grad, state["peak_grad"])
        state["peak_loss"] = torch.where(better, loss, state["peak_loss"])
        back = self._adapt(state, t, opens)
        here = torch.where(per_image(back, adv), state["peak"], adv)
        grad = torch.where(per_image(back, adv), state["peak_grad"], grad)
        moved = here + per_image(state["stride"], x) * sparse_step(grad, state["share"])
        moved = torch.where(per_image(self._opens(t + 1), x), state["peak"], moved)
        state["adv"] = nearest_in_l1(x, moved, self._radius(t + 1, x))

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        self._mark(state, logits, self.variant.loss_of(logits, state))

    def _mark(self, state: State, logits: Tensor, loss: Tensor) -> None:
        _, third = self._turns()
        inside = (state["step"] >= third) | (self.ball.norm(state["adv"] - state["x"]) <= epsilon(self.ball))
        record(state, logits, torch.where(inside, loss.to(state["clean_loss"].dtype), state["clean_loss"]), inside)

    def _adapt(self, state: State, t: Tensor, opens: Tensor) -> Tensor:
        """Choose each image's step and sparsity; (N,) bool: the images that go on from their point of highest loss."""
        reach = self._radius(t, state["stride"])
        values = state["x"][0].numel()
        changed = (state["peak"] != state["x"]).flatten(1).sum(1).to(reach.dtype)
        due = (t > self._opening(t)) & ((t - self._opening(t)) % self._period(t) == 0)
        sparser = due & (changed < SPARSER * state["changed"])
        shorter = (state["stride"] / SHORTER).clamp_min(SHORTEST * reach)
        stride = torch.where(due, shorter, state["stride"])
        state["stride"] = torch.where(opens | sparser, reach, stride)
        # Where nothing is changed, at the start from the image itself, there is no sparsity to follow.
        chosen = (opens | due) & (changed > 0)
        state["share"] = torch.where(chosen, changed / values / FEWER, state["share"])
        state["changed"] = torch.where(chosen, changed, torch.where(opens, values, state["changed"]))
        return sparser

    def _turns(self) -> tuple[int, int]:
        """The steps at which the second and the third radius start."""
        each = int(SHARE * self.steps)
        return each, 2 * each

    def _opens(self, t: Tensor) -> Tensor:
        return t == self._opening(t)

    def _opening(self, t: Tensor) -> Tensor:
        """The step at which the radius of step t began, (N,)."""
        second, third = self._turns()
        return (t >= second) * second + (t >= third) * (third - second)

    def _period(self, t: Tensor) -> Tensor:
        """In how many steps the sparsity is looked at, (N,)."""
        _, third = self._turns()
        early, late = (max(int(CHECKED * steps), 1) for steps in (third / 2, self.steps - third))
        return torch.where(t >= third, late, early)

    def _radius(self, t: Tensor, like: Tensor) -> Tensor:
        """The radius at step t, (N,)."""
        second, third = self._turns()
        first, middle, last = RADII
        factor = torch.where(t >= third, last, torch.where(t >= second, middle, first))
        return factor.to(like.dtype) * epsilon(self.ball)


# Croce & Hein (2020), section 3: the share of the steps up to the first checkpoint, by how much the distances between
# checkpoints shrink, and their least; the share of rising steps below which a step size is too long; the momentum.
FIRST, SHRINK, LEAST = 0.22, 0.03, 0.06
RISING = 0.75
MOMENTUM = 0.75


@spec
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020): steps of 2 eps with momentum, halved at checkpoints where the loss does not rise.

    An image whose step is halved goes back to its point of highest loss. ``loss="ce"`` is APGD-CE, ``"dlr"`` is
    APGD-DLR; `targeted` with ``"dlr"`` is APGD-T: one run towards each of the `targets` likeliest wrong classes, at most
    classes - 1, in the order of the clean image's logits. Each has `restarts`. For the L1 ball it is L1-APGD (Croce &
    Hein 2021), whose iterates start outside the ball and count once they are in it. K = `steps` gradients per run.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    >>> attack = APGD(eps=0.1, steps=3, loss="dlr", targeted=True, targets=2)
    >>> [run.name for run in attack.runs(net, torch.rand(1, 1, 4, 4))]
    ['APGD-T 1', 'APGD-T 2']
    >>> attack(net, torch.rand(5, 1, 4, 4), torch.arange(5) % 4).correct.shape
    torch.Size([4, 5])
    """

    steps: int = 100
    ball: Ball = Linf()
    loss: str = "ce"
    restarts: int = 1
    targeted: bool = False
    targets: int = 9
    random_start: bool = True

    least: ClassVar = {"steps": 0, "restarts": 1, "targets": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup(LOSSES, self.loss, "loss")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"APGD: {self.restarts} restarts without a random start would be equal; leave out random_start=False"
            )

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        epsilon(self.ball)
        kind = L1APGDRun if isinstance(self.ball, L1) else APGDRun
        ranks = range(1, max(2, min(self.targets + 1, num_classes(net, x)))) if self.targeted else (0,)
        variants = (Variant(self.loss, rank, restart) for rank in ranks for restart in range(self.restarts))
        return tuple(kind(variant, self.ball, self.steps, self.random_start) for variant in variants)

    def notes(self, classes: int) -> tuple[str, ...]:
        said = fallback(self.loss, classes, self.targeted)
        return () if said is None else (said,)


@dataclass(frozen=True)
class APGDRun(_AdaptiveRun):
    """One run of APGD in a ball whose steps have momentum: Linf or L2."""

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        streams = self.variant.streams(streams)
        start = (x + self.ball.sample(x, streams)).clamp_(0, 1) if self.random_start else x
        first = torch.full_like(streams.keys, max(int(FIRST * self.steps), 1), device=x.device)
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        return {
            **initial_state(x, y, start, streams),
            "target": self.variant.target(net, x, y),
            "before": start,
            "peak": start,
            "peak_grad": torch.zeros_like(x),
            "peak_loss": lowest,
            "stride": torch.full_like(lowest, 2 * epsilon(self.ball)),
            "previous_loss": lowest,
            "rises": torch.zeros_like(first),
            "window": first,
            "checkpoint": first,
            "checked_loss": lowest,
            # As if halved before: whether the best loss is a new one is asked from the second checkpoint on.
            "halved": torch.ones_like(first, dtype=torch.bool),
        }

    def step(self, net: nn.Module, state: State) -> None:
        t, x = state["step"], state["x"]
        adv, grad, loss, logits = self.variant.ascend(net, state)
        record(state, logits, loss)
        better = loss > state["peak_loss"]
        state["peak"] = torch.where(per_image(better, adv), adv, state["peak"])
        state["peak_grad"] = torch.where(per_image(better, adv), grad, state["peak_grad"])
        state["peak_loss"] = torch.where(better, loss, state["peak_loss"])
        halve = self._halve(state, t, loss)
        stride = state["stride"] = torch.where(halve, state["stride"] / 2, state["stride"])
        here = torch.where(per_image(halve, adv), state["peak"], adv)
        grad = torch.where(per_image(halve, adv), state["peak_grad"], grad)
        aimed = self.ball.project_image(x, here + per_image(stride, x) * self.ball.steepest_direction(grad, here))
        share = per_image(torch.where(t == 0, 1.0, MOMENTUM).to(x.dtype), x)
        moved = (aimed - here).mul_(share).add_(here).add_((here - state["before"]).mul_(1 - share))
        state["before"], state["adv"] = here, self.ball.project_image(x, moved)

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        record(state, logits, self.variant.loss_of(logits, state))

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
