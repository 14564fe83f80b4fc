"""What identifies the images of a data set: the hash of a person's own, and which published sets are made of the same images."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizrobust.data.dataset import SPLITS, Absent, ArraySplit, DataSet, FileSplit, Split, Subset
from vizrobust.data.sources import Relabelled, Transformed

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
