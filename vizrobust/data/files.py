"""Data sets from a person's own files: one .npz file of arrays, or a folder of images."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.data.dataset import SPLIT_SEED, SPLITS, Absent, ArraySplit, DataSet, FileSplit, Split, Subset, hold_out, usual_eps
from vizrobust.data.images import image_files, image_header, note_copies, note_left_out, pixels, read_image
from vizrobust.rng import Streams

NEEDED = ("x_test", "y_test")
OPTIONAL = ("x_train", "y_train", "x_val", "y_val", "classes")
CHANNELS = (1, 3)
# A larger label is a fill value or a mistake, and would make a name for every number below it.
MOST_CLASSES = 100_000

Array = NDArray[np.generic]


def npz(file: str) -> DataSet:
    """Your own arrays in one .npz file: x_test, y_test; to train also x_train, y_train; optional x_val, y_val, classes.

    Images are (N, H, W) or channel-last (N, H, W, C) with C 1 or 3, uint8 or float in [0, 1]; labels are whole
    numbers from 0, shape (N,). Test images keep the order of the file. Without `classes` the class names are the
    numbers up to the largest label; without x_val, validation is a fixed stratified tenth of train, or the test images
    where there are no training images.
    Raises ``FileNotFoundError``, or ``ValueError`` naming the array and what was expected.
    """
    arrays = _read(file)
    name = f"npz:{file}"
    test = _split(arrays, "test", name)
    train = _split(arrays, "train", name) if "x_train" in arrays else None
    splits: dict[str, Split] = {"train": train or Absent(), "val": test, "test": test}
    whole = {"test": test} if train is None else {"train": train, "test": test}
    if "x_val" in arrays:
        splits["val"] = whole["val"] = val = _split(arrays, "val", name)
        _same_shape(train or test, val, "x_val", name)
    elif train is not None:
        kept, held = hold_out(train.labels, name)
        splits |= {"train": Subset(train, kept), "val": Subset(train, held)}
    if train is not None:
        _same_shape(train, test, "x_test", name)
    note_copies(_contents(whole), name, cut="val" not in whole)
    channels, height, width = test.pixels.shape[1:]
    shape = (channels, height, width)
    return DataSet(
        name,
        _classes(arrays, (train or test).labels, name),
        shape,
        splits["train"],
        splits["val"],
        splits["test"],
        usual_eps(shape),
    )


def _contents(splits: Mapping[str, ArraySplit]) -> Iterator[tuple[str, str, str, bytes]]:
    for name, split in splits.items():
        for place, (image, label) in enumerate(zip(split.pixels.numpy(), split.labels.tolist(), strict=True)):
            yield name, str(label), f"x_{name}[{place}]", image.tobytes()


def _read(file: str) -> dict[str, Array]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {file!r}; npz:FILE needs a .npz file with {', '.join(NEEDED)}")
    try:
        # numpy leaves a file open that it opened itself and then cannot read.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as loaded:
            missing = [key for key in NEEDED if key not in loaded]
            if missing:
                there = ", ".join(loaded) or "none"
                raise _Unfit(f"{file!r} has no {', '.join(missing)}; expected {', '.join(NEEDED)}, found {there}")
            for split in ("train", "val"):
                if (f"x_{split}" in loaded) != (f"y_{split}" in loaded):
                    raise _Unfit(f"{file!r} has only one of x_{split} and y_{split}; give both or neither")
            return {key: loaded[key] for key in (*NEEDED, *OPTIONAL) if key in loaded}
    except (_Unfit, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything, such as zlib.error or NotImplementedError
        raise ValueError(f"cannot read {file!r} as .npz ({error}); write it with numpy.savez, without objects") from error


class _Unfit(ValueError):
    """A sentence that is already complete."""


def _split(arrays: dict[str, Array], split: str, name: str) -> ArraySplit:
    pixels = _pixels(arrays[f"x_{split}"], f"{name}: x_{split}")
    labels = _labels(arrays[f"y_{split}"], f"{name}: y_{split}")
    if len(pixels) != len(labels):
        raise ValueError(f"{name}: x_{split} has {len(pixels)} images and y_{split} {len(labels)} labels; expected as many")
    return ArraySplit(pixels, labels)


def _pixels(x: Array, name: str) -> Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W), uint8 or float32."""
    if x.ndim not in (3, 4):
        raise ValueError(f"{name} has shape {x.shape}; expected (N, H, W) or (N, H, W, C)")
    if x.ndim == 4 and x.shape[3] not in CHANNELS:
        if x.shape[1] in CHANNELS:
            raise ValueError(f"{name} has shape {x.shape}, channels first; save x.transpose(0, 2, 3, 1), channels last")
        raise ValueError(f"{name} has shape {x.shape}, that is {x.shape[3]} channels; expected 1 or 3 on the last axis")
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}, so no pixels; give at least one image")
    values = x if x.ndim == 4 else x[..., None]
    return torch.from_numpy(np.ascontiguousarray(_checked(values, name).transpose(0, 3, 1, 2)))


