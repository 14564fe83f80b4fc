"""Sizes of patterns for an image of any size, from those published for 32 and for 224 pixels."""

from __future__ import annotations

from torch import Tensor


def side(x: Tensor) -> int:
    """The shorter side of images (N, C, H, W), in pixels: what patterns are scaled by."""
    return min(x.shape[-2:])


def between(x: Tensor, small: float, large: float) -> float:
    """On the line through `small` at 32 pixels and `large` at 224, but no further down than at 32 pixels.

    >>> import torch
    >>> [between(torch.empty(1, 3, size, size), 4, 16) for size in (28, 32, 128, 224)]
    [4.0, 4.0, 10.0, 16.0]
    """
    return small + (large - small) * max(side(x) - 32, 0) / 192
