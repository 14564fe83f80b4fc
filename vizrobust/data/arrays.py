"""Data sets from one .npz file of arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.data.dataset import ArraySplit, DataSet, Split, Subset
from vizrobust.data.radii import usual_eps
from vizrobust.data.stratify import hold_out

NEEDED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_val", "y_val", "classes")
CHANNELS = (1, 3)

Array = NDArray[np.generic]


def npz(file: str) -> DataSet:
    """Your own arrays: x_train, y_train, x_test, y_test in one .npz file; if present also x_val, y_val, classes.

    Images are (N, H, W) or channel-last (N, H, W, C) with C 1 or 3, uint8 or float in [0, 1]; labels are whole
    numbers from 0, shape (N,). Test images keep the order of the file. Without `classes` the class names are the
    numbers up to the largest training label; without x_val, validation is a fixed stratified tenth of train.
    Raises ``FileNotFoundError``, or ``ValueError`` naming the array and what was expected.
    """
    arrays = _read(file)
    name = f"npz:{file}"
    train, test = _split(arrays, "train", name), _split(arrays, "test", name)
    splits: dict[str, Split] = {"train": train, "test": test}
    if "x_val" in arrays:
        splits["val"] = val = _split(arrays, "val", name)
        _same_shape(train, val, "x_val", name)
    else:
        kept, held = hold_out(train.labels, name)
        splits |= {"train": Subset(train, kept), "val": Subset(train, held)}
    _same_shape(train, test, "x_test", name)
    channels, height, width = train.pixels.shape[1:]
    shape = (channels, height, width)
    return DataSet(name, _classes(arrays, train.labels, name), shape, **splits, eps=usual_eps(shape))


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
            if ("x_val" in loaded) != ("y_val" in loaded):
                raise _Unfit(f"{file!r} has only one of x_val and y_val; give both or neither")
            return {key: loaded[key] for key in (*NEEDED, *OPTIONAL) if key in loaded}
    except _Unfit:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, TypeError, AttributeError) as error:
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
        raise ValueError(f"{name} holds floats up to {high:g}, as if in 0 to 255; divide by 255 or save uint8")
    if low < 0 or high > 1:
        raise ValueError(f"{name} has values from {low:g} to {high:g}; expected float images in [0, 1], not normalized ones")
    return x.astype(np.float32)


def _labels(y: Array, name: str) -> Tensor:
    if y.ndim != 1:
        raise ValueError(f"{name} has shape {y.shape}; expected (N,), one whole number for each image")
    if y.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {y.dtype}; expected whole numbers from 0")
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
        raise ValueError(f"{name}: classes has shape {names.shape} and dtype {names.dtype}; expected one text for each class")
    return tuple(text.decode() if isinstance(text, bytes) else text for text in names.tolist())
