"""A data set: three splits of images in [0, 1] with labels, and the statistics of its training pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vizrobust.requests import MissingFileError
from vizrobust.rng import Streams

DARK, BRIGHT = 0.02, 0.98


@dataclass(frozen=True)
class Moments:
    """`mean` (C,) and `covariance` (C, C) of the channels over all pixels, float64; `saturated` is a share in [0, 1]."""

    mean: Tensor
    covariance: Tensor
    saturated: float


def moments(batches: Iterable[Tensor]) -> Moments:
    """The moments of all images in `batches`, each (n, C, H, W) in [0, 1]; one batch is in memory at a time."""
    count, saturated, images = 0, 0.0, 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for x in batches:
        pixels = x.to(torch.float64).movedim(1, 0).flatten(1)
        total = total + pixels.sum(1)
        products = products + pixels @ pixels.T
        count += pixels.shape[1]
        saturated += float(saturated_share(x).sum(dtype=torch.float64))
        images += len(x)
    mean = torch.as_tensor(total) / count
    return Moments(mean, torch.as_tensor(products) / count - torch.outer(mean, mean), saturated / images)


def mean_magnitude(batches: Iterable[Tensor], planes: Tensor) -> Tensor:
    """(P, H, W) float64: the mean over all images of the magnitude of their orthonormal 2-D Fourier transform.

    `planes` (P, C) makes planes of the channels first: a mean of magnitudes cannot be taken apart into other planes
    afterwards. The constant term is that of the images as they are, so it says how bright they are.
    """
    total: Tensor | float = 0.0
    images = 0
    for x in batches:
        mixed = torch.einsum("pc,nchw->nphw", planes.to(torch.float64), x.to(torch.float64))
        total = total + torch.fft.fft2(mixed, norm="ortho").abs().sum(0)
        images += len(x)
    return torch.as_tensor(total) / images


def saturated_share(x: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (N,): the share of pixels below .02 or above .98."""
    return ((x < DARK) | (x > BRIGHT)).to(torch.float32).mean((1, 2, 3))


SPLITS = ("train", "val", "test")
STATISTICS_IMAGES = 10_000
STATISTICS_PIXELS = 100_000_000
STATISTICS_BATCH = 250
SPECTRUM_IMAGES = 2_000
KEPT_BYTES = 500_000_000


def check_images(x: Tensor, what: str = "images") -> None:
    """Images from outside the library: ``ValueError`` unless they are (N, C, H, W), floating point, finite and in [0, 1].

    >>> check_images(torch.rand(2, 1, 4, 3))
    >>> check_images(torch.zeros(2, 1, 4, 3, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: images are torch.uint8; expected floating point in [0, 1]: divide pixels of 0 to 255 by 255
    """
    if x.dim() != 4:
        raise ValueError(f"{what} have shape {tuple(x.shape)}; expected (N, C, H, W)")
    if not x.is_floating_point():
        raise ValueError(f"{what} are {x.dtype}; expected floating point in [0, 1]: divide pixels of 0 to 255 by 255")
    if not x.numel():
        return
    try:
        low, high = torch.stack(x.detach().aminmax()).tolist()
    except NotImplementedError as error:  # torch's word for such tensors
        raise ValueError(f"{what} are a sparse tensor, or one without values; expected an ordinary one") from error
    if low >= 0 and high <= 1:
        return
    if not bool(x.isfinite().all()):
        raise ValueError(f"{what} hold NaN or infinite values; expected finite values in [0, 1]")
    raise ValueError(
        f"{what} range from {low:.9g} to {high:.9g}; expected values in [0, 1]: divide pixels of 0 to 255 by 255, and leave "
        "normalization to the network's first layer"
    )


