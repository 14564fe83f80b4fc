"""How numbers become an image: the catalogue, and wrappers of others, with shared low frequencies or an alpha channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from vizrobust.features.parametrizations.maco import MACO
from vizrobust.features.parametrizations.parametrization import (
    CPPN,
    IMAGENET_COLORS,
    Fourier,
    Parametrization,
    Pixels,
    Shape,
    alpha_penalized,
    color_directions,
    composited,
    for_shape,
    hartley,
    mixing,
)
from vizrobust.plugins import Catalogue
from vizrobust.rng import Streams
from vizrobust.spec import named, spec

GREY = 0.5


def over_background(image: Tensor, background: Tensor | float = GREY) -> Tensor:
    """(..., C + 1, H, W), colours and their opacity -> (..., C, H, W): ``opacity * colour + (1 - opacity) * background``.

    The colours are not multiplied by the opacity beforehand, as in a PNG (Porter & Duff 1984, "over").

    >>> import torch
    >>> red_then_clear = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])[:, None]
    >>> over_background(red_then_clear)[:, 0].T.tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    """
    colors, opacity = image[..., :-1, :, :], image[..., -1:, :, :]
    return opacity * colors + (1 - opacity) * background


@spec
@dataclass(frozen=True)
class SharedLowFrequency:
    """Every `group_size` consecutive images share all structure of at most `cutoff` cycles per image; their details differ.

    z is that of `inner`; its coefficients of low frequency are the mean over the group. The idea is that of Lucid's
    low-resolution tensors (Mordvintsev et al. 2018, aligned interpolation), in frequencies instead of pixels. Raises
    ``ValueError`` for a group of fewer than 1 and a negative cutoff.

    >>> param = SharedLowFrequency(group_size=2, cutoff=99.0)
    >>> one, two = param(param.init((3, 6, 6), Streams(0, range(2))))
    >>> torch.equal(one, two)
    True
    """

    inner: Fourier | MACO = field(default_factory=Fourier)
    group_size: int = 4
    cutoff: float = 4.0

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"SharedLowFrequency: group_size must be at least 1, got {self.group_size}")
        if not self.cutoff >= 0:
            raise ValueError(f"SharedLowFrequency: cutoff must not be negative, got {self.cutoff:g}")

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        z = self.inner.init(shape, streams)
        # So that the mean of a group varies as much as one of its images would.
        return torch.where(_low(shape[1], shape[2], self.cutoff), z * math.sqrt(self.group_size), z)

    def __call__(self, z: Tensor) -> Tensor:
        if len(z) % self.group_size:
            raise ValueError(f"SharedLowFrequency: {len(z)} images do not divide into groups of {self.group_size}")
        groups = z.reshape(-1, self.group_size, *z.shape[1:])
        # One by one, so that the order in which the numbers of an image are added does not depend on its place.
        mean = sum(groups.unbind(1)[1:], groups[:, 0]) / self.group_size
        low = _low(z.shape[2], z.shape[3], self.cutoff).to(z.device)
        return self.inner(torch.where(low, mean.repeat_interleave(self.group_size, 0), z))

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def invert(self, image: Tensor) -> Tensor:
        """As `inner` has it; what images of a group share becomes their mean."""
        return self.inner.invert(image)


@lru_cache(maxsize=16)
def _low(height: int, width: int, cutoff: float) -> Tensor:
    """(H, W) bool: frequencies of at most so many cycles per image."""
    ky, kx = (torch.fft.fftfreq(side, 1 / side) for side in (height, width))
    return torch.hypot(ky[:, None], kx[None, :]) <= cutoff


# How the grounds' spectra fall, and their coefficients' deviation, before it is made the same at any size.
SMOOTH, CONTRAST = 1.5, 2.0


@spec
@dataclass(frozen=True)
class AlphaChannel:
    """Pictures (N, C + 1, H, W): the colours of `inner`, and last their opacity, one more decaying spectrum (`decay`).

    Mordvintsev et al. 2018, "Differentiable Image Parameterizations". At every step the network sees
    ``opacity * colour + (1 - opacity) * background`` over a new random background from the image's own stream, so colours
    that are to count must be opaque; what is optimized is ``J (1 - mean opacity)``, so everything else fades. Their formula
    is for scores J >= 0. A negative score would gain by opacity, so here it is ``J - |J| mean opacity``, which is the
    same where theirs applies. Score, saturation and frames are those of the picture over mid grey.

    Backgrounds are smooth clouds, 1 / frequency^1.5 in the colours of `inner`: with a `background` of 1 their pixels deviate
    from grey by about .25 at any size, with 0 they are grey. (In Lucid's experiments any random background would do.)
    Opacity starts at a half, or at .98 from an image. CPPN cannot be `inner`, because its numbers are no planes. Steps
    that suit the phases of `MACO` are too large for an opacity. Raises ``ValueError`` for a negative `background`.

    >>> AlphaChannel()(AlphaChannel().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 4, 5, 4])
    """

    inner: Pixels | Fourier | MACO | SharedLowFrequency = field(default_factory=Fourier)
    decay: float = 1.0
    background: float = 1.0

    def __post_init__(self) -> None:
        if not self.background >= 0:
            raise ValueError(f"AlphaChannel: background must not be negative, got {self.background:g}")

    @property
    def group_size(self) -> int:
        return getattr(self.inner, "group_size", 1)

    @property
    def _opacity(self) -> Fourier:
        return Fourier(decay=self.decay)

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        opacity = self._opacity.init((1, *shape[1:]), streams.child("opacity"))
        return torch.cat((self.inner.init(shape, streams), opacity), 1)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat((self.inner(z[:, :-1]), self._opacity(z[:, -1:])), 1)

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return torch.cat((self.inner.constrain(z[:, :-1], start[:, :-1]), z[:, -1:]), 1)

    def invert(self, image: Tensor) -> Tensor:
        """For opaque images (N, C, H, W)."""
        return torch.cat((self.inner.invert(image), self._opacity.invert(torch.ones_like(image[:, :1]))), 1)

    def composite(self, image: Tensor, streams: Streams | None) -> Tensor:
        """(N, C + 1, H, W) -> (N, C, H, W) over backgrounds drawn from the streams, or over mid grey without streams."""
        if streams is None:
            return over_background(image, GREY)
        colors = getattr(self.inner.inner if isinstance(self.inner, SharedLowFrequency) else self.inner, "colors", None)
        shape = (image.shape[1] - 1, image.shape[2], image.shape[3])
        deviation = CONTRAST * self.background * max(shape[1:]) ** (1 - SMOOTH)
        backgrounds = Fourier(decay=SMOOTH, deviation=deviation, colors=colors)
        return over_background(image, backgrounds(backgrounds.init(shape, streams)).to(image))

    def alpha_penalized(self, scores: Tensor, image: Tensor) -> Tensor:
        """Scores J (N,) of what the network saw, and pictures (N, C + 1, H, W) -> (N,): ``J - |J| mean opacity``."""
        return scores - scores.abs() * image[:, -1].flatten(1).mean(1)


PARAMETRIZATIONS = Catalogue(named(Pixels, Fourier, MACO, SharedLowFrequency, CPPN, AlphaChannel), "parametrizations")

__all__ = [
    "CPPN",
    "IMAGENET_COLORS",
    "MACO",
    "PARAMETRIZATIONS",
    "AlphaChannel",
    "Fourier",
    "Parametrization",
    "Pixels",
    "SharedLowFrequency",
    "alpha_penalized",
    "color_directions",
    "composited",
    "for_shape",
    "hartley",
    "mixing",
]
