"""Random noise: points of the ball drawn blindly, the baseline that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attacked, State, Walk, mark, opened, run
from vizrobust.attacks.attack import draws as drawn
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import TINY, Ball, Linf, per_image, radius
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec


def uniform(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """Uniform in the ball."""
    return ball.sample(like, streams)


def gaussian(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """Gaussian noise brought to the ball's radius: in L-inf its largest pixel is eps."""
    noise = streams.normal(*like.shape[1:]).to(like)
    return noise * per_image(radius(ball) / ball.norm(noise).clamp_min(TINY), like)


def corners(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """The farthest points: in L-inf every pixel goes to +eps or -eps."""
    return radius(ball) * ball.steepest(streams.normal(*like.shape[1:]).to(like))


KINDS = {"uniform": uniform, "gaussian": gaussian, "corners": corners}


@spec
@dataclass(frozen=True)
class Noise:
    """So many random points of the ball; an image is broken if one of them is wrong.

    `kind` is ``uniform`` in the ball, ``gaussian`` brought to the radius, or ``corners`` (±eps on every pixel in
    L-inf). No gradient is asked for, nor is anything learned from one draw to the next.

    >>> Noise(kind="corners")
    Noise(kind="corners")
    """

    draws: int = 100
    ball: Ball = Linf()
    kind: str = "uniform"

    def __post_init__(self) -> None:
        lookup(KINDS, self.kind, "kind of noise")
        if self.draws < 1:
            raise ValueError(f"Noise: draws must be at least 1, got {self.draws}")

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        radius(self.ball)
        # The first draw is the start point.
        return (NoiseWalk(self.ball, self.draws - 1, self.kind),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class NoiseWalk:
    """From one random point to the next."""

    ball: Ball
    steps: int
    kind: str
    name: str = "Noise"
    member: str = "Noise"

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return opened(x, y, self._point(x, streams), streams)

    def step(self, net: nn.Module, state: State) -> None:
        self.judge(net, state)
        state["adv"] = self._point(state["x"], drawn(state, "noise"))

    def judge(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            logits = net(state["adv"])
            mark(state, logits, margin(logits, state["y"]))

    def _point(self, x: Tensor, streams: Streams) -> Tensor:
        return (x + KINDS[self.kind](self.ball, x, streams)).clamp(0, 1)
