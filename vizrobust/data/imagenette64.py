"""Imagenette at 64 pixels in fixed parts: one for networks under comparison, one for the judges of their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vizrobust.data.class_names import IMAGENETTE
from vizrobust.data.dataset import DataSet, FileSplit
from vizrobust.data.folders import ReadImage, image_files, part, shuffled
from vizrobust.data.radii import IMAGENET_EPS
from vizrobust.data.roots import absent, data_root

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
    return DataSet("imagenette64", CLASSES, SHAPE, train, val, test, IMAGENET_EPS)


def imagenette64_rest(download: bool = False) -> DataSet:
    """The 2,525 images that imagenette64 leaves out, for judges of networks trained on it; its 400 and 1,000 besides."""
    _, held_out = _halves("imagenette64-rest", download)
    test, val, rest = _parts(held_out)
    return DataSet("imagenette64-rest", CLASSES, SHAPE, rest, val, test, IMAGENET_EPS)


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
            raise absent(name, f"{PUBLISHED}/")
        from torchvision.datasets import Imagenette

        Imagenette(root, "train", size="160px", download=True)
    return _read(root / PUBLISHED, name, {kind: key for key, kind in IMAGENETTE.items()}, ReadImage(3, SIZE))


def _read(root: Path, name: str, folders: Mapping[str, str], read: ReadImage) -> tuple[FileSplit, FileSplit]:
    halves = []
    for split in ("train", "val"):
        files = {kind: image_files(root / split / folder) for kind, folder in folders.items()}
        empty = [str(root / split / folders[kind]) for kind, found in files.items() if not found]
        if empty:
            raise ValueError(f"{name}: no images in {empty[0]!r}; remove {str(root)!r} and add --download")
        halves.append(shuffled(files, split, read))
    train, held_out = halves
    if len(held_out) <= TEST_IMAGES + VALIDATION_IMAGES:
        raise ValueError(f"{name}: {str(root / 'val')!r} has {len(held_out)} images, expected the published 3,925")
    return train, held_out
