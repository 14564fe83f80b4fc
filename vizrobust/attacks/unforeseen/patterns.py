"""Patterns laid over an image: Gabor noise, wood grain, a kaleidoscope's shapes, blocks of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.threat_models import L2, TINY
from vizrobust.attacks.unforeseen.unforeseen_attack import Params, UnforeseenAttack, between, clip, opacity
from vizrobust.rng import Streams
from vizrobust.spec import spec

SIZE = 23  # the wavelets' side in pixels, at every image size, as in both references
DENSITY = 1 / 14
MOST_SIDES = 10


@spec
@dataclass(frozen=True)
class Gabor(UnforeseenAttack):
    """Adds Gabor noise in [0, 1], multiplied by `eps`, to all channels (Co et al. 2019; Kang et al. 2019).

    Each image has its own wavelet, drawn once (ImageNet-UA draws a new one at every call, which makes the gradient
    noisy), at random places. ``z`` (N, H, W) holds the weights at those places, in [-1, 1]; steps are sign steps.
    Published eps are in 0 … 255: divide them by 255. (UAR's code inverts the mask of places from its first step on: its
    places stay at 0 and the rest moves.)

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Gabor(eps=0.1, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    range = 1.0

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        places = (streams.child("places").uniform(height, width) < DENSITY).to(x)
        weights = 2 * streams.child("weights").uniform(height, width).to(x) - 1
        sides, sigma, cycles, angle = streams.child("wavelet").uniform(4).to(x).unbind(1)
        wavelet = wavelets(1 + (MOST_SIDES * sides).floor(), 0.1 + 0.3 * sigma, 3 + 2.75 * cycles, math.pi * angle)
        return {"z": weights * places, "places": places, "wavelet": wavelet}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        noise = F.conv2d(params["z"][None], params["wavelet"][:, None], padding=SIZE // 2, groups=len(x))[0]
        return clip(x + self.epsilon * evened(noise)[:, None])

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-1, 1) * params["places"]


def wavelets(sides: Tensor, sigma: Tensor, cycles: Tensor, angle: Tensor) -> Tensor:
    """All (N,) -> (N, 23, 23): a cosine of so many `cycles` under a Gaussian of width `sigma`, summed over directions.

    The kernel's side is 1; `sides` directions share the half turn from `angle` on.
    """
    place = torch.linspace(-0.5, 0.5, SIZE, dtype=sigma.dtype, device=sigma.device)
    down, across = place[:, None], place[None, :]
    sides, sigma, cycles, angle = (value[:, None, None] for value in (sides, sigma, cycles, angle))
    total = torch.zeros_like(sigma)
    for number in range(MOST_SIDES):
        turned = angle + math.pi * number / sides
        wave = torch.cos(2 * math.pi * cycles * (across * torch.cos(turned) + down * torch.sin(turned)))
        total = total + torch.where(number < sides, wave, 0)
    return total * torch.exp(-(across**2 + down**2) / (2 * (sigma + 1e-3) ** 2))


def evened(noise: Tensor) -> Tensor:
    """(N, H, W) -> the same noise with all deviations from its mean scaled to nearly one size, in [0, 1].

    The divisor counts as constant in the gradient, as in the reference: otherwise it would nearly cancel the gradient.
    """
    fixed = noise.detach()
    mean = fixed.mean((1, 2), keepdim=True)
    deviation = (fixed - mean).abs()
    gain = 1.001 / (0.001 + deviation / (deviation.amax((1, 2), keepdim=True) + TINY))
    noise = mean + (noise - mean) * gain
    low, high = noise.detach().amin((1, 2), keepdim=True), noise.detach().amax((1, 2), keepdim=True)
    return (noise - low) / (high - low + TINY)


WOOD_SMALLEST_EPS = 0.03
# |sin|^(1/8) has an infinite slope at 0, which would drown the rest of the gradient; this rounds the tip of the groove.
ROUNDING = 1e-6


@spec
@dataclass(frozen=True)
class Wood(UnforeseenAttack):
    """Darkens the image along rings whose radius is bent by up to `eps`, in half sides (Kaufmann et al. 2023).

    ``x' = x |sin(pi R (r + bend))|^(1/8)`` with R = 5 rings at side 32 and 4 at 224. ``z`` (N, rows, columns), 16 x 16 at
    side 32 and 32 x 32 at 224, is the bend before it is enlarged, abs(z) <= eps; steps are sign steps. Below eps 0.03, the
    smallest published, the rings fade with eps. Nothing needs clipping.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Wood(eps=0.05, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        size = round(between(x, 16, 32))
        return {"z": (2 * streams.child("bend").uniform(size, size).to(x) - 1) * self.epsilon}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        bend = F.interpolate(params["z"][:, None], x.shape[-2:], mode="bilinear", align_corners=False)
        wave = torch.sin(math.pi * round(between(x, 5, 4)) * (_radius(x) + bend))
        grain = ((wave**2 + ROUNDING) / (1 + ROUNDING)) ** (1 / 16)
        return x * (1 - opacity(self.epsilon, WOOD_SMALLEST_EPS) * (1 - grain))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def _radius(x: Tensor) -> Tensor:
    """(H, W): each pixel's distance from the middle; 1 at the middle of each side."""
    down, across = ((2 * torch.arange(length, dtype=x.dtype, device=x.device) + 1) / length - 1 for length in x.shape[-2:])
    return torch.sqrt(down[:, None] ** 2 + across**2)


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
