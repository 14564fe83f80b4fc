"""Augmentations of training images by name, each image from its own stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vizrobust.features.transforms import Jitter
from vizrobust.rng import Streams

Augmentation = Callable[[Tensor, Streams], Tensor]

SHIFT = 1 / 8
WINDOW = 3 / 4
# `heavy`: the ground rises to at most this, the contrast falls to at least that, and noise goes up to this deviation.
LIGHTEST_GROUND, LOWEST_CONTRAST, STRONGEST_NOISE = 0.5, 0.3, 0.3
# The widest blur's deviation in pixels of an image 28 px wide; wider images are blurred in proportion.
WIDEST_BLUR = 1.5


def none(x: Tensor, streams: Streams) -> Tensor:  # noqa: ARG001
    """The images as they are."""
    return x


def crop(x: Tensor, streams: Streams) -> Tensor:
    """Shifts of up to an eighth of the side, mirrored at the edge."""
    return Jitter(size=SHIFT)(x, streams.child("crop"))


def crop_flip(x: Tensor, streams: Streams) -> Tensor:
    """As `crop`, and every other image left to right."""
    mirrored = streams.child("flip").uniform(1, 1, 1).to(x) < 0.5
    x = crop(x, streams)
    return torch.where(mirrored, x.flip(3), x)


def window_flip(x: Tensor, streams: Streams) -> Tensor:
    """Windows of three quarters of each side, at random places, and every other one left to right.

    A network that ends in a mean over the map takes them as they are, at 9/16 of the cost of whole images; things
    keep their size in pixels, so it is tested on whole images.
    """
    height, width = (round(WINDOW * side) for side in x.shape[2:])
    mirrored = streams.child("flip").uniform(1, 1, 1).to(x) < 0.5
    place = streams.child("window").uniform(2)
    free = torch.tensor([x.shape[2] - height + 1, x.shape[3] - width + 1])
    corners = (place * free).floor().long().minimum(free - 1)
    x = torch.stack([image[:, i : i + height, j : j + width] for image, (i, j) in zip(x, corners.tolist(), strict=True)])
    return torch.where(mirrored, x.flip(3), x)


def heavy(x: Tensor, streams: Streams) -> Tensor:
    """As `crop`, then a lighter ground, less contrast, blur and noise, each to a random degree: for judges.

    A judge looks at feature images, which have grey grounds and noise that no photograph has; one that was trained
    on clean images alone gives them all the same class.
    """
    from torchvision.transforms.functional import gaussian_blur

    ground, contrast, blur, noise = streams.child("degree").uniform(4, 1, 1, 1).to(x).unbind(1)
    x = crop(x, streams)
    low = LIGHTEST_GROUND * ground
    x = low + (1 - low) * (LOWEST_CONTRAST + (1 - LOWEST_CONTRAST) * contrast) * x
    sigma = WIDEST_BLUR * x.shape[3] / 28
    x = x + blur * (gaussian_blur(x, [2 * round(2 * sigma) + 1] * 2, [sigma] * 2) - x)
    return (x + STRONGEST_NOISE * noise * streams.child("noise").normal(*x.shape[1:]).to(x)).clamp(0, 1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "crop": crop,
    "crop+flip": crop_flip,
    "window+flip": window_flip,
    "heavy": heavy,
}
