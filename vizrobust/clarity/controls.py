"""Controls: the same pictures after a change that should not matter if clarity is more than contrast or little noise."""

from __future__ import annotations

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor


def contrast_matched(images: Tensor, reference: Tensor) -> Tensor:
    """Each image at the natural images' average mean and deviation, clipped: (N, C, H, W), (n, C, H', W') -> (N, C, H, W).

    Mean and deviation are over all pixels and channels of an image, so that hues keep their order; clipping to
    [0, 1] comes last and takes a little of both. An image without any contrast stays without.

    >>> flat, natural = torch.full((1, 1, 2, 2), 0.9), torch.tensor([0.2, 0.4]).expand(1, 1, 2, 2)
    >>> contrast_matched(torch.eye(2)[None, None], natural)
    tensor([[[[0.4000, 0.2000],
              [0.2000, 0.4000]]]])
    >>> contrast_matched(flat, natural).unique()
    tensor([0.3000])
    """
    if len(reference) == 0:
        raise ValueError("contrast is matched to natural images: give at least one")
    mean, deviation = (value.mean() for value in _moments(reference))
    own_mean, own_deviation = _moments(images)
    scale = torch.where(own_deviation > 1e-6, deviation / own_deviation.clamp(min=1e-6), 0.0)
    centred = images.to(torch.float64) - own_mean[:, None, None, None]
    return (mean + scale[:, None, None, None] * centred).clamp(0, 1).to(images.dtype)


def blurred(images: Tensor, sigma: float = 1.0) -> Tensor:
    """(N, C, H, W) after a Gaussian blur of `sigma` pixels, mirrored at the edges; the mean of each channel stays.

    >>> blurred(torch.eye(3)[None, None], sigma=0.0)[0, 0].diagonal()
    tensor([1., 1., 1.])
    """
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"a blur needs a deviation of at least 0 pixels, got {sigma:g}")
    return torch.from_numpy(gaussian_filter(images.cpu().numpy(), sigma, mode="reflect", axes=(2, 3))).to(images)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N,), (N,) float64: mean and deviation of each image."""
    flat = images.to(torch.float64).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)
