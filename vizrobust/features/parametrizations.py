"""How numbers become an image: pixels themselves, or a spectrum with decorrelated colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vizrobust.attacks import Ball
from vizrobust.rng import Streams
from vizrobust.spec import named, spec

# Colour directions of ImageNet (Olah et al. 2017): columns are luminance, red-blue, green-magenta; rows R, G, B.
IMAGENET_COLORS = (0.26, 0.09, 0.02, 0.27, 0.00, -0.05, 0.27, -0.09, 0.03)


@runtime_checkable
class Parametrization(Protocol):
    """Free numbers z behind an image. Every image of a batch has its own, and its own stream."""

    def init(self, shape: tuple[int, int, int], streams: Streams) -> Tensor:
        """z (N, …) for one image of `shape` (C, H, W) from each of N streams."""

    def __call__(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1]; differentiable."""

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        """z after a step, brought back to what is allowed, given the z it started from; outside the graph."""


@spec
@dataclass(frozen=True)
class Pixels:
    """z is the image. It starts at .5 + `deviation` * noise and is clipped to [0, 1] after each step.

    With a `ball` it stays within that distance of its start.

    >>> Pixels()(Pixels().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    deviation: float = 0.05
    ball: Ball | None = None

    def init(self, shape: tuple[int, int, int], streams: Streams) -> Tensor:
        return (0.5 + self.deviation * streams.normal(*shape)).clamp(0, 1)

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        if self.ball is not None:
            z = start + self.ball.project(z - start)
        return z.clamp(0, 1)


@spec
@dataclass(frozen=True)
class Fourier:
    """z is a spectrum, scaled by 1 / frequency^`decay`, in decorrelated colours, through a sigmoid (Olah et al. 2017).

    ``image = sigmoid(C hartley(z / max(f, 1/max(H, W))^decay) * sqrt(2) / 4)``, f in cycles per pixel, z starting
    at `deviation` * noise. The orthonormal Hartley transform has exactly H * W real coefficients, so none is
    redundant and odd sizes need no care; the sqrt(2) makes its gain that of Lucid's half-plane of complex ones.
    RGB then starts between .001 and .01 away from grey at any size from 28 to 224 px: a further factor sqrt(H W),
    which belongs to the unnormalised transform, would saturate the picture. `colors` is C (channels x channels,
    row by row); None takes ImageNet's for three channels and none otherwise.
    """

    decay: float = 1.0
    deviation: float = 0.01
    colors: tuple[float, ...] | None = None

    def init(self, shape: tuple[int, int, int], streams: Streams) -> Tensor:
        return self.deviation * streams.normal(*shape)

    def __call__(self, z: Tensor) -> Tensor:
        scale = _spectrum(z.shape[2], z.shape[3], self.decay).to(z)
        planes = hartley(z * scale) * (math.sqrt(2) / 4)
        colors = IMAGENET_COLORS if self.colors is None and z.shape[1] == 3 else self.colors
        if colors:
            planes = torch.einsum("rc,nchw->nrhw", _normalized(colors, z.shape[1]).to(z), planes)
        # Image by image: the last few numbers of a tensor are rounded by another routine than the rest of it.
        return torch.stack([torch.sigmoid(image) for image in planes])

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z


def hartley(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H, W): the orthonormal Hartley transform, its own inverse (Hartley 1942)."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag


def color_directions(covariance: Tensor) -> tuple[float, ...]:
    """(C, C) covariance of the channels -> C x C numbers, row by row: principal directions times deviations."""
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    directions = vectors.flip(1) * values.flip(0).clamp_min(0).sqrt()
    # An eigenvector's sign is arbitrary: the first channel that matters points up, so that the text is stable.
    signs = torch.where(directions.sum(0) < 0, -1.0, 1.0)
    return tuple(round(value, 4) + 0.0 for value in (directions * signs).flatten().tolist())


@lru_cache(maxsize=16)
def _spectrum(height: int, width: int, decay: float) -> Tensor:
    """(H, W): 1 / frequency^decay, the constant term as the lowest frequency."""
    fy = torch.fft.fftfreq(height)[:, None]
    fx = torch.fft.fftfreq(width)[None, :]
    return 1 / torch.sqrt(fy**2 + fx**2).clamp_min(1 / max(height, width)) ** decay


@lru_cache(maxsize=16)
def _normalized(colors: tuple[float, ...], channels: int) -> Tensor:
    """The colour matrix, its longest column of length 1."""
    if len(colors) != channels**2:
        raise ValueError(f"Fourier: colors needs {channels} x {channels} numbers for {channels} channels, got {len(colors)}")
    matrix = torch.tensor(colors).reshape(channels, channels)
    return matrix / matrix.norm(dim=0).max().clamp_min(1e-8)


PARAMETRIZATIONS = named(Pixels, Fourier)
