"""Glitch: bands of rows slip sideways, each colour by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, clip, strength
from vizrobust.attacks.unforeseen.scaling import between
from vizrobust.attacks.unforeseen.warp import warp
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Glitch:
    """Each band of rows of each channel is fetched from up to `eps` half widths to the side (Kaufmann et al. 2023).

    eps 0.05 is 0.8 pixels of 32, or 5.6 of 224. The variable (N, C, bands) holds the shifts, |z| <= eps; steps are
    signs. Bands have 2 rows at side 32 and 4 at 224. Beyond its border the image goes on as its mirror image.
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
        bands = -(-x.shape[2] // _rows(x))
        return {"z": (2 * streams.child("shifts").uniform(x.shape[1], bands).to(x) - 1) * strength(self)}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        n, channels, height, width = x.shape
        shift = v["z"].repeat_interleave(_rows(x), 2)[..., :height] * (width / 2)
        aside = shift.reshape(n * channels, height, 1).expand(-1, -1, width)
        flow = torch.stack((aside, torch.zeros_like(aside)), dim=1)
        return clip(warp(x.reshape(n * channels, 1, height, width), flow).reshape(x.shape))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * grad.sign()

    def project(self, v: Variables) -> Tensor:
        return v["z"].clamp(-strength(self), strength(self))


def _rows(x: Tensor) -> int:
    """The height of a band."""
    return round(between(x, 2, 4))
