"""The published data sets that torchvision reads and downloads."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizrobust.data import packaged
from vizrobust.data.dataset import (
    CIFAR_EPS,
    IMAGENET_EPS,
    MNIST_EPS,
    ArraySplit,
    DataSet,
    Subset,
    data_root,
    hold_out,
    not_downloaded,
)
from vizrobust.data.files import ReadImage, read_folder
from vizrobust.data.packaged import mnist_first_500
from vizrobust.requests import ParameterError

IMAGENETTE_SIZE = 64
# Published versions of Imagenette: shorter side -> torchvision's name, folder.
IMAGENETTE_VERSIONS = {160: ("160px", "imagenette2-160"), 320: ("320px", "imagenette2-320")}
IMAGENETTE_FULL = ("full", "imagenette2")


@dataclass(frozen=True)
class Published:
    """What is known without loading: torchvision's class, where its files lie below the root, shape, classes, eps."""

    reader: str
    files: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    eps: float


_MNIST = Published("MNIST", "MNIST/raw/*-ubyte", (1, 28, 28), packaged.DIGITS, MNIST_EPS)
PUBLISHED = {
    "mnist": _MNIST,
    "mnist55k": _MNIST,
    "fashion-mnist": Published("FashionMNIST", "FashionMNIST/raw/*-ubyte", (1, 28, 28), packaged.FASHION, MNIST_EPS),
    "cifar10": Published("CIFAR10", "cifar-10-batches-py/", (3, 32, 32), packaged.CIFAR10, CIFAR_EPS),
    "cifar100": Published("CIFAR100", "cifar-100-python/", (3, 32, 32), packaged.CIFAR100, CIFAR_EPS),
    "svhn": Published("SVHN", "{train,test}_32x32.mat", (3, 32, 32), packaged.DIGITS, CIFAR_EPS),
}


def mnist(download: bool = False) -> DataSet:
    """MNIST: handwritten digits, 1 x 28 x 28, 60,000 training and 10,000 test images."""
    return _held_out("mnist", *_read("mnist", download))


def mnist55k(download: bool = False) -> DataSet:
    """MNIST without the 5,000 training images of mnist5k, for judges of networks trained on those."""
    train, test = _read("mnist55k", download)
    of_kind = [torch.nonzero(train.labels == kind).flatten() for kind in range(10)]
    taken = torch.cat([index[:500] for index in of_kind])
    theirs, labels = mnist_first_500()
    if not (torch.equal(train.labels[taken], labels) and torch.equal(train.pixels[taken], theirs)):
        raise ParameterError(
            "mnist55k: the MNIST files in %r are not in their published order, so the images of mnist5k cannot be told "
            "apart; remove them and add {download}", str(data_root()),
        )  # fmt: skip
    rest = torch.cat([index[500:] for index in of_kind]).sort().values
    return _held_out("mnist55k", ArraySplit(train.pixels[rest], train.labels[rest]), test)


def fashion_mnist(download: bool = False) -> DataSet:
    """Fashion-MNIST: clothes, 1 x 28 x 28, 60,000 training and 10,000 test images."""
    return _held_out("fashion-mnist", *_read("fashion-mnist", download))


def cifar10(download: bool = False) -> DataSet:
    """CIFAR-10: photographs of ten kinds, 3 x 32 x 32, 50,000 training and 10,000 test images."""
    return _held_out("cifar10", *_read("cifar10", download))


def cifar100(download: bool = False) -> DataSet:
    """CIFAR-100: photographs of a hundred kinds, 3 x 32 x 32, 50,000 training and 10,000 test images."""
    return _held_out("cifar100", *_read("cifar100", download))


def svhn(download: bool = False) -> DataSet:
    """SVHN: house numbers, 3 x 32 x 32, 73,257 training and 26,032 test images."""
    return _held_out("svhn", *_read("svhn", download))


def imagenette(download: bool = False, size: int | None = None) -> DataSet:
    """Imagenette: photographs of ten ImageNet classes at 64 pixels or as imagenette@SIZE, 9,469 and 3,925 images.

    Read file by file from the smallest published version whose shorter side is at least `size`.
    """
    name = "imagenette" if size is None else f"imagenette@{size}"
    pixels = size or IMAGENETTE_SIZE
    fitting = [version for side, version in IMAGENETTE_VERSIONS.items() if side >= pixels]
    version, folder = fitting[0] if fitting else IMAGENETTE_FULL
    root = data_root()
    if not (root / folder).is_dir():
        if not download:
            raise not_downloaded(name, f"{folder}/")
        from torchvision.datasets import Imagenette

        with _fetching(name, root, download):
            Imagenette(root, "train", size=version, download=True)
    data = read_folder(root / folder, name, ReadImage(3, pixels))
    if data.classes != tuple(packaged.IMAGENETTE):
        raise ParameterError("%s: %r holds other classes; remove it and add {download}", name, str(root / folder))
    return replace(data, classes=tuple(packaged.IMAGENETTE.values()), eps=IMAGENET_EPS, fixed=True)


def _held_out(name: str, train: ArraySplit, test: ArraySplit) -> DataSet:
    """The data set, its validation split a stratified tenth of train, at most 5,000; test in the published order."""
    about = PUBLISHED[name]
    kept, held = hold_out(train.labels, name)
    return DataSet(name, about.classes, about.shape, Subset(train, kept), Subset(train, held), test, about.eps, fixed=True)


def _read(name: str, download: bool) -> tuple[ArraySplit, ArraySplit]:
    """The published train and test split, uint8 as they are on disk."""
    from torchvision import datasets

    about, root = PUBLISHED[name], data_root()
    reader = getattr(datasets, about.reader)
    parts: tuple[Any, Any] = ("train", "test") if name == "svhn" else (True, False)
    with _fetching(name, root, download):
        train, test = (_split(reader(root, part, download=download), about.shape) for part in parts)
    return train, test


def _split(loaded: Any, shape: tuple[int, int, int]) -> ArraySplit:
    pixels = torch.as_tensor(loaded.data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif tuple(pixels.shape[1:]) != shape:
        pixels = pixels.permute(0, 3, 1, 2)
    labels: Tensor = torch.as_tensor(loaded.targets if hasattr(loaded, "targets") else loaded.labels).to(torch.int64)
    if tuple(pixels.shape[1:]) != shape or len(pixels) != len(labels):
        raise ValueError(f"{tuple(pixels.shape)} pixels and {len(labels)} labels where images of {shape} belong")
    return ArraySplit(pixels.contiguous(), labels)


@contextlib.contextmanager
def _fetching(name: str, root: Path, download: bool) -> Iterator[None]:
    """torchvision's reports go to stderr, its many exceptions become one sentence each."""
    try:
        # Old pickles make numpy warn; nothing here can be done about it.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        why = " ".join(str(error).split())
        if download:
            again = "remove what is there of it and try again"
            raise ValueError(f"{name} could not be fetched to {str(root)!r}, or not read there ({why}); {again}") from error
        if "not found" in why:
            raise not_downloaded(name, PUBLISHED[name].files) from error
        raise ParameterError(
            "the files of %s in %r are damaged (%s); remove them and add {download}", name, str(root), why
        ) from error
