"""Wood: the grain of a board, ring upon ring."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, fade, strength
from vizrobust.attacks.unforeseen.scaling import between
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec

SMALLEST_EPS = 0.03
# |sin|^(1/8) has an infinite slope at 0, which would drown the rest of the gradient; this rounds the tip of the groove.
ROUNDING = 1e-6


@spec
@dataclass(frozen=True)
class Wood:
    """The image is darkened along rings whose radius is bent by up to `eps`, in half sides (Kaufmann et al. 2023).

    x' = x |sin(pi R (r + bend))|^(1/8) with R = 5 rings at side 32 and 4 at 224. The variable (N, rows, columns), of
    16 x 16 at side 32 and 32 x 32 at 224, is the bend before it is enlarged, |z| <= eps; steps are signs. Below
    eps 0.03, the smallest published, the rings fade with eps. Nothing needs clipping.
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
        size = round(between(x, 16, 32))
        return {"z": (2 * streams.child("bend").uniform(size, size).to(x) - 1) * strength(self)}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        bend = F.interpolate(v["z"][:, None], x.shape[-2:], mode="bilinear", align_corners=False)
        wave = torch.sin(math.pi * round(between(x, 5, 4)) * (_radius(x) + bend))
        grain = ((wave**2 + ROUNDING) / (1 + ROUNDING)) ** (1 / 16)
        return x * (1 - fade(strength(self), SMALLEST_EPS) * (1 - grain))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * grad.sign()

    def project(self, v: Variables) -> Tensor:
        return v["z"].clamp(-strength(self), strength(self))


def _radius(x: Tensor) -> Tensor:
    """(H, W): each pixel's distance from the middle; 1 at the middle of each side."""
    down, across = ((2 * torch.arange(length, dtype=x.dtype, device=x.device) + 1) / length - 1 for length in x.shape[-2:])
    return torch.sqrt(down[:, None] ** 2 + across**2)
