"""The free numbers behind an image: what a parametrization is, and the plain ones, pixels, a Fourier spectrum and a CPPN."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from vizrobust.attacks import Ball
from vizrobust.rng import Streams
from vizrobust.spec import spec

Shape = tuple[int, int, int]


@runtime_checkable
class Parametrization(Protocol):
    """Free numbers z behind an image. Every image of a batch has its own, and its own stream.

    Some methods are optional. ``invert(image)`` gives z for images (N, C, H, W) in [0, 1]. ``for_shape(shape)`` gives
    the parametrization for images of `shape`, where z alone does not tell their size. ``composite(image, streams)``
    and ``alpha_penalized(scores, image)`` are for pictures with an opacity: the images that the network sees, and the
    scores less what opacity costs. Both take the picture, not z, so that the render loop makes it once a step (see
    `composited` and `alpha_penalized`). A parametrization with a field `group_size` couples the rows of each group of so
    many consecutive images, and no others.
    """

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        """z (N, …) for one image of `shape` (C, H, W) from each of N streams."""

    def __call__(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1], or pictures that `composite` turns into such; differentiable."""

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        """z after a step, brought back to what is allowed, given the z it started from; outside the graph."""


def for_shape(parametrization: Parametrization, shape: Shape) -> Parametrization:
    """The parametrization for images of `shape` (C, H, W); most do not depend on it.

    >>> from vizrobust.features import CPPN
    >>> for_shape(CPPN(), (3, 32, 32)), for_shape(Pixels(), (3, 32, 32))
    (CPPN(shape=(3, 32, 32)), Pixels())
    """
    resize = getattr(parametrization, "for_shape", None)
    return parametrization if resize is None else cast(Parametrization, resize(shape))


def composited(parametrization: Parametrization, image: Tensor, streams: Streams | None = None) -> Tensor:
    """What a network sees of pictures, (N, C, H, W): over backgrounds drawn from `streams`, or without any over mid grey."""
    composite = getattr(parametrization, "composite", None)
    return image if composite is None else cast(Tensor, composite(image, streams))


def alpha_penalized(parametrization: Parametrization, scores: Tensor, image: Tensor) -> Tensor:
    """What is optimized, (N,): the network's scores (N,), less what the pictures' opacity costs where they have one."""
    own = getattr(parametrization, "alpha_penalized", None)
    return scores if own is None else cast(Tensor, own(scores, image))


@spec
@dataclass(frozen=True)
class Pixels:
    """z is the image; it starts at .5 + `deviation` * noise and is clipped to [0, 1] after each step.

    With a `ball`, the image stays within that distance of its start (Engstrom et al. 2019 render this way).

    >>> Pixels()(Pixels().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    deviation: float = 0.05
    ball: Ball | None = None

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        return (0.5 + self.deviation * streams.normal(*shape)).clamp(0, 1)

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        if self.ball is not None:
            z = start + self.ball.project(z - start)
        return z.clamp(0, 1)

    def invert(self, image: Tensor) -> Tensor:
        return image.clone()


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
