"""What a data set is: three splits of images in [0, 1] with labels, and what it knows about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from vizrobust.data.moments import Moments, mean_magnitude, moments

SPLITS = ("train", "val", "test")
STATISTICS_IMAGES = 10_000
STATISTICS_PIXELS = 100_000_000
STATISTICS_BATCH = 250
SPECTRUM_IMAGES = 2_000
KEPT_BYTES = 500_000_000


class Split(Protocol):
    """Images of one split: ``take(index)`` gives (k, C, H, W) float32 in [0, 1]; `labels` is (n,) int64."""

    @property
    def labels(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ArraySplit:
    """Images held in memory: `pixels` (n, C, H, W), uint8 or float in [0, 1]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Tensor:
        chosen = self.pixels[index]
        return chosen.to(torch.float32) / 255 if chosen.dtype == torch.uint8 else chosen.to(torch.float32)


@dataclass(frozen=True)
class FileSplit:
    """Images read when they are asked for: `read(path)` gives (C, H, W) uint8."""

    paths: tuple[str, ...]
    labels: Tensor
    read: Callable[[str], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> Tensor:
        return torch.stack([self.read(self.paths[i]) for i in index.tolist()]).to(torch.float32) / 255


@dataclass(frozen=True)
class Subset:
    """Some images of another split, in the order of `index` (n,)."""

    whole: Split
    index: Tensor

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> Tensor:
        return self.whole.take(self.index[index])


def kept(split: Split) -> Split:
    """A split of files read once and held in memory, if it takes at most 500 MB there; any other split as it is."""
    if not isinstance(split, FileSplit) or len(split) * split.read(split.paths[0]).numel() > KEPT_BYTES:
        return split
    return ArraySplit(torch.stack([split.read(path) for path in split.paths]), split.labels)


def first(split: Split, n: int) -> Split:
    """The first n images of a split (all of them where it has fewer)."""
    return Subset(split, torch.arange(min(n, len(split))))


@dataclass(frozen=True)
class DataSet:
    """A data set by name. `eps` is the usual L-inf radius of its adversarial examples, in [0, 1] pixels.

    `shape` is (C, H, W). Raises ``ValueError`` for a split that is empty or has a label without a class.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    val: Split
    test: Split
    eps: float

    def __post_init__(self) -> None:
        for name in SPLITS:
            labels = self.split(name).labels
            if len(labels) == 0:
                raise ValueError(f"{self.name}: the {name} split is empty; give it at least one image")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                wrong, most = low if low < 0 else high, len(self.classes) - 1
                raise ValueError(f"{self.name}: the {name} split has label {wrong}; expected 0 to {most}, counting from 0")

    def split(self, name: str) -> Split:
        """The split called `name`; ``ValueError`` for another name."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are: {', '.join(SPLITS)}")
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @cached_property
    def _moments(self) -> Moments:
        """Over training images at even distances, at most 10,000 of them and 100 million pixels."""
        return moments(self._sample(STATISTICS_IMAGES))

    def _sample(self, most: int) -> Iterator[Tensor]:
        """Training images at even distances in batches, at most so many and 100 million pixels."""
        most = min(most, max(1, STATISTICS_PIXELS // (self.shape[1] * self.shape[2])))
        index = torch.arange(0, len(self.train), -(-len(self.train) // most))
        return (self.train.take(part) for part in torch.split(index, STATISTICS_BATCH))

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Training mean per channel."""
        return tuple(round(v, 4) for v in self._moments.mean.tolist())

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Training standard deviation per channel, over all pixels; ``ValueError`` where a channel never varies."""
        found = tuple(round(v, 4) for v in self._moments.covariance.diagonal().clamp(min=0).sqrt().tolist())
        if 0 in found:
            raise ValueError(f"{self.name}: channel {found.index(0)} is the same in all training images; give images that vary")
        return found

    @property
    def color_covariance(self) -> Tensor:
        """(C, C) float64: covariance of the channels over all training pixels."""
        return self._moments.covariance

    def magnitude(self, planes: Tensor) -> Tensor:
        """(P, H, W) float64: mean magnitude spectrum of at most 2,000 training images, as planes (P, C) of their channels."""
        return mean_magnitude(self._sample(SPECTRUM_IMAGES), planes)

    @property
    def saturated_share(self) -> float:
        """Share of pixels below .02 or above .98 in the data set's own images."""
        return self._moments.saturated
