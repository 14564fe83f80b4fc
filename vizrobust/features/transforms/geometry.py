"""Random moves of the picture: jitter, scale, rotation, shift, flip; amplitudes are shares of the image's side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from vizrobust.features.transforms.sampling import GeometricTransform, Matrices, Size, affine, sampled
from vizrobust.rng import Streams
from vizrobust.spec import spec


class Move:
    """A geometric transform by itself: (N, C, H, W) -> the same shape, each image by its own stream."""

    def __call__(self: GeometricTransform, image: Tensor, streams: Streams) -> Tensor:
        return sampled(image, (self,), streams)[0]


@spec
@dataclass(frozen=True)
class Jitter(Move):
    """Shift by whole pixels, up to `size` of the image's side in each direction (never a whole side), without resampling.

    Lucid's ``jitter(d)`` is a random crop of d pixels less, which moves by d / 2 in each direction:
    ``Jitter(size=d / 2 / side)``. Raises ``ValueError`` for a size outside [0, 1].

    >>> import torch
    >>> image = torch.rand(2, 3, 32, 32)
    >>> Jitter()(image, Streams(0, range(2))).shape, torch.equal(Jitter(size=0.0)(image, Streams(0, range(2))), image)
    (torch.Size([2, 3, 32, 32]), True)
    """

    draws: ClassVar[int] = 2
    size: float = 1 / 16

    def __post_init__(self) -> None:
        check_share("Jitter", "size", self.size)

    def is_identity(self, size: Size) -> bool:
        return self.reach(size) == (0, 0)

    def reach(self, size: Size) -> Size:
        return min(round(self.size * size[0]), size[0] - 1), min(round(self.size * size[1]), size[1] - 1)

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        dy, dx = self.reach(size)
        y, x = np.floor(draws[:, 0] * (2 * dy + 1)) - dy, np.floor(draws[:, 1] * (2 * dx + 1)) - dx
        return affine(len(draws), 1, 0, 0, 1, x, y)


@spec
@dataclass(frozen=True)
class Scale(Move):
    """Zoom about the centre by a factor from 1 - `size` to 1 + `size`, uniform, or one of `choices` evenly spaced factors.

    A factor above 1 enlarges the picture. Lucid's list .90, .92 … 1.10 is ``Scale(size=0.1, choices=11)``. Raises
    ``ValueError`` for a size outside [0, 1).

    >>> import torch
    >>> Scale()(torch.rand(2, 3, 8, 8), Streams(0, range(2))).shape
    torch.Size([2, 3, 8, 8])
    """

    draws: ClassVar[int] = 1
    size: float = 0.1
    choices: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.size < 1:
            raise ValueError(f"Scale: size must be at least 0 and less than 1, got {self.size:g}")
        _check_choices("Scale", self.choices)

    def is_identity(self, size: Size) -> bool:
        return self.size == 0

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        # Zooming in by z means looking at a part of the image that is z times smaller.
        part = 1 / (1 + self.size * spread(draws[:, 0], self.choices))
        return affine(len(draws), part, 0, 0, part)


@spec
@dataclass(frozen=True)
class Rotate(Move):
    """Rotate about the centre by up to `degrees` in either direction, uniform, or one of `choices` evenly spaced angles.

    With probability `still_share` there is no rotation. Lucid's list -10, -9 … 10 with five zeros more is
    ``Rotate(degrees=10, choices=21, still_share=5/26)``. Raises ``ValueError`` for more than 180 degrees.

    >>> import torch
    >>> Rotate()(torch.rand(2, 3, 8, 8), Streams(0, range(2))).shape
    torch.Size([2, 3, 8, 8])
    """

    draws: ClassVar[int] = 2
    degrees: float = 10.0
    choices: int | None = None
    still_share: float = 0.0

    def __post_init__(self) -> None:
        _check_degrees("Rotate", "degrees", self.degrees)
        _check_choices("Rotate", self.choices)
        check_share("Rotate", "still_share", self.still_share)

    def is_identity(self, size: Size) -> bool:
        return self.degrees == 0 or self.still_share == 1

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        turns = draws[:, 0] >= self.still_share
        angle = np.where(turns, np.radians(self.degrees) * spread(draws[:, 1], self.choices), 0.0)
        cos, sin = np.cos(angle), np.sin(angle)
        return affine(len(draws), cos, -sin, sin, cos)


@spec
@dataclass(frozen=True)
class Shift(Move):
    """Shift by up to `size` of the image's side in each direction, also by fractions of a pixel (bilinear).

    >>> import torch
    >>> Shift()(torch.rand(2, 3, 8, 8), Streams(0, range(2))).shape
    torch.Size([2, 3, 8, 8])
    """

    draws: ClassVar[int] = 2
    size: float = 1 / 16

    def __post_init__(self) -> None:
        check_share("Shift", "size", self.size)

    def is_identity(self, size: Size) -> bool:
        return self.size == 0

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        y, x = (2 * draws.T - 1) * self.size
        return affine(len(draws), 1, 0, 0, 1, x * size[1], y * size[0])


@spec
@dataclass(frozen=True)
class Affine(Move):
    """Scale, rotation and shift together, each uniform between its bounds (the zoom on a logarithmic scale).

    `scale` is the largest relative zoom in or out, `rotate` the largest angle in degrees, `shift` the largest shift as a share
    of the image's side.

    >>> import torch
    >>> Affine(shift=0.1)(torch.rand(2, 3, 8, 8), Streams(0, range(2))).shape
    torch.Size([2, 3, 8, 8])
    """

    draws: ClassVar[int] = 4
    scale: float = 0.1
    rotate: float = 10.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_share("Affine", "scale", self.scale)
        check_share("Affine", "shift", self.shift)
        _check_degrees("Affine", "rotate", self.rotate)

    def is_identity(self, size: Size) -> bool:
        return self.scale == self.rotate == self.shift == 0

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        zoom, turn, x, y = 2 * draws.T - 1
        part = np.exp(-zoom * math.log1p(self.scale))
        cos, sin = np.cos(np.radians(self.rotate) * turn), np.sin(np.radians(self.rotate) * turn)
        x, y = self.shift * size[1] * x, self.shift * size[0] * y
        return affine(len(draws), part * cos, -part * sin, part * sin, part * cos, x, y)


@spec
@dataclass(frozen=True)
class Flip(Move):
    """Flip left to right with probability `share`. No recipe has it, because it hides whether a unit tells left from right.

    >>> import torch
    >>> image = torch.rand(1, 3, 8, 8)
    >>> torch.allclose(Flip(share=1.0)(image, Streams(0, [0])), image.flip(3), atol=1e-5)
    True
    """

    draws: ClassVar[int] = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        check_share("Flip", "share", self.share)

    def is_identity(self, size: Size) -> bool:
        return self.share == 0

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        return affine(len(draws), np.where(draws[:, 0] < self.share, -1.0, 1.0), 0, 0, 1)


def spread(draws: Matrices, choices: int | None) -> Matrices:
    """Uniform numbers in [0, 1) -> [-1, 1), or one of so many values from -1 to 1; a single one is 1."""
    if choices is None:
        return 2 * draws - 1
    return np.linspace(1, -1, choices)[np.floor(draws * choices).astype(int)]


def check_share(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be between 0 and 1, got {value:g}")


def _check_degrees(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 180:
        raise ValueError(f"{owner}: {name} must be between 0 and 180 degrees, got {value:g}")


def _check_choices(owner: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{owner}: choices must be at least 1, got {value}")
