"""A small network from place to colour as free numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from vizrobust.features.parametrizations.fourier import to_colors
from vizrobust.features.parametrizations.parametrization import Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec

# Deviations of atan(x) and of atan(x)^2, and the mean of the latter, for standard normal x.
ODD, EVEN, EVEN_MEAN = 0.67, 0.40, 0.45
# How far z of the last layer starts from 0, where the image is grey.
LAST = 0.1


@spec
@dataclass(frozen=True)
class CPPN:
    """z holds the weights of a network that maps (x, y) to a colour, one network per image (Stanley 2007).

    `depth` hidden layers of `width` units, each followed by atan and its square, as in Lucid (Mordvintsev et al. 2018);
    weights are z / sqrt(inputs), so that one step size suits all layers. The longer side runs from -sqrt(3) to sqrt(3).
    Pictures are smooth and may be made at any size. Adam(lr=0.01) suits them; larger steps end in black and white.
    `colors` as in `Fourier`. `shape` (C, H, W) is that of the images, which z does not tell; `render` fills it in.

    >>> param = CPPN(width=5, depth=2).for_shape((3, 5, 4))
    >>> param(param.init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    width: int = 24
    depth: int = 8
    colors: tuple[float, ...] | None = None
    shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"CPPN: width and depth must be at least 1, got {self.width} and {self.depth}")
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ValueError(f"CPPN: shape must be (channels, height, width), got {self.shape}")

    def for_shape(self, shape: Shape) -> CPPN:
        return replace(self, shape=shape)

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        counts = [outputs * (inputs + 1) for inputs, outputs in self._layers(shape[0])]
        z = streams.normal(sum(counts))
        return torch.cat((z[:, : -counts[-1]], LAST * z[:, -counts[-1] :]), 1)

    def __call__(self, z: Tensor) -> Tensor:
        if self.shape is None:
            raise ValueError("CPPN: the weights do not tell the images' size; use CPPN(...).sized((channels, height, width))")
        channels, height, width = self.shape
        values = _places(height, width).to(z).expand(len(z), -1, -1)
        layers = self._layers(channels)
        parts = torch.split(z, [outputs * (inputs + 1) for inputs, outputs in layers], 1)
        for depth, (part, (inputs, outputs)) in enumerate(zip(parts, layers, strict=True)):
            weights = part[:, outputs:].reshape(-1, outputs, inputs) / math.sqrt(inputs)
            values = torch.bmm(weights, _activated(values) if depth else values) + part[:, :outputs, None]
        return to_colors(values.reshape(-1, channels, height, width), self.colors)

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def _layers(self, channels: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        hidden = [(2 * self.width, self.width)] * (self.depth - 1)
        return [(2, self.width), *hidden, (2 * self.width, channels)]


def _activated(values: Tensor) -> Tensor:
    """(N, units, places) -> (N, 2 units, places): an odd and an even function, both of mean 0 and deviation 1."""
    # Image by image, as in `to_colors`.
    odd = torch.stack([torch.atan(image) for image in values])
    return torch.cat((odd / ODD, (odd.square() - EVEN_MEAN) / EVEN), 1)


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> Tensor:
    """(2, H * W): x and y of every pixel's centre."""
    ends = math.sqrt(3) / max(height, width)
    y, x = (torch.arange(1 - side, side, 2) * ends for side in (height, width))
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width))).flatten(1)
