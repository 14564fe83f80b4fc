"""MACO's random crops: several windows of every image, each with a place and a size of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vizrobust.features.transforms.sampling import Matrices, Size, affine, sampled
from vizrobust.rng import Streams
from vizrobust.spec import spec


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

    def still(self, size: Size) -> bool:
        return self.count == self.low == 1 and self.window(size) == size

    def maps(self, draws: Matrices, size: Size) -> Matrices:
        share, y, x = draws.reshape(len(draws), self.count, 3).transpose(2, 1, 0).reshape(3, -1)
        side = self.low + (self.high - self.low) * share
        height, width = self.window(size)
        y, x = size[0] * (1 - side) * (y - 0.5), size[1] * (1 - side) * (x - 0.5)
        return affine(len(side), side * size[1] / width, 0, 0, side * size[0] / height, x, y)

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        return sampled(image, (self,), streams)[0]
