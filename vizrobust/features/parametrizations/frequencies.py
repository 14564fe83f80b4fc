"""The plane of frequencies: where each coefficient lies, and a Fourier transform whose coefficients are all real and free."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


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


def mirrored(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H, W): the number at each frequency f becomes that at -f."""
    return x.flip(-2, -1).roll((1, 1), (-2, -1))


@lru_cache(maxsize=16)
def own_mirrors(height: int, width: int) -> Tensor:
    """(H, W): 1 where a frequency is its own negative, as the constant term is, else 0."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return ((2 * y % height == 0) & (2 * x % width == 0)).to(torch.float32)
