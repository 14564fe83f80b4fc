"""Elastic and Glitch: unforeseen attacks that move pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.unforeseen.unforeseen_attack import Params, UnforeseenAttack, between, clip, side
from vizrobust.rng import Streams
from vizrobust.spec import spec


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of images (N, C, H, W) at each pixel plus `flow` (N, 2, H, W): right and down, in pixels.

    Beyond its border an image continues as its mirror image. Without flow the image stays as it is, up to rounding:
    the corners of the sampling grid are the centres of the corner pixels (implementations with torch's other convention
    resample, and so blur, the image at flow 0).

    >>> x = torch.rand(1, 1, 4, 5)
    >>> bool(torch.allclose(warp(x, torch.zeros(1, 2, 4, 5)), x, atol=1e-6))
    True
    """
    height, width = x.shape[-2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device)
    down = torch.arange(height, dtype=x.dtype, device=x.device)
    columns = (across + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    rows = (down[:, None] + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack((columns, rows), dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


@spec
@dataclass(frozen=True)
class Elastic(UnforeseenAttack):
    """Takes each pixel from up to `eps` pixels away along a smoothed flow (Xiao et al. 2018; Kang et al. 2019).

    ``z`` (N, 2, H, W) is the flow in pixels, abs(z) <= eps, before a Gaussian of 3 pixels at side 224 and proportionally less
    at smaller sides; steps are sign steps. Values come from the image, so only rounding is clipped.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Elastic(eps=0.5, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        return {"z": (2 * streams.child("flow").uniform(2, *x.shape[-2:]).to(x) - 1) * self.epsilon}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        return clip(warp(x, smooth(params["z"], 3 * side(x) / 224)))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def smooth(flow: Tensor, sigma: float) -> Tensor:
    """(N, 2, H, W) blurred by a Gaussian cut at 4 sigma, but with at least 2 pixels to each side; the border mirrored.

    That is UAR's 25 taps for side 224 and 5 for side 32.
    """
    radius = max(2, math.ceil(4 * sigma))
    taps = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(flow)
    n, _, height, width = flow.shape
    planes = F.pad(flow.reshape(2 * n, 1, height, width), (radius,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(planes, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
    return blurred.reshape(n, 2, height, width)


@spec
@dataclass(frozen=True)
class Glitch(UnforeseenAttack):
    """Shifts each band of rows of each channel by up to `eps` half widths to the side (Kaufmann et al. 2023).

    eps 0.05 is 0.8 pixels of 32, or 5.6 of 224. ``z`` (N, C, bands) holds the shifts, abs(z) <= eps; steps are sign steps.
    Bands have 2 rows at side 32 and 4 at 224. Beyond its border the image continues as its mirror image.

    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    >>> Glitch(eps=0.05, steps=2)(net, torch.rand(2, 3, 32, 32), torch.tensor([0, 1])).best.shape
    torch.Size([2, 3, 32, 32])
    """

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        bands = -(-x.shape[2] // _rows(x))
        return {"z": (2 * streams.child("shifts").uniform(x.shape[1], bands).to(x) - 1) * self.epsilon}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        n, channels, height, width = x.shape
        shift = params["z"].repeat_interleave(_rows(x), 2)[..., :height] * (width / 2)
        aside = shift.reshape(n * channels, height, 1).expand(-1, -1, width)
        flow = torch.stack((aside, torch.zeros_like(aside)), dim=1)
        return clip(warp(x.reshape(n * channels, 1, height, width), flow).reshape(x.shape))

    def project(self, params: Params) -> Tensor:
        return params["z"].clamp(-self.epsilon, self.epsilon)


def _rows(x: Tensor) -> int:
    """The height of a band."""
    return round(between(x, 2, 4))
