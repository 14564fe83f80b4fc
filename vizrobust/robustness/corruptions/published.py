"""Makes a corruption of image tensors from a formula on arrays with its published severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.rng import Streams

Array = NDArray[np.floating[Any]]
Constants = Sequence[float | tuple[float, ...]]

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 28
# Luma of red, green and blue (ITU-R BT.601), which the published sets took for grey.
LUMA = (0.299, 0.587, 0.114)
# Images are treated in parts of about so many values, so that a batch of large ones fits in memory.
PART = 2_000_000


class Corruption(Protocol):
    """``corruption(x, severity, streams)``: images (N, C, H, W) in [0, 1], severity 1 to 5 -> the images corrupted.

    C is 1 or 3, H and W are at least 28. Images are rounded to 8 bit before and after. All randomness comes from
    `streams`, which stay as they are: the same call gives the same images. Not differentiable.
    """

    __name__: str

    def __call__(self, x: Tensor, severity: int, streams: Streams) -> Tensor: ...


def published(
    at32: Constants, at64: Constants, at224: Constants, lengths: tuple[int, ...] = ()
) -> Callable[[Callable[..., Any]], Corruption]:
    """Makes a `Corruption` of ``formula(x, streams, *constants)`` on float32 arrays (N, C, H, W).

    The constants for severity 1 to 5 are those of CIFAR-10-C (32 px), Tiny ImageNet-C (64 px) and ImageNet-C (224 px),
    from create_c/make_{cifar,tinyimagenet,imagenet}_c.py of github.com/hendrycks/robustness (Hendrycks and Dietterich
    2019). `lengths` are the positions of those that are lengths in pixels. See `constants_for`.
    """
    tables = {32: at32, 64: at64, 224: at224}

    def decorate(formula: Callable[..., Any]) -> Corruption:
        @wraps(formula)
        def corruption(x: Tensor, severity: int, streams: Streams) -> Tensor:
            _check(x, severity, streams)
            constants = constants_for(min(x.shape[2:]), severity, tables, lengths)
            streams = streams.child(formula.__name__)
            levels = x.detach().clamp(0, 1).mul(255).round().to("cpu", torch.float32).contiguous()
            out = torch.empty(x.shape, dtype=torch.uint8)
            size = max(1, PART // x[:1].numel()) if len(x) else 1
            for start in range(0, len(x), size):
                part = slice(start, start + size)
                found = formula(levels[part].numpy() / np.float32(255), streams.take(part), *constants)
                out[part] = torch.from_numpy(eight_bit(found))
            return out.to(x.device).to(x.dtype) / 255

        return corruption

    return decorate


def constants_for(side: int, severity: int, tables: dict[int, Constants], lengths: tuple[int, ...]) -> tuple[float, ...]:
    """The constants for images whose shorter side is so long.

    They are those of the largest published side that is not above it (of 32 px for smaller images), with lengths in
    pixels multiplied by side / published side (by 1 for smaller images).

    >>> blur = {32: (0.4, 0.6, 0.7, 0.8, 1), 64: (0.5, 0.75, 1, 1.25, 1.5), 224: (1, 2, 3, 4, 6)}
    >>> [constants_for(side, 5, blur, (0,)) for side in (28, 32, 48, 64, 224, 448)]
    [(1.0,), (1.0,), (1.5,), (1.5,), (6.0,), (12.0,)]
    """
    known = max(size for size in tables if size <= max(side, 32))
    values = tables[known][severity - 1]
    values = values if isinstance(values, tuple) else (values,)
    scale = max(1.0, side / known)
    return tuple(float(value) * (scale if place in lengths else 1) for place, value in enumerate(values))


def eight_bit(x: Array) -> NDArray[np.uint8]:
    """Images in [0, 1], clipped and rounded to the nearest of 256 levels."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def grey(x: Array) -> Array:
    """(N, 1 or 3, H, W) -> (N, 1, H, W)"""
    return x if x.shape[1] == 1 else np.einsum("nchw,c->nhw", x, np.array(LUMA, dtype=x.dtype))[:, None]


def paint(rgb: tuple[int, int, int], channels: int) -> Array:
    """A colour given in 8 bit, as (C, 1, 1) in [0, 1]: its grey for one channel."""
    colour = np.array(rgb, dtype=np.float32)[None, :, None, None] / 255
    return (grey(colour) if channels == 1 else colour)[0]


def _check(x: Tensor, severity: int, streams: Streams) -> None:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"corruptions need images (N, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    if min(x.shape[2:]) < SMALLEST:
        raise ValueError(f"corruptions need images of at least {SMALLEST} px, got {x.shape[2]}x{x.shape[3]}; enlarge them first")
    if severity not in SEVERITIES:
        raise ValueError(f"no severity {severity!r}; there are: {', '.join(map(str, SEVERITIES))}")
    if len(streams) != len(x):
        raise ValueError(f"{len(x)} images need as many streams, got {len(streams)}")
