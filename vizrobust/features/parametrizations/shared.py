"""Several images of one unit that share their large structure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from vizrobust.features.parametrizations.fourier import Fourier
from vizrobust.features.parametrizations.magnitude import Magnitude
from vizrobust.features.parametrizations.protocol import Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec


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
