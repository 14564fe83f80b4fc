"""What the power spectrum of a picture says: noise, grids and other marks of a network's own grain."""

from __future__ import annotations

import torch
from torch import Tensor

# The power of rounding to 8 bits at every frequency: what is below it no picture holds. A step's variance is 1/12 step^2.
ROUNDING = (1 / 255) ** 2 / 12
SMALLEST = 4
HIGH = 0.25  # cycles per pixel


def spectrum_distance(images: Tensor, natural: Tensor) -> Tensor:
    """Distance of radial log-power profiles: (N, C, H, W), (n, C', H, W) -> (N,) float64, smaller = more natural.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): a random network's may come out best. An image's profile is the mean
    of log10 power on each ring of frequencies from one cycle per image to half a cycle per pixel; the distance is the
    root mean square, over rings, of its difference from the natural images' mean profile. 0 for a natural average,
    1 for an image with ten times the power everywhere. Raises ``ValueError`` where sizes differ.

    >>> noise = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    >>> spectrum_distance(noise, noise).max() < spectrum_distance(0.1 * noise, noise).min()
    tensor(True)
    """
    if images.shape[2:] != natural.shape[2:] or len(natural) == 0:
        sizes = f"{tuple(images.shape[2:])} and {len(natural)} of {tuple(natural.shape[2:])}"
        raise ValueError(f"spectra are compared with natural images of the same size, got {sizes}")
    return (_profile(images) - _profile(natural).mean(0)).square().mean(1).sqrt()


def high_frequency_share(images: Tensor) -> Tensor:
    """Share of an image's power above 1/4 cycle per pixel: (N, C, H, W) -> (N,) float64 in [0, 1], smaller = less noise.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): read it beside the natural images' own. The mean is left out;
    white noise has about .80, an image without any contrast 0.

    >>> stripes = torch.arange(8.0) % 2 * torch.ones(1, 1, 8, 1)
    >>> ramp = torch.arange(8.0) / 7 * torch.ones(1, 1, 8, 1)
    >>> high_frequency_share(torch.cat((stripes, ramp))).round(decimals=2)
    tensor([1.0000, 0.1600], dtype=torch.float64)
    """
    power = _power(images)
    power[:, 0, 0] = 0
    # Frequencies are fractions: one that is exactly 1/4 is not above it, however its square was rounded.
    high = _radius(power) > HIGH + 1e-9
    total = power.sum((1, 2)).clamp(min=ROUNDING * (power[0].numel() - 1))
    return power[:, high].sum(1) / total


def nyquist_ratio(images: Tensor) -> Tensor:
    """Power at the Nyquist frequency over that just below it: (N, C, H, W) -> (N,) float64, above 1 = a two-pixel grid.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): strided convolutions leave such a grid (.92 for natural images of
    Imagenette). Summed are the rows and columns of the spectrum at exactly 1/2 cycle per pixel and their neighbours. Only
    an even number of pixels has that frequency, so an odd height or width loses its last row or column. 1 for white noise
    on average and for an image without contrast. Raises ``ValueError`` below 4 pixels.

    >>> grid = torch.arange(6.0) % 2 * torch.ones(1, 1, 6, 1)
    >>> bool(nyquist_ratio(0.5 + 0.01 * grid) > 2), nyquist_ratio(0 * grid)
    (True, tensor([1.], dtype=torch.float64))
    """
    height, width = (side - side % 2 for side in images.shape[2:])
    power = _power(images[..., :height, :width])
    at = power[:, height // 2].sum(1) + power[:, :, width // 2].sum(1)
    below = power[:, height // 2 - 1].sum(1) + power[:, :, width // 2 - 1].sum(1)
    rounding = ROUNDING * (height + width)
    return (at + rounding) / (below + rounding)


def _power(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W): mean over channels of the squared magnitudes of the orthonormal Fourier transform."""
    if images.dim() != 4 or min(images.shape[2:]) < SMALLEST:
        raise ValueError(f"spectra need images (N, C, H, W) of at least {SMALLEST} pixels, got {tuple(images.shape)}")
    return torch.fft.fft2(images.to(torch.float64), norm="ortho").abs().square().mean(1)


def _radius(power: Tensor) -> Tensor:
    """(H, W): how far from 0 each frequency is, in cycles per pixel."""
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in power.shape[1:])
    return torch.hypot(down[:, None], across)


def _profile(images: Tensor) -> Tensor:
    """(N, rings): the mean log10 power on rings one cycle per (shorter side of the) image wide; the corners are left out."""
    power = _power(images)
    side = min(power.shape[1:])
    ring = (_radius(power) * side + 0.5).floor().long()
    kept = (ring >= 1) & (ring <= side // 2)
    flat = (power[:, kept] + ROUNDING).log10()
    index = ring[kept] - 1
    totals = torch.zeros(len(images), side // 2, dtype=torch.float64).index_add_(1, index, flat)
    return totals / torch.bincount(index, minlength=side // 2)
