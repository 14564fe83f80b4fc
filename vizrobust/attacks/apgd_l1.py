"""L1-APGD: sparse steps whose number of moved values follows the best point, in a ball that shrinks to its size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.aim import Aim
from vizrobust.attacks.balls import Ball, nearest_in_l1, per_image, radius, sparse_step
from vizrobust.attacks.walk import State, mark, opened
from vizrobust.rng import Streams

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
class L1APGDWalk:
    """One run of L1-APGD: within 3 eps for 3/10 of the steps, within 2 eps for as many, then within eps.

    Each radius begins at the last one's point of highest loss. Points that lie outside eps break nothing, and the
    loss entered for them is the clean image's.
    """

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
        lowest = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        state = {
            **opened(x, y, x, streams),
            "towards": self.aim.towards(net, x, y),
            "peak": x,
            "peak_grad": torch.zeros_like(x),
            "peak_loss": lowest,
            "stride": torch.zeros_like(lowest),
            "changed": torch.zeros_like(lowest),
            "share": torch.full_like(lowest, FIRST_MOVED),
        }
        with torch.no_grad():
            state["clean_loss"] = state["top"] = self.aim.loss_of(net(x), state).to(x.dtype)
        if self.random_start:
            noise = streams.normal(*x.shape[1:]).to(x)
            state["adv"] = nearest_in_l1(x, x + noise, self._radius(state["t"], x))
        return state

    def step(self, net: nn.Module, state: State) -> None:
        t, x = state["t"], state["x"]
        adv, grad, loss, logits = self.aim.climb(net, state)
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

    def judge(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        self._mark(state, logits, self.aim.loss_of(logits, state))

    def _mark(self, state: State, logits: Tensor, loss: Tensor) -> None:
        _, third = self._turns()
        inside = (state["t"] >= third) | (self.ball.norm(state["adv"] - state["x"]) <= radius(self.ball))
        mark(state, logits, torch.where(inside, loss.to(state["clean_loss"].dtype), state["clean_loss"]), inside)

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
        """The steps at which the second and the third radius begin."""
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
        return factor.to(like.dtype) * radius(self.ball)