def _checked(x: Array, name: str) -> Array:
    """uint8 as it is, float as float32; ``ValueError`` for values that are not images."""
    if x.dtype == np.uint8:
        if x.max() == 1:
            raise ValueError(f"{name} is uint8 but holds only 0 and 1; expected 0 to 255, or float in [0, 1]")
        return x
    if x.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {x.dtype}; expected uint8 (0 to 255) or float in [0, 1]")
    low, high = x.min(), x.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{name} has NaN or infinite values; expected float images in [0, 1]")
    if low >= 0 and 1 < high <= 255:
        raise ValueError(f"{name} holds floats up to {high:.9g}, as if in 0 to 255; divide by 255 or save uint8")
    if low < 0 or high > 1:
        raise ValueError(f"{name} has values from {low:g} to {high:g}; expected float images in [0, 1], not normalized ones")
    return x.astype(np.float32)


def _labels(y: Array, name: str) -> Tensor:
    if y.ndim != 1:
        one = "; of several labels per image save one, y[:, c], for a network of that one logit" if y.ndim == 2 else ""
        raise ValueError(f"{name} has shape {y.shape}; expected (N,), one whole number for each image{one}")
    if y.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {y.dtype}; expected whole numbers from 0")
    far = y[np.isfinite(y) & (np.abs(y.astype(np.float64)) > MOST_CLASSES)]
    if len(far):
        raise ValueError(f"{name} holds the label {far[0]}; labels count classes from 0, up to {MOST_CLASSES:,} of them")
    whole = y.astype(np.int64) if y.dtype.kind != "f" or np.isfinite(y).all() else None
    if whole is None or not (whole == y).all():
        broken = next(value for value in y.tolist() if not float(value).is_integer())
        raise ValueError(f"{name} has labels that are not whole, such as {broken:g}; expected 0, 1, 2, …")
    return torch.from_numpy(whole)


def _same_shape(train: ArraySplit, other: ArraySplit, key: str, name: str) -> None:
    a, b = tuple(train.pixels.shape[1:]), tuple(other.pixels.shape[1:])
    if a != b:
        raise ValueError(f"{name}: x_train has images of (C, H, W) = {a}, {key} of {b}; expected one shape")


def _classes(arrays: dict[str, Array], labels: Tensor, name: str) -> tuple[str, ...]:
    if "classes" not in arrays:
        return tuple(str(label) for label in range(int(labels.max()) + 1))
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(f"{name}: classes has shape {names.shape} and dtype {names.dtype}; expected one string for each class")
    texts = tuple(text.decode(errors="replace") if isinstance(text, bytes) else text for text in names.tolist())
    if "" in texts or len(set(texts)) < len(texts):
        wrong = "an empty name" if "" in texts else f"{Counter(texts).most_common(1)[0][0]!r} twice"
        raise ValueError(f"{name}: classes has {wrong}; give each class a name of its own")
    return texts


# In large folders so many images of each class tell whether it is grey; photographs have a grey one in a hundred.
LOOKED_AT, HEADERS = 10, 20_000
UNLABELLED = "unlabelled"
SMALLEST = 8


