"""Transforms of pixel values where they are: blur, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.features.transforms.geometry import check_share
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of deviation `sigma`, a share of the image's shorter side; the edge is mirrored. Nothing is random."""

    sigma: float = 1 / 128

    def __post_init__(self) -> None:
        check_share("Blur", "sigma", self.sigma)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        sigma = self.sigma * min(image.shape[2:])
        if sigma == 0:
            return image
        # A mirror shows no more than the image has.
        radius = min(math.ceil(4 * sigma), min(image.shape[2:]) - 1)
        kernel = _gaussian(sigma, radius).to(image)
        channels = image.shape[1]
        image = F.pad(image, [radius] * 4, mode="reflect")
        image = F.conv2d(image, kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(image, kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


@spec
@dataclass(frozen=True)
class Noise:
    """Normal noise of this `deviation` on every pixel; values may leave [0, 1], since a clip would hold back gradients."""

    deviation: float = 0.05

    def __post_init__(self) -> None:
        check_share("Noise", "deviation", self.deviation)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        seeds = (streams.uniform(2) * 2**24).to(torch.int64)
        if self.deviation == 0:
            return image
        # A generator for each image: eight times as fast as drawing every pixel from its stream.
        generator, shape = torch.Generator(), image.shape[1:]
        ours = (seeds[:, 0] << 24 | seeds[:, 1]).tolist()
        noise = torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in ours])
        return image + self.deviation * noise.to(image)


@lru_cache(maxsize=16)
def _gaussian(sigma: float, radius: int) -> Tensor:
    """(2 radius + 1,) float64 weights of sum 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()
