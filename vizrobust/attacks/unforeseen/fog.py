"""Fog: clouds of a fractal landscape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import TINY
from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, strength
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Fog:
    """White fog, `eps` times as bright as the image may be: x' = (x + eps fog) / (1 + eps) (Kang et al. 2019).

    The fog is a landscape in [0, 1], made by midpoint displacement (diamond-square), each image's by itself. The
    variable (N, size² - 1) holds its displacements, in [0, 1]; steps are signs. Published eps are in 0 … 255: divide
    by 255. They divide by the channel's maximum plus eps instead of 1 + eps, which would brighten a dim image at
    eps 0 too; where a channel reaches 1 it is the same. Nothing needs clipping.
    """

    eps: float | None = None
    steps: int = 50
    alpha: float | None = None
    targeted: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        check(self)

    @property
    def reach(self) -> float:
        return 0.5

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return (Climb(self),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        return {"z": streams.child("displacements").uniform(4 ** scales(x) - 1).to(x)}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        eps = strength(self)
        height, width = x.shape[-2:]
        fog = landscape(2 * v["z"] - 1, scales(x))
        top, left = (fog.shape[1] - height) // 2, (fog.shape[2] - width) // 2
        low, high = fog.amin((1, 2), keepdim=True), fog.amax((1, 2), keepdim=True)
        fog = (fog - low) / (high - low + TINY)
        return (x + eps * fog[:, None, top : top + height, left : left + width]) / (1 + eps)

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * grad.sign()

    def project(self, v: Variables) -> Tensor:
        return v["z"].clamp(0, 1)


def scales(x: Tensor) -> int:
    """The landscape is 2^scales on a side: the power of two above the longer side, 256 for 224 pixels, 64 for 32."""
    return max(x.shape[-2:]).bit_length()


def landscape(displacements: Tensor, count: int) -> Tensor:
    """(N, 4^count - 1) in [-1, 1] -> (N, 2^count, 2^count), periodic in both directions (Fournier et al. 1982).

    At each scale the middles of the squares, then those of their upper and left edges, are the mean of their four
    neighbours plus a displacement; displacements halve from scale to scale.
    """
    n = len(displacements)
    ground = displacements.new_zeros(n, 1, 1)
    used = 0
    for scale in range(count):
        size = 2**scale
        here = displacements[:, used : used + 3 * size**2].reshape(n, 3, size, size) / size
        used += 3 * size**2
        below = ground.roll(-1, 1)
        middle = (ground + below + ground.roll(-1, 2) + below.roll(-1, 2)) / 4 + here[:, 0]
        # The neighbours of an edge are the middles on its two sides, one place apart (the first version rolled by two).
        upper = (ground + ground.roll(-1, 2) + middle + middle.roll(1, 1)) / 4 + here[:, 1]
        left = (ground + below + middle + middle.roll(1, 2)) / 4 + here[:, 2]
        rows = torch.stack((torch.stack((ground, upper), dim=3), torch.stack((left, middle), dim=3)), dim=2)
        ground = rows.reshape(n, 2 * size, 2 * size)
    return ground
