"""Parametrizations around another one: images that share low frequencies, and images with an alpha channel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from vizrobust.features.parametrizations.fourier import Fourier
from vizrobust.features.parametrizations.maco import Magnitude
from vizrobust.features.parametrizations.parametrization import Pixels, Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec

GREY = 0.5


def composed(image: Tensor, ground: Tensor | float = GREY) -> Tensor:
    """(..., C + 1, H, W), colours and their opacity -> (..., C, H, W): ``opacity * colour + (1 - opacity) * ground``.

    The colours are not multiplied by the opacity beforehand, as in a PNG (Porter & Duff 1984, "over").

    >>> import torch
    >>> red_then_clear = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])[:, None]
    >>> composed(red_then_clear)[:, 0].T.tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    """
    colors, opacity = image[..., :-1, :, :], image[..., -1:, :, :]
    return opacity * colors + (1 - opacity) * ground


@spec
@dataclass(frozen=True)
class Shared:
    """Every `faces` consecutive images share all structure of at most `cycles` cycles per image; their details differ.

    z is that of `inner`; its coefficients of low frequency are the mean over the group. It is the idea of Lucid's
    low-resolution tensors (Mordvintsev et al. 2018, aligned interpolation), in frequencies instead of pixels.
    """

    inner: Fourier | Magnitude = field(default_factory=Fourier)
    faces: int = 4
    cycles: float = 4.0

    def __post_init__(self) -> None:
        if self.faces < 1:
            raise ValueError(f"Shared: faces must be at least 1, got {self.faces}")
        if not self.cycles >= 0:
            raise ValueError(f"Shared: cycles must not be negative, got {self.cycles:g}")

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        z = self.inner.init(shape, streams)
        # So that the mean of a group varies as much as one of its images would.
        return torch.where(_low(shape[1], shape[2], self.cycles), z * math.sqrt(self.faces), z)

    def __call__(self, z: Tensor) -> Tensor:
        if len(z) % self.faces:
            raise ValueError(f"Shared: {len(z)} images are no whole groups of {self.faces} faces")
        groups = z.reshape(-1, self.faces, *z.shape[1:])
        # One by one, so that the order in which the numbers of an image are added does not depend on its place.
        mean = sum(groups.unbind(1)[1:], groups[:, 0]) / self.faces
        low = _low(z.shape[2], z.shape[3], self.cycles).to(z.device)
        return self.inner(torch.where(low, mean.repeat_interleave(self.faces, 0), z))

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def invert(self, image: Tensor) -> Tensor:
        """As `inner` has it; what images of a group share becomes their mean."""
        return self.inner.invert(image)


@lru_cache(maxsize=16)
def _low(height: int, width: int, cycles: float) -> Tensor:
    """(H, W) bool: frequencies of at most so many cycles per image."""
    ky, kx = (torch.fft.fftfreq(side, 1 / side) for side in (height, width))
    return torch.hypot(ky[:, None], kx[None, :]) <= cycles


# How the grounds' spectra fall, and their coefficients' deviation, before it is made the same at any size.
SMOOTH, CONTRAST = 1.5, 2.0


@spec
@dataclass(frozen=True)
class Transparent:
    """Pictures (N, C + 1, H, W): colours of `inner`, and last their opacity, one more decaying spectrum (`decay`).

    Mordvintsev et al. 2018, "Differentiable Image Parameterizations". At every step the network sees
    ``opacity * colour + (1 - opacity) * ground`` over a ground that is drawn anew from the image's own stream, so that
    colour which is to count must be opaque, and what is optimized is ``J (1 - mean opacity)``, so that all else fades.
    Their formula is for scores J >= 0; a negative one would gain by opacity, so it is ``J - |J| mean opacity``
    here, which is the same where theirs holds. Score, saturation and films are those of the picture over mid grey.

    The grounds are smooth clouds, 1 / frequency^1.5 in the colours of `inner`: with a `background` of 1 their pixels
    deviate by about .25 from grey at any size, with 0 they are grey. (In Lucid's experiments any random ground would do.)
    Opacity starts at a half, from an image at .98. CPPN cannot be `inner`: its numbers are no planes. Under `Magnitude`
    the steps that suit phases are too large for an opacity.

    >>> Transparent()(Transparent().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 4, 5, 4])
    """

    inner: Pixels | Fourier | Magnitude | Shared = field(default_factory=Fourier)
    decay: float = 1.0
    background: float = 1.0

    def __post_init__(self) -> None:
        if not self.background >= 0:
            raise ValueError(f"Transparent: background must not be negative, got {self.background:g}")

    @property
    def faces(self) -> int:
        return getattr(self.inner, "faces", 1)

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

    def over(self, image: Tensor, streams: Streams | None) -> Tensor:
        """(N, C + 1, H, W) -> (N, C, H, W) over grounds drawn from the streams, or over mid grey without any."""
        if streams is None:
            return composed(image, GREY)
        colors = getattr(self.inner.inner if isinstance(self.inner, Shared) else self.inner, "colors", None)
        shape = (image.shape[1] - 1, image.shape[2], image.shape[3])
        deviation = CONTRAST * self.background * max(shape[1:]) ** (1 - SMOOTH)
        grounds = Fourier(decay=SMOOTH, deviation=deviation, colors=colors)
        return composed(image, grounds(grounds.init(shape, streams)).to(image))

    def worth(self, scores: Tensor, image: Tensor) -> Tensor:
        """(N,) scores J of what was seen, (N, C + 1, H, W) -> (N,): ``J - |J| mean opacity``."""
        return scores - scores.abs() * image[:, -1].flatten(1).mean(1)
