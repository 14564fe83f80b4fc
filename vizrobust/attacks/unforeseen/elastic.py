"""Elastic: a smooth flow moves the pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, clip, strength
from vizrobust.attacks.unforeseen.scaling import side
from vizrobust.attacks.unforeseen.warp import warp
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Elastic:
    """Each pixel is fetched from up to `eps` pixels away along a smoothed flow (Xiao et al. 2018; Kang et al. 2019).

    The variable (N, 2, H, W) is the flow in pixels, |z| <= eps, before a Gaussian of 3 pixels at side 224, less in
    proportion at smaller sides; steps are signs. Values come from the image, so nothing is clipped but rounding.
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
        return strength(self)

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return (Climb(self),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        return {"z": (2 * streams.child("flow").uniform(2, *x.shape[-2:]).to(x) - 1) * strength(self)}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        return clip(warp(x, smooth(v["z"], 3 * side(x) / 224)))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * grad.sign()

    def project(self, v: Variables) -> Tensor:
        return v["z"].clamp(-strength(self), strength(self))


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
