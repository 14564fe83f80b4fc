"""Kaleidoscope and Pixel: unforeseen attacks that put shapes or tiles on the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.threat_models import L2
from vizrobust.attacks.unforeseen.unforeseen_attack import Params, UnforeseenAttack, between, clip, opacity
from vizrobust.rng import Streams
from vizrobust.spec import spec

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
    # From HSV (Smith 1978): the farther a channel's own hue is, the farther the channel is from `value`.
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None] + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _polygon(u: Tensor, v: Tensor, size: float, triangle: Tensor) -> Tensor:
    square = torch.maximum(u.abs(), v.abs()) <= size / 2
    # An equilateral triangle's sides lie a third of its height from its middle.
    sides = [u * math.cos(angle) + v * math.sin(angle) for angle in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return torch.where(triangle, torch.stack(sides).amax(0) <= size / 2, square)


SMALLEST_EPS = 0.05


@spec
@dataclass(frozen=True)
class Kaleidoscope(UnforeseenAttack):
    """Puts bright circles, triangles and squares at random places, in colours within `eps` of random ones.

    ``z`` (N, shapes * C + H * W) holds the shifts of their colours, abs(z) <= eps, then the brightness of their rims,
    0 <= z <= eps; steps are sign steps. There are 5 shapes of 4 pixels at side 32 and 40 of 15 at 224; a share of the
    image shines through (0.2 and 0.1). Where shapes overlap the last is on top (the reference adds their colours). Below
    eps 0.05, the smallest published, shapes and rims fade with eps (Kaufmann et al. 2023).

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Kaleidoscope(eps=0.1, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        channels, height, width = x.shape[1:]
        count = round(between(x, 5, 40))
        top, rim = scattered(streams.child("shapes"), count, between(x, 4, 15), height, width)
        colours = bright(streams.child("colours"), count, channels).to(x)
        shifts = 2 * streams.child("shifts").uniform(count * channels).to(x) - 1
        rims = streams.child("rims").uniform(height * width).to(x)
        z = self.epsilon * torch.cat((shifts, rims), dim=1)
        return {"z": z, "colours": colours, "top": top.to(x.device), "rim": rim.to(x.device)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        n, channels, height, width = x.shape
        shift, rim = params["z"].tensor_split([params["colours"][0].numel()], dim=1)
        colours = params["colours"] + shift.reshape(params["colours"].shape)
        # Shape 0 is no shape: there the image is shown.
        palette = torch.cat((torch.zeros_like(colours[:, :, :1]), colours), dim=2)
        place = params["top"].reshape(n, 1, -1).expand(-1, channels, -1)
        painted = palette.gather(2, place).reshape(x.shape)
        through = torch.where(params["top"][:, None] > 0, between(x, 0.2, 0.1), 1.0).to(x)
        covered = torch.where(params["rim"][:, None], rim.reshape(n, 1, height, width), x * through + painted)
        return clip(x + opacity(self.epsilon, SMALLEST_EPS) * (covered - x))

    def project(self, params: Params) -> Tensor:
        eps, colours = self.epsilon, params["colours"][0].numel()
        return torch.cat((params["z"][:, :colours].clamp(-eps, eps), params["z"][:, colours:].clamp(0, eps)), dim=1)


@spec
@dataclass(frozen=True)
class Pixel(UnforeseenAttack):
    """Mixes each channel of each block with the value of its upper left pixel (Kaufmann et al. 2023).

    ``z`` (N, C, block rows, block columns) holds the shares, in [0, 1], with an L2 norm over all of them of at most `eps`;
    steps follow the gradient. Blocks have 4 pixels at side 32 and 16 at 224; those at the right and lower border may be
    cut (the reference enlarges such an image, which changes it at eps 0 too).

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Pixel(eps=5, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        block = _block(x)
        like = x[..., ::block, ::block]
        return {"z": self.project({"z": L2(self.epsilon).sample(like, streams.child("shares")).abs()})}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        block = _block(x)
        share, corner = (
            tiles.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., : x.shape[2], : x.shape[3]]
            for tiles in (params["z"], x[..., ::block, ::block])
        )
        return clip(x + share * (corner - x))

    def step(self, params: Params, grad: Tensor, alpha: float) -> Tensor:
        return params["z"] + alpha * L2(1.0).steepest_direction(grad)

    def project(self, params: Params) -> Tensor:
        # Shares below 0 are set to 0 first, so that they use nothing of the norm; clamping at 1 then only shortens.
        return L2(self.epsilon).project(params["z"].clamp_min(0)).clamp_max(1)


def _block(x: Tensor) -> int:
    return round(between(x, 4, 16))
