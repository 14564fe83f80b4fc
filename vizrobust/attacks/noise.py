"""Random noise: random points of the ball, the baseline that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, State, check_least, initial_state, record, step_streams
from vizrobust.attacks.losses import margin
from vizrobust.attacks.threat_models import L0, TINY, Ball, Linf, epsilon, per_image
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec


def uniform(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """Uniform in the ball."""
    return ball.sample(like, streams)


def gaussian(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """Gaussian noise scaled to the ball's radius: in L-inf its largest pixel is eps; in L0 its largest values are kept."""
    noise = streams.normal(*like.shape[1:]).to(like)
    if isinstance(ball, L0):
        return ball.project(noise)
    return noise * per_image(epsilon(ball) / ball.norm(noise).clamp_min(TINY), like)


def vertices(ball: Ball, like: Tensor, streams: Streams) -> Tensor:
    """The farthest points: in L-inf every pixel goes to +eps or -eps, in L0 the values that change go to 0 or 1."""
    if isinstance(ball, L0):
        return gaussian(ball, like, streams).sign()
    return epsilon(ball) * ball.steepest_direction(streams.normal(*like.shape[1:]).to(like))


KINDS = {"uniform": uniform, "gaussian": gaussian, "vertices": vertices}


@spec
@dataclass(frozen=True)
class Noise(Attack):
    """`samples` random points of the ball; an image is broken if one of them is misclassified.

    `kind` is ``uniform`` in the ball, ``gaussian`` scaled to the radius, or ``vertices`` (±eps on every pixel in L-inf).
    It uses no gradient, and each sample is independent of the others.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> Noise(eps=0.1, samples=4, kind="vertices")(net, torch.rand(5, 1, 4, 4), torch.arange(5) % 3).correct.shape
    torch.Size([4, 5])
    """

    samples: int = 100
    ball: Ball = Linf()
    kind: str = "uniform"

    def __post_init__(self) -> None:
        lookup(KINDS, self.kind, "kind of noise")
        check_least(self, samples=1)

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        epsilon(self.ball)
        # The first draw is the start point.
        return (NoiseRun(self.ball, self.samples - 1, self.kind),)


@dataclass(frozen=True)
class NoiseRun:
    """One random point after the other."""

    ball: Ball
    steps: int
    kind: str
    name: str = "Noise"
    component: str = "Noise"

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return initial_state(x, y, self._point(x, streams), streams)

    def step(self, net: nn.Module, state: State) -> None:
        self.evaluate(net, state)
        state["adv"] = self._point(state["x"], step_streams(state, "noise"))

    def evaluate(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            logits = net(state["adv"])
            record(state, logits, margin(logits, state["y"]))

    def _point(self, x: Tensor, streams: Streams) -> Tensor:
        return (x + KINDS[self.kind](self.ball, x, streams)).clamp(0, 1)