def as_float(pixels: Tensor) -> Tensor:
    """uint8 (0 to 255) or floating point in [0, 1] -> float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255 if pixels.dtype == torch.uint8 else pixels.to(torch.float32)


class Split(Protocol):
    """Images of one split: ``take(index)`` gives (k, C, H, W) float32 in [0, 1]; `labels` is (n,) int64."""

    @property
    def labels(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ArraySplit:
    """Images held in memory: `pixels` (n, C, H, W), uint8 or float in [0, 1]; ``ValueError`` for others."""

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8:
            check_images(self.pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Tensor:
        return as_float(self.pixels[index])


@dataclass(frozen=True)
class FileSplit:
    """Images read when they are asked for: `read(path)` gives (C, H, W), uint8 or float in [0, 1]."""

    paths: tuple[str, ...]
    labels: Tensor
    read: Callable[[str], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> Tensor:
        return torch.stack([as_float(self.read(self.paths[i])) for i in index.tolist()])


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


@dataclass(frozen=True)
class Absent:
    """The split that a data set does not have; `DataSet.split` says so."""

    @property
    def labels(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return 0

    def take(self, index: Tensor) -> Tensor:
        raise ValueError("the data set has no such images")


def in_memory(split: Split) -> Split:
    """A split of files read once and held in memory, if it takes at most 500 MB there; any other split as it is."""
    if not isinstance(split, FileSplit) or len(split) * split.read(split.paths[0]).numel() > KEPT_BYTES:
        return split
    return ArraySplit(torch.stack([split.read(path) for path in split.paths]), split.labels)


def head(split: Split, n: int) -> Split:
    """The first n images of a split (all of them where it has fewer)."""
    return Subset(split, torch.arange(min(n, len(split))))


@dataclass(frozen=True)
class DataSet:
    """A data set by name. `eps` is the usual L-inf radius of its adversarial examples, in [0, 1] pixels; None if there is none.

    A split may be `Absent`. `shape` is (C, H, W); `fixed` says that its content is published and does not change. Raises
    ``ValueError`` for a split that is empty or has a label without a class.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: Split
    val: Split
    test: Split
    eps: float | None
    fixed: bool = False

    def __post_init__(self) -> None:
        for name in SPLITS:
            part = self._splits[name]
            if isinstance(part, Absent):
                continue
            labels = part.labels
            if len(labels) == 0:
                raise ValueError(f"{self.name}: the {name} split is empty; give it at least one image")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                wrong, most = low if low < 0 else high, len(self.classes) - 1
                raise ValueError(f"{self.name}: the {name} split has label {wrong}; expected 0 to {most}, counting from 0")

    @property
    def usual_eps(self) -> float:
        """`eps` where something needs one; ``ValueError`` where the data set has none."""
        if self.eps is None:
            raise ValueError(f"{self.name} has no usual eps; give eps")
        return self.eps

    def split(self, name: str) -> Split:
        """The split called `name`; ``ValueError`` for another name, or where the data set has no such images."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are: {', '.join(SPLITS)}")
        found = self._splits[name]
        if isinstance(found, Absent):
            raise ValueError(f"{self.name} has no {name} images; add them, or use another data set here")
        return found

    def seen_through(self, view: Callable[[Split], Split], **changes: Any) -> DataSet:
        """The data set with a view in place of each split that is there, and with `changes` of its other fields."""
        parts = {name: part if isinstance(part, Absent) else view(part) for name, part in self._splits.items()}
        return replace(self, **{**parts, **changes})

    @property
    def _splits(self) -> dict[str, Any]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def _moments(self) -> Moments:
        """Over training images at even distances, at most 10,000 of them and 100 million pixels."""
        return moments(self._sample(STATISTICS_IMAGES))

    def _sample(self, most: int) -> Iterator[Tensor]:
        """Training images (test images where there are none) at even distances, in batches of at most 100 million pixels."""
        images = self.test if isinstance(self.train, Absent) else self.train
        most = min(most, max(1, STATISTICS_PIXELS // (self.shape[1] * self.shape[2])))
        index = torch.arange(0, len(images), -(-len(images) // most))
        return (images.take(part) for part in torch.split(index, STATISTICS_BATCH))

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


# The seed of every split made here. Changing it changes every published figure.
SPLIT_SEED = 27

VALIDATION_SHARE = 0.1
VALIDATION_IMAGES = 5_000


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


def hold_out(labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Indices (training, validation) for a source without a validation split of its own.

    The second is a tenth of every class, at most 5,000 images in all; where the classes have fewer than ten images
    it is one image of the largest ones. The split depends on `labels` alone; `name` is for the error: ``ValueError``
    where no class has two images.
    """
    largest = int(torch.unique(labels, return_counts=True)[1].max())
    if largest < 2:
        raise ValueError(f"{name}: no class has two training images, so none can be set apart for validation; give more images")
    share = min(max(VALIDATION_SHARE, 1 / largest), VALIDATION_IMAGES / len(labels))
    train, val = stratified(labels, (1 - share, share), Streams(SPLIT_SEED, ["train"], "validation"))
    # A share of each class is rounded, so the sum can be a few images above the most that is wanted.
    return torch.cat((train, val[VALIDATION_IMAGES:])), val[:VALIDATION_IMAGES]


def data_root() -> Path:
    """The folder of downloaded data: ``$VIZROBUST_DATA``, else ``~/.cache/vizrobust/data``."""
    return Path(os.environ.get("VIZROBUST_DATA") or Path.home() / ".cache" / "vizrobust" / "data").expanduser()


def not_downloaded(name: str, files: str) -> MissingFileError:
    """The error that says where `files` of a data set were looked for."""
    there = str(data_root() / files)
    return MissingFileError(
        "%s is not on this machine, or not whole; add {download}, or put its files at %r (VIZROBUST_DATA names another root)",
        name, there,
    )  # fmt: skip


# Madry et al. 2018 for MNIST, where pixels are nearly black or white, and for CIFAR-10; the RobustBench figure for ImageNet.
MNIST_EPS = 0.3
CIFAR_EPS = 8 / 255
IMAGENET_EPS = 4 / 255


def usual_eps(shape: tuple[int, int, int]) -> float:
    """For images of a data set that nobody has fixed a radius for, in [0, 1] pixels.

    One channel and no side above 32 pixels: 0.3, as for MNIST. Else a shorter side below 64: 8/255, as for
    CIFAR-10. Else 4/255, as for ImageNet.

    >>> usual_eps((1, 28, 28)), usual_eps((3, 32, 32)) == 8 / 255, usual_eps((3, 224, 224)) == 4 / 255
    (0.3, True, True)
    """
    channels, height, width = shape
    if channels == 1 and max(height, width) <= 32:
        return MNIST_EPS
    return CIFAR_EPS if min(height, width) < 64 else IMAGENET_EPS
