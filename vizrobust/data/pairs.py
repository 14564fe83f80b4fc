"""Images and labels out of what a Python program has: tensors, arrays, lists, a DataLoader, a Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.data.dataset import check_images


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
        raise ValueError(f"the pair (x, y) is of no numbers that make one array ({error}); give tensors or arrays") from error


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
