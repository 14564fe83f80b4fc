"""From a data reference to a data set or a view of it, the hash of a person's own, and which references share images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizrobust.data import published
from vizrobust.data.dataset import SPLITS, Absent, ArraySplit, DataSet, FileSplit, Split, Subset
from vizrobust.data.files import imagefolder, npz, sizing, skip_broken
from vizrobust.data.published import CLASSES, SHAPE, class_places, digits, imagenette64, imagenette64_rest, mnist5k
from vizrobust.plugins import Catalogue, no_data_set
from vizrobust.rng import Streams
from vizrobust.spec import named

# ITU-R 601, as Pillow has it.
LUMA = (0.299, 0.587, 0.114)
# Behind a reference: read in so many channels.
CHANNELS = {"@rgb": 3, "@grey": 1}


@dataclass(frozen=True)
class Relabelled:
    """Another split's images under other `labels` (n,) int64."""

    whole: Split
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Tensor:
        return self.whole.take(index)


def shuffled_labels(data: DataSet, seed: int = 0) -> DataSet:
    """`data` with its training labels in a random order: the same images, the same share of every class.

    Validation and test labels stay true, so that accuracy on them is chance and the queries of the clarity metrics
    are the same. The name tells it apart from the real data.

    >>> from vizrobust.data import load
    >>> null = shuffled_labels(load("digits"), seed=0)
    >>> null.name, bool((null.train.labels.sort().values == load("digits").train.labels.sort().values).all())
    ('shuffled:digits', True)
    """
    order = Streams(seed, [data.name], "shuffled labels").permutation(len(data.train))[0]
    labels = data.train.labels[order]
    if torch.equal(labels, data.train.labels):
        raise ValueError(f"{data.name}: its training labels are the same in any order; give images of two or more classes")
    return replace(data, name=f"shuffled:{data.name}", train=Relabelled(data.train, labels))


# Fewest held-out images of a class from which a judge may learn, and the share of them that is kept to watch it.
FEWEST_HELD_OUT, WATCHED = 10, 10


def held_out(data: DataSet) -> DataSet:
    """The validation images of `data` as a training set, for judges of networks that were trained on its training images.

    Every tenth of them is the new validation split; the test images stay. Raises ``ValueError`` where a class has fewer than
    ten of them.

    >>> from vizrobust.data import load
    >>> found = held_out(load("mnist5k"))
    >>> found.name, len(found.train) + len(found.val) == len(load("mnist5k").val)
    ('held-out:mnist5k', True)
    """
    labels = data.val.labels
    for unit, name in enumerate(data.classes):
        if (count := int((labels == unit).sum())) < FEWEST_HELD_OUT:
            raise ValueError(
                f"{data.name} has {count} validation image{'s' if count != 1 else ''} of class {name!r}, a judge needs "
                f"{FEWEST_HELD_OUT} that the judged networks did not train on; give more, or other data of the same classes"
            )
    watched = torch.arange(len(labels)) % WATCHED == 0
    train, val = (Subset(data.val, torch.nonzero(part)[:, 0]) for part in (~watched, watched))
    return replace(data, name=f"held-out:{data.name}", train=train, val=val)


def with_classes(data: DataSet, classes: Sequence[str]) -> DataSet | None:
    """`data` with the labels of a network's `classes`, mapped by name; None where a class of the data has no such name.

    Names are compared without case, those of ImageNet with its WordNet ids too. Classes that are numbers from 0 stand for the
    places of the network's classes.

    >>> from vizrobust.data import load
    >>> with_classes(load("digits"), "9876543210").classes[0], with_classes(load("digits"), ("cat", "dog"))
    ('9', None)
    """
    if len(data.classes) > len(classes):
        return None
    found = class_places(classes, data.classes)
    if data.classes == tuple(map(str, range(len(data.classes)))) and () in found:
        found = [(number,) for number in range(len(data.classes))]
    if any(len(places) != 1 for places in found):
        return None
    place = torch.tensor([number for (number,) in found])
    return data.seen_through(lambda split: Relabelled(split, place[split.labels]), classes=tuple(classes))


@dataclass(frozen=True)
class Transformed:
    """Another split's images, each batch changed by a function (k, C, H, W) -> (k, C', H', W') in [0, 1]."""

    whole: Split
    change: Callable[[Tensor], Tensor]

    @property
    def labels(self) -> Tensor:
        return self.whole.labels

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, index: Tensor) -> Tensor:
        return self.change(self.whole.take(index))


def _grey_in_three(x: Tensor) -> Tensor:
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1).contiguous()


