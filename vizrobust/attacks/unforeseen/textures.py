"""Gabor and Wood: unforeseen attacks that add a texture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.threat_models import TINY
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

    @property
    def range(self) -> float:
        return 1.0

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


SMALLEST_EPS = 0.03
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
        return x * (1 - opacity(self.epsilon, SMALLEST_EPS) * (1 - grain))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def _radius(x: Tensor) -> Tensor:
    """(H, W): each pixel's distance from the middle; 1 at the middle of each side."""
    down, across = ((2 * torch.arange(length, dtype=x.dtype, device=x.device) + 1) / length - 1 for length in x.shape[-2:])
    return torch.sqrt(down[:, None] ** 2 + across**2)
