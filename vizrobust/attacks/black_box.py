"""Attacks without gradients: Square's random search, and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import (
    Attack,
    AttackRun,
    State,
    initial_state,
    is_better,
    is_finite,
    record,
    step_streams,
)
from vizrobust.attacks.losses import LOSSES, margin
from vizrobust.attacks.threat_models import L0, L2, TINY, Ball, Linf, epsilon, per_image
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

    least: ClassVar = {"samples": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup(KINDS, self.kind, "kind of noise")

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


# The share p of the image that a window covers is halved once so many windows were tried; the schedule was tuned for
# 10,000 queries, and AutoAttack's 5,000 keep it as it is (Andriushchenko et al. 2020; Croce & Hein 2020).
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Perturbations:
    """How the attack starts and continues in one kind of ball.

    ``start(x, eps, streams)`` is the first point, ``change(x, kept, eps, p, level, streams)`` the next one to try,
    made from the best point so far; `level` (N,) is how often p was halved for each image.
    """

    start: Callable[[Tensor, float, Streams], Tensor]
    change: Callable[[Tensor, Tensor, float, float, Tensor, Streams], Tensor]


def window_level(tried: Tensor) -> Tensor:
    """How often p is halved for an image that has tried so many windows, the coming one not counted: (N,) -> (N,).

    >>> window_level(torch.tensor([0, 10, 11, 51, 9000])).tolist()
    [0, 0, 1, 2, 9]
    """
    return (tried[:, None] > torch.tensor(HALVED_AFTER, device=tried.device)).sum(1)


@lru_cache(maxsize=64)
def sides(height: int, width: int, p: float, smallest: int) -> tuple[int, ...]:
    """The side of the square window at each level; above a smallest side of 1 it is odd."""
    found = []
    for level in range(len(HALVED_AFTER) + 1):
        side = max(round(math.sqrt(p * 0.5**level * height * width)), smallest)
        if smallest > 1 and side % 2 == 0:
            side += 1
        found.append(min(side, height, width))
    return tuple(found)


def _stripes(x: Tensor, eps: float, streams: Streams) -> Tensor:
    """Vertical stripes one pixel wide, each up or down by eps in each channel."""
    return (x + eps * _signs(streams.uniform(x.shape[1], 1, x.shape[3]), x)).clamp(0, 1)


def _square(x: Tensor, kept: Tensor, eps: float, p: float, level: Tensor, streams: Streams) -> Tensor:
    """One window per image goes to +eps or -eps, each channel as a whole.

    The paper adds 2 eps up or down and projects: from anywhere in the ball that ends on its edge.
    """
    side = torch.tensor(sides(x.shape[2], x.shape[3], p, 1))[level.cpu()]
    chance = streams.uniform(2 + x.shape[1])
    (window,) = _windows(_corners(chance[:, :2], side, x), side, x)
    sign = _signs(chance[:, 2:, None, None], x)
    return torch.where(window, (x + eps * sign).clamp(0, 1), kept)


def _tiles(x: Tensor, eps: float, streams: Streams) -> Tensor:
    """The image tiled by `pyramids`, five along its shorter side, each turned and signed by chance."""
    _, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    # The tile of each row and column, and the place in it; the margin that no tile covers stays as it is.
    row, column = torch.arange(height) - height % side // 2, torch.arange(width) - width % side // 2
    covered = ((row >= 0) & (row < down * side))[:, None] & ((column >= 0) & (column < across * side))
    tile = (row // side).clamp(0, down - 1)[:, None] * across + (column // side).clamp(0, across - 1)
    pattern = pyramids(side)[:, (row % side)[:, None], column % side] * covered
    turned = streams.uniform(1, down * across)[:, :, tile] < 0.5
    sign = _signs(streams.uniform(channels, down * across)[:, :, tile], x)
    return _at_radius(x, sign * torch.where(turned, pattern[1], pattern[0]).to(x), eps)


def _transfer(x: Tensor, kept: Tensor, eps: float, p: float, level: Tensor, streams: Streams) -> Tensor:
    """What a second window holds of the change, and what the ball has left, goes to a pyramid in the first window.

    Algorithm 3 of Andriushchenko et al. 2020, after which the change is brought back to length eps.
    """
    all_sides = sides(x.shape[2], x.shape[3], p, 3)
    level = level.cpu()
    side = torch.tensor(all_sides)[level]
    chance = streams.uniform(5 + x.shape[1])
    corners = _corners(chance[:, :4], side, x)
    first, second = (window.to(x) for window in _windows(corners, side, x))
    sign = _signs(chance[:, 5:, None, None], x)
    pattern = _placed(_table(all_sides, x.dtype, x.device), level * 2 + (chance[:, 4] < 0.5), corners[:, :2], x)
    delta = kept - x
    old, rest = delta * first, delta * (1 - first) * (1 - second)
    new = (sign * pattern + old / _length(old)) * first
    unused = (eps**2 - _length(delta, (1, 2, 3)).square()).clamp_min(0) / x.shape[1]
    mass = (unused + _length(delta - rest).square()).sqrt()
    return _at_radius(x, new * (mass / _length(new)) + rest, eps)


def _at_radius(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    return (x + delta * (eps / _length(delta, (1, 2, 3)))).clamp(0, 1)


PERTURBATIONS: dict[type, Perturbations] = {Linf: Perturbations(_stripes, _square), L2: Perturbations(_tiles, _transfer)}


@lru_cache(maxsize=64)
def pyramids(side: int) -> Tensor:
    """(2, side, side) float64, length 1: a hill in the upper half and a pit in the lower, and the same turned.

    Each half is a sum of concentric squares, the k-th of weight 1/k² (equation 2 of the paper).
    """
    up, down = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    both = torch.cat((up, -down))
    both = both / both.norm()
    return torch.stack((both, both.T))


def _pyramid(height: int, width: int) -> Tensor:
    row, column = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(row.abs()[:, None], column.abs()[None, :])
    weights = (torch.arange(max(height // 2, width // 2) + 1, dtype=torch.float64) + 1) ** -2
    # A pixel on ring d lies in the squares d, d + 1, ... up to the largest.
    return weights.flip(0).cumsum(0).flip(0)[ring]


@lru_cache(maxsize=8)
def _table(all_sides: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 * levels, S, S): the pyramids of every level in the corner of a square that holds the largest."""
    largest = max(all_sides)
    table = torch.zeros(len(all_sides), 2, largest, largest, dtype=torch.float64)
    for level, side in enumerate(all_sides):
        table[level, :, :side, :side] = pyramids(side)
    return table.flatten(0, 1).to(device, dtype)


