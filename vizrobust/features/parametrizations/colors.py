"""Decorrelated colours: the directions in which the channels of natural images vary independently."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Colour directions of ImageNet (Olah et al. 2017): columns are luminance, red-blue, green-magenta; rows R, G, B.
IMAGENET_COLORS = (0.26, 0.09, 0.02, 0.27, 0.00, -0.05, 0.27, -0.09, 0.03)

# What `from_colors` can bring back: nearer to 0 and 1 a sigmoid has next to no gradient.
DARKEST, BRIGHTEST = 0.02, 0.98

Colors = tuple[float, ...] | None


def color_directions(covariance: Tensor) -> tuple[float, ...]:
    """(C, C) covariance of the channels -> C x C numbers, row by row: principal directions times deviations."""
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64))
    directions = vectors.flip(1) * values.flip(0).clamp_min(0).sqrt()
    # An eigenvector's sign is arbitrary: the first channel that matters points up, so that the text is stable.
    signs = torch.where(directions.sum(0) < 0, -1.0, 1.0)
    return tuple(round(value, 4) + 0.0 for value in (directions * signs).flatten().tolist())


@lru_cache(maxsize=16)
def mixing(colors: Colors, channels: int) -> Tensor:
    """(channels, channels): planes to channels, the longest column of length 1.

    None is ImageNet's matrix for three channels and the identity for any other number.
    """
    if not colors:
        if channels != 3:
            return torch.eye(channels)
        colors = IMAGENET_COLORS
    if len(colors) != channels**2:
        raise ValueError(f"colors needs {channels} x {channels} numbers for {channels} channels, got {len(colors)}")
    matrix = torch.tensor(colors).reshape(channels, channels)
    return matrix / matrix.norm(dim=0).max().clamp_min(1e-8)


@lru_cache(maxsize=16)
def unmixing(colors: Colors, channels: int) -> Tensor:
    """(channels, channels) float64: channels to planes, the (pseudo-)inverse of `mixing`."""
    return torch.linalg.pinv(mixing(colors, channels).to(torch.float64))


def to_colors(planes: Tensor, colors: Colors) -> Tensor:
    """Decorrelated planes (N, C, H, W) -> images (N, C, H, W) in (0, 1); planes of 0 are mid-grey."""
    matrix = mixing(colors, planes.shape[1])
    if len(matrix) > 1:
        planes = torch.einsum("rc,nchw->nrhw", matrix.to(planes), planes)
    # Image by image: the last few numbers of a tensor are rounded by another routine than the rest of it.
    return torch.stack([torch.sigmoid(image) for image in planes])


def from_colors(image: Tensor, colors: Colors) -> Tensor:
    """Images (N, C, H, W) -> the planes that `to_colors` makes them from; pixels beyond .02 and .98 are brought there."""
    logits = torch.logit(image.to(torch.float64).clamp(DARKEST, BRIGHTEST))
    return torch.einsum("cr,nrhw->nchw", unmixing(colors, image.shape[1]).to(logits), logits)
