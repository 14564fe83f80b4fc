"""Phases as free numbers under a fixed magnitude spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.features.parametrizations.colors import from_colors, to_colors
from vizrobust.features.parametrizations.frequencies import mirrored, own_mirrors
from vizrobust.features.parametrizations.protocol import Shape
from vizrobust.features.parametrizations.spectra import magnitudes
from vizrobust.rng import Streams
from vizrobust.spec import spec

# The deviation of an angle that is uniform over the circle.
UNIFORM = math.pi / math.sqrt(3)


@spec
@dataclass(frozen=True)
class Magnitude:
    """z holds the phases of a spectrum whose magnitudes are fixed: MACO (Fel et al. 2023).

    ``image = sigmoid(C contrast irfft2(magnitude exp(i phase)))`` in decorrelated colours C. The phase at frequency f
    is half the difference of z at f and at -f, so every spectrum is that of a real image, at odd sizes as at even
    ones, and what is the same in z at f and -f changes nothing. Where f is its own mirror (the mean, the highest
    frequencies of even sizes) the coefficient is magnitude cos(z). Each image's phases are brought to the deviation
    of a uniform angle, pi / sqrt(3): steps of one size then turn them less and less as z grows, which is what lets
    the paper's learning rate of 1 settle. (Its code brings them to 1, which no natural image has.)

    `spectrum` is None (1 / frequency), a ``.npy`` file of (channels, H, W//2 + 1) magnitudes as ``rfft2`` orders them
    (Horama's ``spectrum_decorrelated.npy``), or a data reference, whose training images' mean magnitudes are used; all
    are brought to the image's size and to one `contrast`, the deviation of the planes before the sigmoid. `colors`
    as in `Fourier`.

    >>> Magnitude()(Magnitude().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    spectrum: str | None = None
    contrast: float = 1.0
    colors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.contrast > 0:
            raise ValueError(f"Magnitude: contrast must be above 0, got {self.contrast:g}")

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        # Half the difference of two numbers uniform over two turns is, as an angle, uniform over one.
        phase = _phase(4 * math.pi * (streams.uniform(*shape) - 0.5))
        return torch.remainder(phase + math.pi, 2 * math.pi) - math.pi

    def __call__(self, z: Tensor) -> Tensor:
        channels, height, width = z.shape[1:]
        # The other half of a real image's spectrum follows from this one.
        half = slice(width // 2 + 1)
        magnitude = self.contrast * magnitudes(self.spectrum, self.colors, channels, height, width)[..., half].to(z)
        # Image by image, as in `to_colors`.
        spectrum = torch.stack([torch.polar(magnitude, _spread(one)) for one in _phase(z)[..., half]])
        return to_colors(torch.fft.irfft2(spectrum, s=(height, width), norm="ortho"), self.colors)

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def invert(self, image: Tensor) -> Tensor:
        """The image's phases: its magnitudes give way to the fixed ones."""
        planes = from_colors(image, self.colors)
        return torch.fft.fft2(planes).angle().to(image.dtype)


def _phase(z: Tensor) -> Tensor:
    """(N, C, H, W): odd in frequency, but z itself where a frequency is its own mirror."""
    return (z - mirrored(z)) / 2 + own_mirrors(z.shape[2], z.shape[3]).to(z) * z


def _spread(phase: Tensor) -> Tensor:
    """(...) -> (...): the phases of one image, their mean square that of a uniform angle."""
    return phase * (UNIFORM / phase.square().mean().clamp_min(1e-12).sqrt())