def _luma(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True).clamp(0, 1)


def recolored(data: DataSet, channels: int, name: str) -> DataSet:
    """`data` under another name with 3 channels (grey repeated) or 1 (luma, ITU-R 601)."""
    change = _grey_in_three if channels == 3 else _luma
    return data.seen_through(lambda split: Transformed(split, change), name=name, shape=(channels, *data.shape[1:]))


EMBEDDED: dict[str, Callable[[], DataSet]] = named(mnist5k, digits)

FETCHED: dict[str, Callable[[bool], DataSet]] = {
    "mnist": published.mnist,
    "mnist55k": published.mnist55k,
    "fashion-mnist": published.fashion_mnist,
    "cifar10": published.cifar10,
    "cifar100": published.cifar100,
    "svhn": published.svhn,
    "imagenette": published.imagenette,
    "imagenette64": imagenette64,
    "imagenette64-rest": imagenette64_rest,
}

OWN: dict[str, Callable[[str], DataSet]] = {"npz": npz, "imagefolder": imagefolder, "skip-broken": skip_broken}

# Before another reference: its training labels in a random order, its validation images to learn from.
VIEWS: dict[str, Callable[[DataSet], DataSet]] = {"shuffled": shuffled_labels, "held-out": held_out}

DATA: dict[str, Callable[..., DataSet]] = {
    **EMBEDDED,
    **FETCHED,
    "npz:FILE": npz,
    "imagefolder:DIR[@SIZE]": imagefolder,
    "skip-broken:imagefolder:DIR": skip_broken,
    "shuffled:REF": shuffled_labels,
    "held-out:REF": held_out,
}


# Sources of other packages and files: called with what stands behind the colon ("" for none) and `download`.
SOURCES: Catalogue[Callable[[str, bool], DataSet]] = Catalogue({}, "data")


def load(ref: str, download: bool = False, *, typed: bool = False) -> DataSet:
    """The data set that `ref` names, in any case: a name of the catalogue, ``npz:FILE`` or ``imagefolder:DIR[@SIZE]``,
    which with ``skip-broken:`` before it leaves broken files out.

    With ``@rgb`` behind it, grey images are read in three equal channels; with ``@grey``, colours as their luma.

    ``NAME`` or ``NAME:REST`` may also be an installed package's source, or ``my.py:NAME[:REST]`` that of a person's own
    file, if the reference was `typed` by a person.

    Published data sets are read from ``$VIZROBUST_DATA`` or ``~/.cache/vizrobust/data``, and fetched there only
    with `download`. Raises ``ValueError`` or ``FileNotFoundError`` with the next step.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.test), digits.classes[:3]
    ((1, 8, 8), 359, ('0', '1', '2'))
    """
    for suffix, channels in CHANNELS.items():
        if ref.lower().endswith(suffix) and not Path(ref.partition(":")[2] or ref).exists():
            return recolored(load(ref[: -len(suffix)], download, typed=typed), channels, ref)
    kind, colon, rest = ref.partition(":")
    if kind.lower() in VIEWS and rest:
        return VIEWS[kind.lower()](load(rest, download, typed=typed))
    if colon and kind.lower() in OWN:
        if not rest:
            raise ValueError(f"{ref!r} names no file or folder; write npz:FILE or imagefolder:DIR[@SIZE]")
        return OWN[kind.lower()](rest)
    if ref.partition("@")[0].lower() not in {**EMBEDDED, **FETCHED}:
        source, rest = _outside(ref, typed)
        if source is not None:
            return replace(source(rest, download), name=ref)
    name, size = _name(ref)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name == "imagenette":
        return published.imagenette(download, size)
    return FETCHED[name](download)


def _outside(ref: str, typed: bool) -> tuple[Callable[[str, bool], DataSet] | None, str]:
    """The source of another package or file that `ref` names, if any, and what it is to be called with."""
    ends = [place for place, letter in enumerate(ref) if letter == ":"]
    for end in (*ends, len(ref)):
        source = SOURCES.find(ref[:end], typed=typed)
        if source is not None:
            return source, ref[end + 1 :]
    return None, ""


def metadata_of(ref: str) -> tuple[tuple[int, int, int], tuple[str, ...]] | None:
    """Shape (C, H, W) and class names of a published data set, without loading it; None for any other reference.

    >>> metadata_of("mnist")[0], metadata_of("imagenette@96")[0], metadata_of("npz:mine.npz")
    ((1, 28, 28), (3, 96, 96), None)
    """
    name = ref.partition("@")[0].lower()
    if name == "imagenette":
        side = _name(ref)[1] or published.IMAGENETTE_SIZE
        return (3, side, side), tuple(published.IMAGENETTE.values())
    if name in ("imagenette64", "imagenette64-rest"):
        return SHAPE, CLASSES
    about = published.PUBLISHED.get(ref.lower())
    return (about.shape, about.classes) if about else None


