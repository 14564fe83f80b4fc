"""Random transforms that a feature image must survive, each image with its own stream of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.rng import Streams
from vizrobust.spec import named, spec


class Transform(Protocol):
    """``transform(image, streams)``: (N, C, H, W) -> (N, C, H', W'); differentiable, identity at strength 0."""

    def __call__(self, image: Tensor, streams: Streams) -> Tensor: ...


@spec
@dataclass(frozen=True)
class Jitter:
    """Shift by whole pixels, up to `size` of the image's side each way; what comes in is mirrored. No resampling."""

    size: float = 1 / 16

    def __post_init__(self) -> None:
        _check_share("Jitter", "size", self.size)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        height, width = image.shape[2:]
        # A mirror shows no more than the image has.
        dy, dx = min(round(self.size * height), height - 1), min(round(self.size * width), width - 1)
        offsets = streams.uniform(2)
        if dy == 0 and dx == 0:
            return image
        padded = F.pad(image, (dx, dx, dy, dy), mode="reflect")
        # The streams live on the CPU, so reading the offsets costs no synchronization.
        corners = (offsets * torch.tensor([2 * dy + 1, 2 * dx + 1])).long().tolist()
        crops = [padded[i, :, top : top + height, left : left + width] for i, (top, left) in enumerate(corners)]
        return torch.stack(crops)


@spec
@dataclass(frozen=True)
class Affine:
    """Scale, rotation and shift in one bilinear resampling; what comes in from outside is mirrored.

    `scale` is the largest relative zoom in or out, `rotate` the largest angle in degrees, `shift` the largest
    shift as a share of the image's side.
    """

    scale: float = 0.1
    rotate: float = 10.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        _check_share("Affine", "scale", self.scale)
        _check_share("Affine", "shift", self.shift)
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"Affine: rotate must be between 0 and 180 degrees, got {self.rotate:g}")

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        draws = 2 * streams.uniform(4).to(image) - 1
        if self.scale == self.rotate == self.shift == 0:
            return image
        height, width = image.shape[2:]
        # Zooming in by z means looking at a part of the image that is z times smaller.
        zoom = torch.exp(-draws[:, 0] * math.log1p(self.scale))
        angle = draws[:, 1] * math.radians(self.rotate)
        cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
        dx, dy = 2 * self.shift * draws[:, 2], 2 * self.shift * draws[:, 3]
        # grid_sample's coordinates run from -1 to 1 on both axes; a rotation must not squeeze an oblong image.
        rows = (torch.stack((cos, -sin * height / width, dx), 1), torch.stack((sin * width / height, cos, dy), 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@spec
@dataclass(frozen=True)
class Pad:
    """Enlarge the canvas by `size` of the image's side each way, filled with `value`, so that no edge is special.

    It is the one transform that changes the shape; `transformed` crops back to the image's own.
    """

    size: float = 1 / 8
    value: float = 0.5

    def __post_init__(self) -> None:
        _check_share("Pad", "size", self.size)
        _check_share("Pad", "value", self.value)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        dy, dx = round(self.size * image.shape[2]), round(self.size * image.shape[3])
        return F.pad(image, (dx, dx, dy, dy), value=self.value) if dy or dx else image


@spec
@dataclass(frozen=True)
class Crops:
    """`count` random windows of every image, each with a place and a side (a share of the image's, low ... high) of its own.

    (N, C, H, W) -> (count * N, C, pixels, pixels * W / H): row j * N + i is window j of image i, so that each network
    sees it at `pixels` rows; None is the image's own size. Windows never reach over the edge (MACO: Fel et al. 2023).
    """

    count: int = 6
    low: float = 0.2
    high: float = 0.25
    pixels: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Crops: count must be at least 1, got {self.count}")
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"Crops: low and high must be 0 < low <= high <= 1, got {self.low:g} and {self.high:g}")
        if self.pixels is not None and self.pixels < 1:
            raise ValueError(f"Crops: pixels must be at least 1, got {self.pixels}")

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        draws = streams.uniform(self.count, 3).to(torch.float64).transpose(0, 1).flatten(0, 1)
        height, width = image.shape[2:]
        size = (height, width) if self.pixels is None else (self.pixels, max(1, round(self.pixels * width / height)))
        if self.low == 1 and size == (height, width):
            return image.repeat(self.count, 1, 1, 1)
        side = self.low + (self.high - self.low) * draws[:, 0]
        dy, dx = ((1 - side) * (2 * draws[:, axis] - 1) for axis in (1, 2))
        zero = torch.zeros_like(side)
        theta = torch.stack((torch.stack((side, zero, dx), 1), torch.stack((zero, side, dy), 1)), 1)
        grid = F.affine_grid(theta.to(image), [len(theta), image.shape[1], *size], align_corners=False)
        return F.grid_sample(image.repeat(self.count, 1, 1, 1), grid, padding_mode="reflection", align_corners=False)


TRANSFORMS = named(Jitter, Affine, Pad, Crops)


def transformed(image: Tensor, transforms: tuple[Transform, ...], streams: Streams) -> Tensor:
    """All transforms one after the other, then the centre at the image's own size."""
    height, width = image.shape[2:]
    for transform in transforms:
        image = transform(image, streams if len(streams) == len(image) else _own(streams, len(image)))
        if isinstance(transform, Crops):
            height, width = image.shape[2:]
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[:, :, top : top + height, left : left + width]


def _own(streams: Streams, rows: int) -> Streams:
    """Streams for each of several crops of every image, crop by crop."""
    crop = torch.arange(rows // len(streams)).repeat_interleave(len(streams))
    streams.uniform(2)
    return Streams.of(streams.keys.repeat(len(crop) // len(streams)), streams.drawn * len(crop) + crop)


def _check_share(owner: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be between 0 and 1, got {value:g}")
