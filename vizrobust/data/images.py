"""Readers of image files, and of the images and labels that a Python program holds."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vizrobust.data.dataset import check_images

# Only these decoders run, whatever a file is called: others start programs (PostScript) or read what nobody expects.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
IMAGE_FILES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Pillow reads grey PNGs of 16 bits as one of these, by its version.
DEEP_MODES = ("I;16", "I;16B", "I")
GREY_MODES = ("1", "L", "LA", *DEEP_MODES)
COLOR_MODES = ("CMYK", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
LARGEST = 65535
ADVICE = "replace or remove it, or read the folder as skip-broken:imagefolder:DIR"


def image_header(path: str) -> tuple[bool, tuple[int, int]]:
    """Whether an image file is grey, and its (height, width) as it is seen, from the start of the file."""
    with _opened(path) as image:
        # Pillow decodes a whole PNG in search of the tag, which stands before the pixels where there is one.
        tags = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
        turned = tags.get(ORIENTATION) in SIDEWAYS
        return image.mode in GREY_MODES, (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: str, channels: int, *, grey_colors: bool = True) -> Image.Image:
    """An image file, upright by its EXIF orientation: of mode L or RGB, or of mode F in [0, 255] where it has 16 bits of grey.

    Read are PNG, JPEG, WebP, AVIF, BMP, the first picture of a GIF, and TIFF, by content. Palettes and CMYK become RGB,
    an opacity is left out. `channels` is 1 or 3: grey is repeated for three, and colours become their luma for one, unless
    `grey_colors` is False. Raises ``FileNotFoundError``, or ``ValueError`` that names the file.
    """
    with _opened(path) as image:
        if channels == 1 and image.mode not in GREY_MODES and not grey_colors:
            raise ValueError("it is in colour, the others are grey")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_MODES:
            return Image.fromarray(np.asarray(upright).astype(np.float32) * np.float32(255 / LARGEST))
        # Through RGBA, because a palette's transparency makes Pillow warn.
        seen = upright.convert("RGBA") if upright.mode in ("P", "PA") else upright
        return seen.convert("L" if channels == 1 else "RGB")


def pixels(image: Image.Image, channels: int) -> Tensor:
    """(`channels`, H, W): uint8 of an image of mode L or RGB, float32 in [0, 1] of one of mode F."""
    if image.mode == "F":
        grey = torch.from_numpy(np.array(image) / np.float32(255)).clamp(0, 1)
        return grey.expand(channels, *grey.shape).contiguous()
    return torch.from_numpy(np.array(image)).reshape(*image.size[::-1], channels).permute(2, 0, 1)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    if not Path(path).is_file():
        special = "; it is a pipe, a device or a link to nothing, so remove it" if os.path.lexists(path) else ""
        raise FileNotFoundError(f"no image file {path!r}{special}")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.mode not in (*GREY_MODES, *COLOR_MODES) or (image.mode == "I" and image.format != "PNG"):
                    raise ValueError(f"its pixels are of mode {image.mode!r}, not 8 bits a channel or 16 bits of grey")
                yield image
    except UnidentifiedImageError as error:
        kinds = "PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF"
        raise ValueError(f"cannot read image {path!r} (it is no {kinds} file); {ADVICE}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path!r} ({error}); {ADVICE}") from error


def image_files(folder: Path) -> list[str]:
    """The image files anywhere below a folder, sorted, each once; none where there is no folder.

    Hidden folders and files are left out. Links are followed, but not to a folder that they are in, and no folder or file is
    taken twice.
    """
    found: dict[str, str] = {}
    visited: set[str] = set()
    for below, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(below)
        around = Path(os.path.realpath(Path(below).parent))
        if real in visited or (Path(below).is_symlink() and around.is_relative_to(real)):
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_FILES) and not name.startswith("."):
                path = str(Path(below, name))
                found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


# So many suffixes are named, and so many files compared by content.
SHOWN, COMPARED = 5, 5_000


def note_left_out(listed: Mapping[str, Mapping[str, Sequence[str]]], name: str) -> None:
    """Say which files of the folder are no images, by suffix, and which images are there twice."""
    folders = {Path(path).parent for files in listed.values() for of_kind in files.values() for path in of_kind}
    suffixes = Counter(
        item.suffix.lower() or "no suffix"
        for folder in sorted(folders)
        for item in folder.iterdir()
        if item.is_file() and not item.name.startswith(".") and item.suffix.lower() not in IMAGE_FILES
    )
    if suffixes:
        told = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(SHOWN))
        warnings.warn(f"{name}: {sum(suffixes.values())} files are no images and are left out: {told}", stacklevel=4)
    note_copies(_same_sized(listed), name, cut=len(listed) == 2)


# Where two files of the same content stand, and what follows.
TWICE = {
    "split": ("in two splits with the same content", "accuracies on them are not those on new images"),
    "class": ("in two classes with the same content", "at most one of their labels is right"),
    "copy": (
        "in the training images twice with the same content",
        "a copy may be a validation image, whose accuracy is not that of a new one",
    ),
}


def note_copies(images: Iterable[tuple[str, str, str, bytes]], name: str, cut: bool = False) -> None:
    """Say which images have the same content and stand in two classes, in two splits, or both in a training split that is `cut`.

    Each image is its split, its class, what it is called, and its content. A cut split also gives the validation images.
    """
    first: dict[bytes, tuple[str, str, str]] = {}
    found: dict[str, list[tuple[str, str]]] = {}
    for split, kind, called, content in images:
        other = first.setdefault(hashlib.sha256(content).digest(), (split, kind, called))
        if other[2] == called:
            continue
        copy = cut and (split, kind) == other[:2] and split == "train"
        for what, true in (("class", other[1] != kind), ("split", other[0] != split), ("copy", copy)):
            if true:
                found.setdefault(what, []).append((other[2], called))
    for what, pairs in found.items():
        (one, two), (where, therefore) = pairs[0], TWICE[what]
        warnings.warn(f"{name}: {len(pairs)} images stand {where}, such as {one!r} and {two!r}; {therefore}", stacklevel=5)


def _same_sized(listed: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[tuple[str, str, str, bytes]]:
    """Of the files whose sizes agree the first 5,000, with their content."""
    by_size: dict[int, list[tuple[str, str, str]]] = {}
    for split, files in listed.items():
        for kind, path in ((kind, path) for kind, of_kind in files.items() for path in of_kind):
            by_size.setdefault(Path(path).stat().st_size, []).append((split, kind, path))
    for split, kind, path in [one for same in by_size.values() if len(same) > 1 for one in same][:COMPARED]:
        yield split, kind, path, Path(path).read_bytes()


def pair_of(data: Any) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) float32 in [0, 1] and labels (n,) int64 of a pair (x, y), a DataLoader or a Dataset.

    x and y are tensors, arrays or nested lists. Raises ``ValueError`` that says what was found.

    >>> x, y = pair_of((np.zeros((2, 1, 3, 4), "float32"), [0, 1]))
    >>> x.shape, y.tolist()
    (torch.Size([2, 1, 3, 4]), [0, 1])
    """
    given = _as_pair(data)
    x, y = _collected(data) if given is None else given
    if len(x) == 0:
        raise ValueError("the data hold no images; give at least one image")
    if y.dim() != 1 or len(y) != len(x) or y.is_floating_point():
        hint = "; of several labels per image take one, y[:, c], with a network of that one logit" if y.dim() == 2 else ""
        hint += ", as y.long() gives" if y.dim() == 1 and y.is_floating_point() else ""
        raise ValueError(f"y is {tuple(y.shape)} {y.dtype} for {len(x)} images; labels must be (n,) whole numbers{hint}")
    check_images(x)
    return x.detach().cpu().float(), y.detach().cpu().long()


