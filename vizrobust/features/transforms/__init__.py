"""Random transforms that a feature image must survive, each image with its own stream of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.features.transforms.geometry import Affine, Flip, Jitter, Rotate, Scale, Shift, check_share
from vizrobust.features.transforms.sampling import EDGES, GeometricTransform, Matrices, Size, affine, sampled
from vizrobust.plugins import Catalogue
from vizrobust.rng import Streams
from vizrobust.spec import named, spec


@spec
@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of deviation `sigma`, a share of the image's shorter side; the edge is mirrored. Nothing is random.

    >>> Blur(sigma=0.1)(torch.ones(1, 1, 8, 8), Streams(0, [0])).allclose(torch.ones(1, 1, 8, 8))
    True
    """

    sigma: float = 1 / 128

    def __post_init__(self) -> None:
        check_share("Blur", "sigma", self.sigma)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        sigma = self.sigma * min(image.shape[2:])
        if sigma == 0:
            return image
        # A mirror shows no more than the image has.
        radius = min(math.ceil(4 * sigma), min(image.shape[2:]) - 1)
        kernel = _gaussian(sigma, radius).to(image)
        channels = image.shape[1]
        image = F.pad(image, [radius] * 4, mode="reflect")
        image = F.conv2d(image, kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(image, kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


@spec
@dataclass(frozen=True)
class Noise:
    """Normal noise of this `deviation` on every pixel; values may leave [0, 1], because a clip would stop gradients.

    >>> Noise()(torch.zeros(2, 3, 8, 8), Streams(0, range(2))).std() < 0.1
    tensor(True)
    """

    deviation: float = 0.05

    def __post_init__(self) -> None:
        check_share("Noise", "deviation", self.deviation)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        seeds = (streams.uniform(2) * 2**24).to(torch.int64)
        if self.deviation == 0:
            return image
        # A generator for each image: eight times as fast as drawing every pixel from its stream.
        generator, shape = torch.Generator(), image.shape[1:]
        ours = (seeds[:, 0] << 24 | seeds[:, 1]).tolist()
        noise = torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in ours])
        return image + self.deviation * noise.to(image)


@lru_cache(maxsize=16)
def _gaussian(sigma: float, radius: int) -> Tensor:
    """(2 radius + 1,) float64 weights of sum 1."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return weights / weights.sum()


@spec
@dataclass(frozen=True)
class Crops:
    """`count` random windows of every image, each with a place and a side (a share of the image's, low … high) of its own.

    (N, C, H, W) -> (count * N, C, height, width): row j * N + i is window j of image i, resampled to `pixels` rows and
    as many columns as keep its shape; None is the image's own size. Windows never reach over the edge (Fel et al. 2023).

    >>> import torch
    >>> Crops(count=2, pixels=10)(torch.rand(3, 1, 40, 32), Streams(0, range(3))).shape
    torch.Size([6, 1, 10, 8])
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

    @property
    def draws(self) -> int:
        return 3 * self.count

    def window(self, size: Size) -> Size:
        return size if self.pixels is None else (self.pixels, max(1, round(self.pixels * size[1] / size[0])))

    def is_identity(self, size: Size) -> bool:
        return self.count == self.low == 1 and self.window(size) == size

    def matrices(self, draws: Matrices, size: Size) -> Matrices:
        share, y, x = draws.reshape(len(draws), self.count, 3).transpose(2, 1, 0).reshape(3, -1)
        side = self.low + (self.high - self.low) * share
        height, width = self.window(size)
        y, x = size[0] * (1 - side) * (y - 0.5), size[1] * (1 - side) * (x - 0.5)
        return affine(len(side), side * size[1] / width, 0, 0, side * size[0] / height, x, y)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        return sampled(image, (self,), streams)[0]


__all__ = [
    "TRANSFORMS", "Affine", "Blur", "Crops", "Flip", "Jitter", "Noise", "Pad", "Rotate", "Scale", "Shift", "Transform",
    "transformed",
]  # fmt: skip


class Transform(Protocol):
    """``transform(image, streams)``: (N, C, H, W) -> (N, C, H, W), from crops (count * N, …); identity at strength 0."""

    def __call__(self, image: Tensor, streams: Streams) -> Tensor: ...


@spec
@dataclass(frozen=True)
class Pad:
    """What transforms find outside of the image: `mode` constant (`value`), wrap (the image again) or reflect.

    It applies to the geometric transforms behind it in a tuple, without limit. Without a Pad the picture is mirrored. Raises
    ``ValueError`` for another mode and a value outside [0, 1].

    >>> import torch
    >>> transformed(torch.ones(1, 1, 4, 4), (Pad(value=0.0), Shift(size=0.5)), Streams(0, [0])).mean() < 1
    tensor(True)
    """

    value: float = 0.5
    mode: str = "constant"

    def __post_init__(self) -> None:
        check_share("Pad", "value", self.value)
        if self.mode not in EDGES:
            raise ValueError(f"Pad: mode must be one of {', '.join(EDGES)}, got {self.mode!r}")

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        return image


TRANSFORMS = Catalogue(named(Jitter, Scale, Rotate, Shift, Affine, Flip, Crops, Pad, Blur, Noise), "transforms")


def transformed(image: Tensor, transforms: tuple[Transform, ...], streams: Streams) -> Tensor:
    """The images (N, C, H, W) after all transforms; each unbroken run of geometric transforms is one resampling.

    Geometric transforms multiply as matrices, so nothing is cut off between them. `Crops` makes (count * N, C, …), crop by
    crop, and transforms behind it are drawn anew for each crop.
    """
    for moves, edge, then in _stages(transforms):
        image, streams = sampled(image, moves, streams, edge.mode, edge.value)
        if then is not None:
            image = then(image, streams)
    return image


@lru_cache(maxsize=64)
def _stages(transforms: tuple[Transform, ...]) -> list[tuple[tuple[GeometricTransform, ...], Pad, Transform | None]]:
    """Runs of moves, the edge that they see, and what comes after each run."""
    stages: list[tuple[tuple[GeometricTransform, ...], Pad, Transform | None]] = []
    edge = Pad(mode="reflect")
    run: tuple[GeometricTransform, ...] = ()
    for transform in transforms:
        if isinstance(transform, GeometricTransform):
            run = (*run, transform)
            continue
        stages.append((run, edge, None if isinstance(transform, Pad) else transform))
        edge, run = transform if isinstance(transform, Pad) else edge, ()
    return [*stages, (run, edge, None)]
