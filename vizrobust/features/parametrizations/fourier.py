"""Fourier: a decaying spectrum in decorrelated colours as free numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vizrobust.features.parametrizations.parametrization import Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec


def hartley(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H, W): the orthonormal Hartley transform, its own inverse (Hartley 1942)."""
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag


@lru_cache(maxsize=16)
def falloff(height: int, width: int, decay: float) -> Tensor:
    """(H, W): 1 / frequency^decay in cycles per pixel, the constant term as the lowest frequency."""
    fy = torch.fft.fftfreq(height)[:, None]
    fx = torch.fft.fftfreq(width)[None, :]
    return 1 / torch.sqrt(fy**2 + fx**2).clamp_min(1 / max(height, width)) ** decay


def negated_frequencies(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H, W): the number at each frequency f becomes that at -f."""
    return x.flip(-2, -1).roll((1, 1), (-2, -1))


@lru_cache(maxsize=16)
def self_conjugate(height: int, width: int) -> Tensor:
    """(H, W): 1 where a frequency is its own negative, as the constant term is, else 0."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return ((2 * y % height == 0) & (2 * x % width == 0)).to(torch.float32)


# Colour directions of ImageNet (Olah et al. 2017): columns are luminance, red-blue, green-magenta; rows R, G, B.
IMAGENET_COLORS = (0.26, 0.09, 0.02, 0.27, 0.00, -0.05, 0.27, -0.09, 0.03)

# What `from_colors` can bring back: nearer to 0 and 1 a sigmoid has next to no gradient.
DARKEST, BRIGHTEST = 0.02, 0.98

Colors = tuple[float, ...] | None


def color_directions(covariance: Tensor) -> tuple[float, ...]:
    """(C, C) covariance of the channels -> C x C numbers, row by row: principal directions times deviations."""
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    directions = vectors.flip(1) * values.flip(0).clamp_min(0).sqrt()
    # An eigenvector's sign is arbitrary: the first channel that matters points up, so that the text is stable.
    signs = torch.where(directions.sum(0) < 0, -1.0, 1.0)
    return tuple(round(value, 4) + 0.0 for value in (directions * signs).flatten().tolist())


@lru_cache(maxsize=16)
def mixing(colors: Colors, channels: int) -> Tensor:
    """(channels, channels): planes to channels, the longest column of length 1.

    None is ImageNet's matrix for three channels and the identity for any other number.
    """
    if not colors:
        if channels != 3:
            return torch.eye(channels)
        colors = IMAGENET_COLORS
    if len(colors) != channels**2:
        raise ValueError(f"colors needs {channels} x {channels} numbers for {channels} channels, got {len(colors)}")
    matrix = torch.tensor(colors).reshape(channels, channels)
    return matrix / matrix.norm(dim=0).max().clamp_min(1e-8)


@lru_cache(maxsize=16)
def unmixing(colors: Colors, channels: int) -> Tensor:
    """(channels, channels) float64: channels to planes, the (pseudo-)inverse of `mixing`."""
    return torch.linalg.pinv(mixing(colors, channels).to(torch.float64))


def to_colors(planes: Tensor, colors: Colors) -> Tensor:
    """Decorrelated planes (N, C, H, W) -> images (N, C, H, W) in (0, 1); planes of 0 are mid-grey."""
    matrix = mixing(colors, planes.shape[1])
    if len(matrix) > 1:
        planes = torch.einsum("rc,nchw->nrhw", matrix.to(planes), planes)
    # Image by image: the last few numbers of a tensor are rounded by another routine than the rest of it.
    return torch.stack([torch.sigmoid(image) for image in planes])


def from_colors(image: Tensor, colors: Colors) -> Tensor:
    """Images (N, C, H, W) -> the planes that `to_colors` makes them from; pixels beyond .02 and .98 are brought there."""
    logits = torch.logit(image.to(torch.float64).clamp(DARKEST, BRIGHTEST))
    return torch.einsum("cr,nrhw->nchw", unmixing(colors, image.shape[1]).to(logits), logits)


GAIN = math.sqrt(2) / 4


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

    >>> Fourier()(Fourier().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    decay: float = 1.0
    deviation: float = 0.01
    colors: tuple[float, ...] | None = None

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        return self.deviation * streams.normal(*shape)

    def __call__(self, z: Tensor) -> Tensor:
        scale = falloff(z.shape[2], z.shape[3], self.decay).to(z)
        return to_colors(hartley(z * scale) * GAIN, self.colors)

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def invert(self, image: Tensor) -> Tensor:
        """Exact for pixels from .02 to .98; the others are brought there, where the sigmoid still has a gradient."""
        planes = from_colors(image, self.colors)
        return (hartley(planes / GAIN) / falloff(image.shape[2], image.shape[3], self.decay).to(planes)).to(image.dtype)