def _as_pair(data: Any) -> tuple[Tensor, Tensor] | None:
    """Images and labels, both tensors, arrays or nested lists of numbers; None for anything else, such as a list of batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return None
    x, y = data
    if not all(isinstance(part, Tensor | np.ndarray) or _numbers(part) for part in (x, y)):
        return None
    try:
        return torch.as_tensor(x), torch.as_tensor(y)
    except (TypeError, ValueError) as error:  # an array of objects, or lists of several lengths
        raise ValueError(f"the pair (x, y) does not hold arrays of numbers ({error}); give tensors or arrays") from error


def _numbers(x: Any) -> bool:
    while isinstance(x, list) and x:
        x = x[0]
    return isinstance(x, int | float)


def _collected(batches: Any) -> tuple[Tensor, Tensor]:
    """All images and labels that a DataLoader yields, or that a Dataset holds, in batches or one by one."""
    several = hasattr(batches, "__getitem__") and hasattr(batches, "__len__") and not isinstance(batches, str | Mapping)
    if not isinstance(batches, Iterable) and not several:
        raise ValueError(f"{type(batches).__name__} is no data; give a DataSet, a name, a DataLoader or a pair (x, y)")
    found = iter(batches) if isinstance(batches, Iterable) else (batches[place] for place in range(len(batches)))
    parts = []
    for part in found:
        try:
            x, y = torch.as_tensor(part[0]), torch.as_tensor(part[1])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            kind = type(part).__name__
            raise ValueError(f"the data yield {kind}, not pairs (x, y) of images and labels; give such pairs") from error
        parts.append((x[None], y[None]) if x.dim() == 3 and y.dim() == 0 else (x, y))
    if not parts:
        raise ValueError("the DataLoader yields no images; give one that has some, and one that was not read to its end")
    for x, y in parts:
        if x.dim() != 4 or x.shape[1:] != parts[0][0].shape[1:] or y.dim() == 0:
            shapes = f"images {tuple(parts[0][0].shape)} and {tuple(x.shape)}, labels {tuple(y.shape)}"
            raise ValueError(f"the data yield {shapes}; expected images (N, C, H, W) of one size with labels (N,)")
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
