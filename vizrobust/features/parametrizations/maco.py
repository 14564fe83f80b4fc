"""MACO: phases as free numbers under a fixed magnitude spectrum (Fel et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vizrobust.data import load
from vizrobust.features.parametrizations.parametrization import (
    Colors,
    Shape,
    falloff,
    from_colors,
    negated_frequencies,
    self_conjugate,
    to_colors,
    unmixing,
)
from vizrobust.rng import Streams
from vizrobust.spec import spec


@lru_cache(maxsize=16)
def magnitudes(source: str | None, colors: Colors, channels: int, height: int, width: int) -> Tensor:
    """(channels, height, width) float64: how large each coefficient of the planes is, in the order of ``fft2``.

    `source` is None (1 / frequency), a ``.npy`` file of (channels, H, W//2 + 1) magnitudes as ``rfft2`` orders them,
    or a data reference, whose images' own mean magnitudes are taken in the planes of `colors`. The planes come out
    with a mean square of 1 over all pixels and planes, the mean of each left out, so contrast is the same at any size.
    Raises ``ValueError`` or ``FileNotFoundError`` for a source that is no spectrum of so many channels.
    """
    if source is None:
        found = torch.ones(channels, 1, 1, dtype=torch.float64)
    elif source.lower().endswith(".npy"):
        found = _flattened(_full_spectrum(_read(source)))
    else:
        data = load(source)
        _check(source, data.shape[0], channels)
        found = _flattened(data.magnitude(unmixing(colors, channels)))
    _check(source, len(found), channels)
    shaped = resampled(found, height, width) * falloff(height, width, 1.0).to(torch.float64)
    power = shaped.square().sum() - shaped[:, 0, 0].square().sum()
    return shaped * (channels * height * width / power.clamp_min(1e-30)).sqrt()


def _check(source: str | None, known: int, channels: int) -> None:
    if known != channels:
        raise ValueError(f"the spectrum {source!r} has {known} channels, the image {channels}; name another")


def resampled(flat: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) -> (C, height, width): linear between the frequencies, which are cycles per pixel and periodic."""
    rows, columns = (_between(length, new) for length, new in zip(flat.shape[1:], (height, width), strict=True))
    return rows @ flat @ columns.T


def _between(length: int, new: int) -> Tensor:
    """(new, length): the weights of the `length` known frequencies at each of `new` ones."""
    # Whole numbers until the division, so that an unchanged size changes nothing.
    frequency = torch.fft.fftfreq(new, 1 / new, dtype=torch.float64).round() * length / new
    below = frequency.floor()
    share = frequency - below
    weights = torch.zeros(new, length, dtype=torch.float64)
    for offset, weight in ((0, 1 - share), (1, share)):
        weights.scatter_add_(1, ((below.long() + offset) % length)[:, None], weight[:, None])
    return weights


def _flattened(magnitude: Tensor) -> Tensor:
    """A spectrum times frequency: nearly flat, so that nothing is lost between two coefficients of a steep peak.

    The constant term becomes the mean of its neighbours, as in `Fourier`. Its own says how bright the images are,
    not how they vary, and would make pictures black or white.
    """
    flat = magnitude / falloff(*magnitude.shape[1:], 1.0).to(magnitude)
    near = [flat[:, y, x] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0)) if flat.shape[1 if y else 2] > 1]
    flat[:, 0, 0] = torch.stack(near).mean(0) if near else flat[:, 0, 0]
    return flat


def _full_spectrum(half: Tensor) -> Tensor:
    """(C, H, W//2 + 1) as ``rfft2`` has it -> (C, H, W): the spectrum of a real image is the same at f and -f.

    Whether W is even the half does not tell; a square image is taken for likely.
    """
    height, kept = half.shape[1:]
    width = 2 * kept - 1 if height == 2 * kept - 1 else max(1, 2 * kept - 2)
    whole = torch.zeros(len(half), height, width, dtype=half.dtype)
    whole[:, :, :kept] = half[:, :, :width]
    missing = torch.arange(width) >= kept
    return torch.where(missing, negated_frequencies(whole), whole)


def _read(path: str) -> Tensor:
    """(C, H, W//2 + 1) float64 from a file; ``ValueError`` for what is no array of magnitudes."""
    try:
        loaded = np.load(Path(path).expanduser(), allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path!r} (the spectrum of MACO)") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path!r} is not a .npy array of numbers ({error})") from error
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu" or loaded.ndim != 3 or loaded.size == 0:
        raise ValueError(f"{path!r} must hold magnitudes shaped (channels, H, W//2 + 1), as numpy.fft.rfft2 orders them")
    if not np.isfinite(loaded).all() or loaded.min() < 0:
        raise ValueError(f"{path!r} holds negative or infinite magnitudes; give the absolute values of a spectrum")
    return torch.from_numpy(loaded.astype(np.float64))


# The deviation of an angle that is uniform over the circle.
UNIFORM = math.pi / math.sqrt(3)


@spec
@dataclass(frozen=True)
class MACO:
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

    >>> MACO()(MACO().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    spectrum: str | None = None
    contrast: float = 1.0
    colors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.contrast > 0:
            raise ValueError(f"MACO: contrast must be above 0, got {self.contrast:g}")

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
    return (z - negated_frequencies(z)) / 2 + self_conjugate(z.shape[2], z.shape[3]).to(z) * z


def _spread(phase: Tensor) -> Tensor:
    """(...) -> (...): the phases of one image, their mean square that of a uniform angle."""
    return phase * (UNIFORM / phase.square().mean().clamp_min(1e-12).sqrt())
