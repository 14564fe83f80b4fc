"""Random bright circles, triangles and squares."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.rng import Streams

RIM = 2  # pixels around a shape
LEAST_SATURATION, LEAST_VALUE = 0.7, 0.8


def scattered(streams: Streams, count: int, size: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(N, H, W) int64: which of the shapes 1 … count is on top, 0 where none is; (N, H, W) bool: where a rim is.

    `size` is a square's side and a circle's diameter in pixels; a triangle's height is 1.5 times that. Shapes may
    reach over the border.
    """
    down, across = torch.arange(height)[:, None], torch.arange(width)[None, :]
    top = torch.zeros(len(streams), height, width, dtype=torch.int64)
    rim = torch.zeros(len(streams), height, width, dtype=torch.bool)
    for number in range(1, count + 1):
        kind, row, column, turn = (value[:, None, None] for value in streams.uniform(4).unbind(1))
        turn = 2 * math.pi * turn
        y, x = down - height * row, across - width * column
        u, v = x * torch.cos(turn) + y * torch.sin(turn), y * torch.cos(turn) - x * torch.sin(turn)
        inside = torch.where(3 * kind < 1, u**2 + v**2 < (size / 2) ** 2, _polygon(u, v, size, 3 * kind < 2))
        top = torch.where(inside, number, top)
        grown = F.max_pool2d(inside[:, None].float(), 2 * RIM + 1, stride=1, padding=RIM)[:, 0] > 0
        rim |= grown & ~inside
    return top, rim


def bright(streams: Streams, count: int, channels: int) -> Tensor:
    """(N, channels, count): saturated, bright colours (greys where there are not three channels), in [0, 1]."""
    hue, saturation, value = streams.uniform(3, count).unbind(1)
    saturation = LEAST_SATURATION + (1 - LEAST_SATURATION) * saturation
    value = LEAST_VALUE + (1 - LEAST_VALUE) * value
    if channels != 3:
        return value[:, None].expand(-1, channels, -1)
    # From HSV (Smith 1978): a channel is the further from `value`, the further its own hue is.
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None] + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _polygon(u: Tensor, v: Tensor, size: float, triangle: Tensor) -> Tensor:
    square = torch.maximum(u.abs(), v.abs()) <= size / 2
    # An equilateral triangle's sides lie a third of its height from its middle.
    sides = [u * math.cos(angle) + v * math.sin(angle) for angle in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return torch.where(triangle, torch.stack(sides).amax(0) <= size / 2, square)
