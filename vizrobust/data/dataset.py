"""What a data set is: three splits of images in [0, 1] with labels, and what it knows about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from vizrobust.rng import Streams

SPLITS = ("train", "val", "test")
STATISTICS_IMAGES = 10_000
DARK, BRIGHT = 0.02, 0.98


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


def first(split: Split, n: int) -> Split:
    """The first n images of a split (all of them where it has fewer)."""
    return Subset(split, torch.arange(min(n, len(split))))


@dataclass(frozen=True)
class DataSet:
    """A data set by name. `eps` is the usual L-inf radius of its adversarial examples, in [0, 1] pixels."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    val: Split
    test: Split
    eps: float

    def split(self, name: str) -> Split:
        """The split called `name`; ``ValueError`` for another name."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are: {', '.join(SPLITS)}")
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @cached_property
    def _sample(self) -> Tensor:
        """At most 10,000 training images at even distances, for the statistics."""
        step = max(1, -(-len(self.train) // STATISTICS_IMAGES))
        return self.train.take(torch.arange(0, len(self.train), step))

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Training mean per channel."""
        return tuple(round(v, 4) for v in self._sample.to(torch.float64).mean((0, 2, 3)).tolist())

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Training standard deviation per channel, over all pixels."""
        return tuple(round(v, 4) for v in self._sample.to(torch.float64).std((0, 2, 3), correction=0).tolist())

    @cached_property
    def color_covariance(self) -> Tensor:
        """(C, C) float64: covariance of the channels over all training pixels."""
        pixels = self._sample.to(torch.float64).movedim(1, 0).flatten(1)
        return torch.cov(pixels, correction=0).reshape(len(pixels), len(pixels))

    @cached_property
    def saturated_share(self) -> float:
        """Share of pixels below .02 or above .98 in the data set's own images."""
        return float(saturated_share(self._sample).mean())


def saturated_share(x: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (N,): the share of pixels below .02 or above .98."""
    return ((x < DARK) | (x > BRIGHT)).to(torch.float32).mean((1, 2, 3))


def stratified(labels: Tensor, shares: tuple[float, ...], streams: Streams) -> tuple[Tensor, ...]:
    """Disjoint index sets that hold `shares` (summing to 1) of every class, each in a random order of its own."""
    order = streams.permutation(len(labels))[0]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for kind in torch.unique(labels).tolist():
        of_kind = order[labels[order] == kind]
        ends = [round(sum(shares[: k + 1]) * len(of_kind)) for k in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part.append(of_kind[start:end])
    joined = [torch.cat(part) for part in parts]
    return tuple(index[streams.permutation(len(index))[0]] for index in joined)