def _placed(table: Tensor, which: Tensor, corner: Tensor, x: Tensor) -> Tensor:
    """(N, 1, H, W): each image's entry of the table with its upper left corner at `corner`; garbage outside it."""
    size = table.shape[1]
    row = (torch.arange(x.shape[2]) - corner[:, :1]).clamp(0, size - 1)
    column = (torch.arange(x.shape[3]) - corner[:, 1:]).clamp(0, size - 1)
    start = (which[:, None] * size + row) * size
    return table.take((start[:, :, None] + column[:, None, :]).to(x.device))[:, None]


def _corners(chance: Tensor, side: Tensor, x: Tensor) -> Tensor:
    """(N, 2k) in [0, 1) -> (N, 2k): rows and columns of upper left corners, such that the windows lie in the image."""
    room = torch.tensor(x.shape[2:]) - side[:, None] + 1
    # In float64, where a number below 1 times a small whole number stays below it.
    return (chance.double() * room.repeat(1, chance.shape[1] // 2)).long()


def _windows(corners: Tensor, side: Tensor, x: Tensor) -> list[Tensor]:
    """k masks (N, 1, H, W): the pixels of the windows with these (N, 2k) corners."""
    height, width = x.shape[2:]
    place = torch.arange(max(height, width)) - corners[:, :, None]
    inside = ((place >= 0) & (place < side[:, None, None])).to(x.device)
    return [
        inside[:, k, None, :height, None] & inside[:, k + 1, None, None, :width] for k in range(0, corners.shape[1], 2)
    ]  # fmt: skip


def _signs(chance: Tensor, x: Tensor) -> Tensor:
    return torch.where(chance < 0.5, -1.0, 1.0).to(x)


def _length(delta: Tensor, over: tuple[int, ...] = (2, 3)) -> Tensor:
    return torch.linalg.vector_norm(delta, dim=over, keepdim=True).clamp_min(TINY)


@spec
@dataclass(frozen=True)
class Square(Attack):
    """The Square attack (Andriushchenko et al. 2020): `queries` square windows tried, in the L-inf or the L2 ball.

    A window that raises the loss, or makes the image wrong, is kept. It covers the share `p_init` of the image at
    first and less and less later. With its start point it takes queries + 1 forward passes and no gradient, so it breaks
    networks that only hide their gradients. Windows and signs are each image's own.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> Square(eps=0.3, queries=20)(net, torch.rand(5, 1, 8, 8), torch.arange(5) % 3).correct.shape
    torch.Size([21, 5])
    """

    queries: int = 5000
    ball: Ball = Linf()
    p_init: float = 0.8
    restarts: int = 1
    loss: str = "margin"

    balls = tuple(PERTURBATIONS)
    least: ClassVar = {"queries": 0, "restarts": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup(LOSSES, self.loss, "loss")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"Square: p_init must be above 0 and at most 1, got {self.p_init:g}")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        epsilon(self.ball)
        one = SquareRun(self.ball, self.queries, self.p_init, self.loss)
        return tuple(replace(one, restart=number) for number in range(self.restarts))


@dataclass(frozen=True)
class SquareRun:
    """`steps` windows, each put into the best point so far, which is `kept` in the state with its verdict."""

    ball: Ball
    steps: int
    p: float
    loss: str
    restart: int = 0

    @property
    def name(self) -> str:
        return f"Square {self.restart + 1}" if self.restart else "Square"

    @property
    def component(self) -> str:
        return "Square"

    @property
    def _perturbations(self) -> Perturbations:
        return PERTURBATIONS[type(self.ball)]

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        if self.restart:
            streams = streams.child(f"restart {self.restart}")
        state = initial_state(x, y, self._perturbations.start(x, epsilon(self.ball), streams), streams)
        # Beside `best`, `top` and `wrong`, which are not kept when nobody asks for verdicts.
        return {**state, "kept": state["best"], "kept_loss": state["best_loss"], "kept_wrong": state["misclassified"]}

    def step(self, net: nn.Module, state: State) -> None:
        self.evaluate(net, state)
        # The start point was judged too, and is no window.
        level = window_level(state["step"] - 1)
        streams = step_streams(state, "square")
        state["adv"] = self._perturbations.change(state["x"], state["kept"], epsilon(self.ball), self.p, level, streams)

    def evaluate(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            logits = net(state["adv"])
            loss = LOSSES[self.loss](logits, state["y"]).to(state["kept_loss"].dtype)
            wrong = is_finite(logits) & (logits.argmax(1) != state["y"])
            loss = torch.where(is_finite(logits) & ~loss.isnan(), loss, -torch.inf)
            better = is_better(wrong, loss, state["kept_wrong"], state["kept_loss"])
            state["kept"] = torch.where(per_image(better, state["adv"]), state["adv"], state["kept"])
            state["kept_loss"] = torch.where(better, loss, state["kept_loss"])
            state["kept_wrong"] = state["kept_wrong"] | wrong
            record(state, logits, loss)