def _name(ref: str) -> tuple[str, int | None]:
    """A name of the catalogue as it is written there, and the size after its @."""
    text = ref.partition("@")[0].lower()
    if text not in EMBEDDED and text not in FETCHED:
        raise ValueError(no_data_set(ref))
    if "@" in ref and text != "imagenette":
        raise ValueError(f"{ref!r}: only imagenette takes a size; write {text}")
    read = sizing(ref)[1]
    if read.fit or read.resize != read.size:
        raise ValueError(f"{ref!r}: imagenette takes a whole number of pixels, as in imagenette@96")
    return text, read.size


# Of larger folders, ends and size of every file are hashed instead of its whole content.
READ_WHOLE = 1_000_000_000
END = 4096
BATCH = 250


def content_of(data: DataSet, *splits: str) -> str:
    """16 hex digits over images and labels of the `splits` (all of them without), and the class names.

    It is empty for a data set of the package or a published one, whose content does not change.
    """
    if data.fixed:
        return ""
    digest = hashlib.sha256("\n".join(data.classes).encode())
    for name in splits or SPLITS:
        _add(digest, getattr(data, name))
    return digest.hexdigest()[:16]


def _add(digest: Any, split: Split) -> None:
    _add_array(digest, split.labels)
    if isinstance(split, ArraySplit):
        _add_array(digest, split.pixels)
    elif isinstance(split, Subset):
        _add_array(digest, split.index)
        _add(digest, split.whole)
    elif isinstance(split, Relabelled | Transformed):
        _add(digest, split.whole)
    elif isinstance(split, FileSplit):
        _add_files(digest, split.paths)
    elif not isinstance(split, Absent):
        for index in torch.split(torch.arange(len(split)), BATCH):
            _add_array(digest, split.take(index))


def _add_array(digest: Any, values: Tensor) -> None:
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _add_files(digest: Any, paths: tuple[str, ...]) -> None:
    sizes = [Path(path).stat().st_size for path in paths]
    whole = sum(sizes) <= READ_WHOLE
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{size} ".encode())
        with Path(path).open("rb") as file:
            if whole or size <= 2 * END:
                digest.update(file.read())
            else:
                digest.update(file.read(END))
                file.seek(-END, 2)
                digest.update(file.read())


# Data sets made of the same published images: any two overlap, except for those known to be disjoint.
FAMILIES = (("mnist", "mnist5k", "mnist55k"), ("imagenette", "imagenette64", "imagenette64-rest"))
APART = (
    {"mnist5k", "mnist55k"},
    {"imagenette64", "imagenette64-rest"},
    # The rest are published validation images, on which imagenette does not train either.
    {"imagenette", "imagenette64-rest"},
)


def overlapping_data(a: str, b: str) -> bool:
    """Whether networks trained on the data references `a` and `b` saw some of the same images.

    The same files at another size (``imagenette@96``, ``imagefolder:DIR@64``) or with shuffled labels are the same images. An
    unknown reference ("") overlaps with none.

    >>> overlapping_data("mnist", "mnist5k"), overlapping_data("mnist55k", "mnist5k"), overlapping_data("npz:a.npz", "npz:a.npz")
    (True, False, True)
    """
    one, other = _sizeless(a), _sizeless(b)
    if not one or not other:
        return False
    if one == other:
        return True
    related = any(one in family and other in family for family in FAMILIES)
    return related and {one, other} not in APART


def subset_of_imagenet(a: str, b: str) -> bool:
    """Whether `a` is ImageNet and `b` a subset of it such as Imagenette: an overlap of unknown images.

    >>> subset_of_imagenet("imagenet", "imagenette64"), subset_of_imagenet("imagenet", "cifar10")
    (True, False)
    """
    return _sizeless(a) == "imagenet" and _sizeless(b) in FAMILIES[1]


def _sizeless(ref: str) -> str:
    """The reference without its size, names of published data sets in lower case."""
    bare = re.sub(r"@(\d+(-fit)?|resize\d+-crop\d+)$", "", ref.strip().removeprefix("shuffled:").removeprefix("skip-broken:"))
    return bare if ":" in bare else bare.lower()
