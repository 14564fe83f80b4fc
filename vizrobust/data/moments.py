"""What the training pixels of a data set are like: mean, colour covariance, magnitude spectrum, share of saturated pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DARK, BRIGHT = 0.02, 0.98


@dataclass(frozen=True)
class Moments:
    """`mean` (C,) and `covariance` (C, C) of the channels over all pixels, float64; `saturated` is a share in [0, 1]."""

    mean: Tensor
    covariance: Tensor
    saturated: float


def moments(batches: Iterable[Tensor]) -> Moments:
    """The moments of all images in `batches`, each (n, C, H, W) in [0, 1]; one batch is in memory at a time."""
    count, saturated, images = 0, 0.0, 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for x in batches:
        pixels = x.to(torch.float64).movedim(1, 0).flatten(1)
        total = total + pixels.sum(1)
        products = products + pixels @ pixels.T
        count += pixels.shape[1]
        saturated += float(saturated_share(x).sum(dtype=torch.float64))
        images += len(x)
    mean = torch.as_tensor(total) / count
    return Moments(mean, torch.as_tensor(products) / count - torch.outer(mean, mean), saturated / images)


def mean_magnitude(batches: Iterable[Tensor], planes: Tensor) -> Tensor:
    """(P, H, W) float64: the mean over all images of the magnitude of their orthonormal 2-D Fourier transform.

    `planes` (P, C) makes planes of the channels first: a mean of magnitudes cannot be taken apart into other planes
    afterwards. The constant term is that of the images as they are, so it says how bright they are.
    """
    total: Tensor | float = 0.0
    images = 0
    for x in batches:
        mixed = torch.einsum("pc,nchw->nphw", planes.to(torch.float64), x.to(torch.float64))
        total = total + torch.fft.fft2(mixed, norm="ortho").abs().sum(0)
        images += len(x)
    return torch.as_tensor(total) / images


def saturated_share(x: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (N,): the share of pixels below .02 or above .98."""
    return ((x < DARK) | (x > BRIGHT)).to(torch.float32).mean((1, 2, 3))