def imagefolder(text: str, *, skip_broken: bool = False) -> DataSet:
    """Your own image files, one folder for each class: in DIR/train and DIR/val or DIR/test, in one of the two, or in DIR.

    `text` is ``DIR``, or ``DIR@64``, which resizes the shorter side and cuts out the centre, ``DIR@64-fit``, which resizes the
    longer side and fills the rest with black, or ``DIR@resize256-crop224``. A folder whose whole name is `text` comes first.
    With `skip_broken` each file is decoded once, and those that cannot be are left out and counted.
    Raises ``FileNotFoundError``, or ``ValueError`` with what was found and expected.
    """
    folder, read = (text, ReadImage(0)) if Path(text).expanduser().is_dir() else sizing(text)
    name = f"{'skip-broken:' if skip_broken else ''}imagefolder:{text}"
    return read_folder(Path(folder).expanduser(), name, read, own=True, skip_broken=skip_broken)


def skip_broken(ref: str) -> DataSet:
    """``skip-broken:imagefolder:DIR``: the folder without the files that cannot be read, which are counted."""
    kind, _, text = ref.partition(":")
    if kind.lower() != "imagefolder" or not text:
        raise ValueError(f"skip-broken reads a folder of images, got {ref!r}; write skip-broken:imagefolder:DIR[@SIZE]")
    return imagefolder(text, skip_broken=True)


_SIZING = re.compile(r"(?P<size>\d+)(?P<fit>-fit)?|resize(?P<resize>\d+)-crop(?P<crop>\d+)", re.ASCII)


def sizing(text: str) -> tuple[str, ReadImage]:
    """``NAME`` or ``NAME@64``, ``NAME@64-fit``, ``NAME@resize256-crop224`` in its two parts; ``ValueError`` for other sizes.

    >>> sizing("photos@64")[1].size, sizing("photos@resize256-crop224")[1].resize, sizing("photos")[1].size
    (64, 256, None)
    """
    name, at, size = text.rpartition("@")
    if not at or "/" in size:
        return text, ReadImage(0)
    found = _SIZING.fullmatch(size)
    side = int(found["size"] or found["crop"]) if found else 0
    resize = int(found["resize"] or side) if found else 0
    if not found or not SMALLEST <= side <= resize:
        raise ValueError(
            f"size {size!r} in {text!r}: expected a whole number of pixels, at least {SMALLEST}, as in {name}@64; or "
            f"{name}@64-fit, {name}@resize256-crop224"
        )
    return name, ReadImage(0, side, resize, bool(found["fit"]))


