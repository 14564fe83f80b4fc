"""The hash of a data set's own images and labels, so that results of changed data are not taken for those of the present ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizrobust.data.dataset import SPLITS, Absent, ArraySplit, DataSet, FileSplit, Split, Subset
from vizrobust.data.views import Relabelled, Transformed

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
