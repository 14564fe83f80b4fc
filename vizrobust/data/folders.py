"""Data sets from a folder of image files, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizrobust.data.dataset import SPLITS, DataSet, FileSplit
from vizrobust.data.radii import usual_eps
from vizrobust.data.stratify import SPLIT_SEED, hold_out
from vizrobust.rng import Streams

IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GREY_MODES = ("1", "L", "LA")
COLOR_MODES = ("CMYK", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
# So many images of each class tell whether a folder is grey; photographs have a grey one in a hundred.
LOOKED_AT = 10
SMALLEST = 8


def imagefolder(text: str) -> DataSet:
    """Your own image files: DIR/train and DIR/val or DIR/test (or both), one folder for each class below them.

    `text` is ``DIR`` or ``DIR@SIZE``; SIZE resizes the shorter side and cuts out the centre. A folder whose whole
    name is `text` comes first. Raises ``FileNotFoundError``, or ``ValueError`` with what was found and expected.
    """
    folder, size = (text, None) if Path(text).expanduser().is_dir() else split_size(text)
    return read_folder(Path(folder).expanduser(), f"imagefolder:{text}", size)


def split_size(text: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME@SIZE`` in its two parts; ``ValueError`` for a size that is not a whole number from 8.

    >>> split_size("photos@64"), split_size("photos")
    (('photos', 64), ('photos', None))
    """
    name, at, size = text.rpartition("@")
    if not at or "/" in size:
        return text, None
    if not (size.isascii() and size.isdigit()) or int(size) < SMALLEST:
        raise ValueError(f"size {size!r} in {text!r}: expected a whole number of pixels, at least {SMALLEST}, as in {name}@64")
    return name, int(size)


def read_folder(root: Path, name: str, size: int | None) -> DataSet:
    """The data set `name` in folder `root`.

    Classes are the sorted folder names. With train, val and test each split is its folder; with one of val and test
    that is the test split, and validation is a fixed stratified tenth of train. Every split is in a random order
    fixed by a seed, so that its first images are of all classes. Images are grey where the first ten of every class
    are. Without `size` all images must have one size, which reads every file's header once.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no folder {str(root)!r}; expected one with train/ and val/ or test/ below it")
    present = [split for split in SPLITS if (root / split).is_dir()]
    if "train" not in present or len(present) < 2:
        found = ", ".join(sorted(item.name for item in islice(root.iterdir(), 10))) or "nothing"
        raise ValueError(f"{name}: expected train/ and val/ or test/ in {str(root)!r}, found {found}")
    listed = {split: _list(root / split, name) for split in present}
    classes = _same_classes(listed, name)
    read = ReadImage(_channels(listed["train"]), size)
    height, width = (size, size) if size else _one_size(listed, name)
    splits = {split: shuffled(files, split, read) for split, files in listed.items()}
    if len(present) == 2:
        whole, test = splits["train"], splits[present[1]]
        kept, held = hold_out(whole.labels, name)
        splits = {"train": part(whole, kept), "val": part(whole, held), "test": test}
    shape = (read.channels, height, width)
    return DataSet(name, classes, shape, **splits, eps=usual_eps(shape))


@dataclass(frozen=True)
class ReadImage:
    """Path -> (`channels`, H, W) uint8; `size` resizes the shorter side to it and cuts out the centre."""

    channels: int
    size: int | None

    def __call__(self, path: str) -> Tensor:
        from torchvision.transforms.functional import center_crop, resize

        image = _converted(path, self.channels)
        if self.size is not None:
            image = center_crop(resize(image, [self.size]), [self.size])
        return torch.from_numpy(np.array(image)).reshape(*image.size[::-1], self.channels).permute(2, 0, 1)


def _converted(path: str, channels: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode not in (*GREY_MODES, *COLOR_MODES):
                raise ValueError(f"its pixels are of mode {image.mode!r}, not 8 bits a channel")
            if channels == 1 and image.mode not in GREY_MODES:
                raise ValueError("it is in colour, the others are grey")
            # Through RGBA, because a palette's transparency makes Pillow warn.
            seen = image.convert("RGBA") if image.mode in ("P", "PA") else image
            return seen.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _header(path: str) -> tuple[str, tuple[int, int]]:
    """An image's mode and (height, width), from the start of its file."""
    try:
        with Image.open(path) as image:
            return image.mode, (image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> ValueError:
    return ValueError(f"cannot read image {path!r} ({error}); replace or remove it")


def _list(folder: Path, name: str) -> dict[str, list[str]]:
    """Class name -> its image files, both sorted."""
    kinds = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not kinds:
        raise ValueError(f"{name}: {str(folder)!r} holds no class folders; expected one folder of images for each class")
    files = {kind: image_files(folder / kind) for kind in kinds}
    empty = [kind for kind, paths in files.items() if not paths]
    if empty:
        raise ValueError(
            f"{name}: no images in {str(folder / empty[0])!r}; expected files such as .jpg or .png, or no such folder"
        )
    return files


def image_files(folder: Path) -> list[str]:
    """The image files anywhere below a folder, sorted; none where there is no folder."""
    found = os.walk(folder, followlinks=True)
    return sorted(str(Path(below, file)) for below, _, files in found for file in files if _is_image(file))


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMAGE_FILES) and not file.startswith(".")


def _same_classes(listed: dict[str, dict[str, list[str]]], name: str) -> tuple[str, ...]:
    expected = set(listed["train"])
    for split, files in listed.items():
        for kind in sorted(expected ^ set(files)):
            there, absent = ("train", split) if kind in expected else (split, "train")
            raise ValueError(f"{name}: class folder {kind!r} is in {there}/ but not in {absent}/; expected the same in both")
    return tuple(sorted(expected))


def _channels(files: dict[str, list[str]]) -> int:
    modes = (_header(path)[0] for paths in files.values() for path in paths[:LOOKED_AT])
    return 1 if all(mode in GREY_MODES for mode in modes) else 3


def _one_size(listed: dict[str, dict[str, list[str]]], name: str) -> tuple[int, int]:
    paths = [path for files in listed.values() for of_kind in files.values() for path in of_kind]
    size = _header(paths[0])[1]
    for path in paths:
        here = _header(path)[1]
        if here != size:
            sizes = f"{paths[0]!r} is {size[1]} x {size[0]} and {path!r} {here[1]} x {here[0]}"
            raise ValueError(f"{name}: {sizes}; give a size for all, such as {name}@64")
    return size


def shuffled(files: Mapping[str, Sequence[str]], split: str, read: ReadImage) -> FileSplit:
    """The images of class -> files, classes numbered in their order, all in a random order fixed by the split's name."""
    paths = [path for of_kind in files.values() for path in of_kind]
    labels = torch.repeat_interleave(torch.tensor([len(of_kind) for of_kind in files.values()]))
    whole = FileSplit(tuple(paths), labels, read)
    return part(whole, Streams(SPLIT_SEED, [split], "order").permutation(len(paths))[0])


def part(whole: FileSplit, index: Tensor) -> FileSplit:
    """Some images of a split, in the order of `index` (n,)."""
    return FileSplit(tuple(whole.paths[i] for i in index.tolist()), whole.labels[index], whole.read)