def read_folder(root: Path, name: str, read: ReadImage, own: bool = False, skip_broken: bool = False) -> DataSet:
    """The data set `name` in folder `root`, its files read by `read`, whose channels are those that the files have.

    Classes are the sorted folder names. With train, val and test each split is its folder; with one of val and test
    that is the test split, and validation is a fixed stratified tenth of train. Without train the images serve as test
    and validation images, and nothing can be trained on them; so do class folders in `root` itself, and images in it,
    which have no labels (one class, "unlabelled"). Every split is in a random order fixed by a seed, so that its first
    images are of all classes. Images are grey where all are (of more than 20,000, where the first ten of every class are).
    Without a size all images must have one size, which reads every file's header once. With `own`, what is left out and
    what is there twice is said.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no folder {str(root)!r}; expected one with train/ and val/ or test/ below it")
    present = [split for split in SPLITS if (root / split).is_dir()]
    if present == ["train"]:
        raise ValueError(f"{name}: expected val/ or test/ beside train/ in {str(root)!r}; add one, with the same class folders")
    listed = {split: _list(root / split, name) for split in present} or {"test": _bare(root, name)}
    if skip_broken:
        listed = _readable(listed, name)
    classes = _same_classes(listed, name)
    read = replace(read, channels=_channels(listed))
    height, width = (read.size, read.size) if read.size else _one_size(listed, name)
    splits: dict[str, Split] = {split: shuffled(files, split, read) for split, files in listed.items()}
    if "train" not in splits:
        test = splits.get("test") or splits["val"]
        splits = {"train": Absent(), "val": splits.get("val", test), "test": test}
    elif len(splits) == 2:
        whole, test = shuffled(listed["train"], "train", read), splits[present[1]]
        kept, held = hold_out(whole.labels, name)
        splits = {"train": part(whole, kept), "val": part(whole, held), "test": test}
    if own:
        note_left_out(listed, name)
    shape = (read.channels, height, width)
    return DataSet(name, classes, shape, splits["train"], splits["val"], splits["test"], usual_eps(shape))


@dataclass(frozen=True)
class ReadImage:
    """Path -> (`channels`, H, W), uint8 or float32 in [0, 1].

    The shorter side is resized to `resize` (default: `size`) and the centre of `size` is cut out; with `fit` the longer side is
    resized to `size`, and what is lacking is black.
    """

    channels: int
    size: int | None = None
    resize: int | None = None
    fit: bool = False

    def __call__(self, path: str) -> Tensor:
        from torchvision.transforms.functional import center_crop, resize

        image = read_image(path, self.channels, grey_colors=False)
        if self.size is not None:
            if self.fit:
                sides = [max(1, round(side * self.size / max(image.size))) for side in (image.height, image.width)]
                image = resize(image, sides)
            else:
                image = resize(image, [self.resize or self.size])
            image = center_crop(image, [self.size])
        return pixels(image, self.channels)


def _readable(listed: Mapping[str, Mapping[str, Sequence[str]]], name: str) -> dict[str, dict[str, list[str]]]:
    """The files that can be read; how many cannot is said."""
    broken: list[str] = []

    def whole(path: str) -> bool:
        try:
            read_image(path, 3)
        except ValueError as error:
            broken.append(str(error))
            return False
        return True

    kept = {split: {kind: [path for path in of if whole(path)] for kind, of in files.items()} for split, files in listed.items()}
    if broken:
        warnings.warn(f"{name}: {len(broken)} broken files are left out, the first: {broken[0]}", stacklevel=4)
    for split, files in kept.items():
        for kind, of_kind in files.items():
            if not of_kind:
                raise ValueError(f"{name}: no image of {kind!r} in {split}/ can be read; replace them, or remove the folder")
    return kept


def _bare(root: Path, name: str) -> dict[str, list[str]]:
    """Class folders in `root` itself, or the images in it without labels."""
    if any(item.is_dir() and not item.name.startswith(".") and image_files(item) for item in root.iterdir()):
        return _list(root, name)
    if images := image_files(root):
        return {UNLABELLED: images}
    found = ", ".join(sorted(item.name for item in islice(root.iterdir(), 10))) or "nothing"
    raise ValueError(f"{name}: expected train/ and val/ or test/, class folders or images in {str(root)!r}, found {found}")


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


def _same_classes(listed: dict[str, dict[str, list[str]]], name: str) -> tuple[str, ...]:
    first = next(iter(listed))
    expected = set(listed[first])
    for split, files in listed.items():
        for kind in sorted(expected ^ set(files)):
            there, absent = (first, split) if kind in expected else (split, first)
            raise ValueError(f"{name}: class folder {kind!r} is in {there}/ but not in {absent}/; expected the same in both")
    return tuple(sorted(expected))


def _channels(listed: Mapping[str, Mapping[str, Sequence[str]]]) -> int:
    kinds = [of_kind for files in listed.values() for of_kind in files.values()]
    some = LOOKED_AT if sum(map(len, kinds)) > HEADERS else None
    return 1 if all(image_header(path)[0] for of_kind in kinds for path in of_kind[:some]) else 3


def _one_size(listed: dict[str, dict[str, list[str]]], name: str) -> tuple[int, int]:
    paths = [path for files in listed.values() for of_kind in files.values() for path in of_kind]
    size = image_header(paths[0])[1]
    for path in paths:
        here = image_header(path)[1]
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
