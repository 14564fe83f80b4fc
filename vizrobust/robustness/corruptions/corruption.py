"""A corruption of image tensors, made from a formula on arrays with its published severities; random textures."""

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


# Ice: how many feathers, the side of the tile that holds the grain of their needles, how many times longer than wide
# these are, and their colour.
FEATHERS, TILE, SLENDER = 10, 64, 7
ICE = (214, 235, 255)


def plasma(shape: tuple[int, ...], streams: Streams, decay: float) -> Array:
    """(N, 1, H, W) clouds in [0, 1] by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982).

    From level to level the noise shrinks by the square of `decay`, as in the published fog.
    """
    height, width = shape[2:]
    size = 1 << (max(height, width) - 1).bit_length()
    # Every point but the first is set once, so one field holds the noise of all levels.
    noise = 2 * streams.uniform(size, size).numpy().astype(np.float64) - 1
    field = np.zeros_like(noise)
    step, loudness = size, 1.0
    while step >= 2:
        half = step // 2
        corner = field[:, ::step, ::step]
        pairs = corner + np.roll(corner, -1, 1)
        middle = (pairs + np.roll(pairs, -1, 2)) / 4 + loudness * noise[:, half::step, half::step]
        field[:, half::step, half::step] = middle
        above = middle + np.roll(middle, 1, 1) + corner + np.roll(corner, -1, 2)
        beside = middle + np.roll(middle, 1, 2) + corner + np.roll(corner, -1, 1)
        field[:, ::step, half::step] = above / 4 + loudness * noise[:, ::step, half::step]
        field[:, half::step, ::step] = beside / 4 + loudness * noise[:, half::step, ::step]
        step, loudness = half, loudness / decay**2
    field -= field.min((1, 2), keepdims=True)
    field /= field.max((1, 2), keepdims=True)
    return field[:, None, :height, :width]


def ice(shape: tuple[int, ...], streams: Streams) -> Array:
    """(N, C, H, W) sheets of ice: feathers that each grow in a direction of their own, thick here and thin there."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    n, channels, height, width = shape
    side = min(height, width)
    seats = streams.child("seats").uniform(FEATHERS, 2).numpy() * np.array([height, width])
    turns = 2 * np.pi * streams.child("turns").uniform(FEATHERS).numpy()
    grain = streams.child("grain").uniform(TILE, TILE).numpy()
    bends = gaussian_filter(
        streams.child("bends").normal(3, height, width).numpy(), side / 12, mode="wrap", truncate=2, axes=(2, 3)
    )
    bends /= bends.std((2, 3), keepdims=True)
    grid = np.mgrid[:height, :width].astype(np.float32)
    fine = max(1.0, side / TILE)
    out = np.empty((n, 1, height, width), dtype=np.float32)
    for sheet, seat, turn, tile, bend in zip(out, seats, turns, grain, bends, strict=True):
        # The crooked borders between feathers are where the bent distances to two seats are equal.
        away = (grid + side / 16 * bend[:2])[None] - seat[:, :, None, None]
        feather = (away**2).sum(1).argmin(0)
        down, right = grid - seat[feather].transpose(2, 0, 1)
        along = np.cos(turn)[feather] * down + np.sin(turn)[feather] * right
        across = np.abs(np.cos(turn)[feather] * right - np.sin(turn)[feather] * down)
        # Needles leave the shaft on both sides at 45 degrees.
        places = np.stack([along - across, (along + across) / SLENDER]) / (fine * np.sqrt(2))
        # Interpolation evens the grain out; this brings its contrast back.
        needles = np.clip(1.8 * map_coordinates(tile, places, order=1, mode="grid-wrap") - 0.4, 0, 1)
        thickness = 1 / (1 + np.exp(-0.7 - 2 * bend[2]))
        sheet[0] = 0.1 + 0.9 * (0.5 + 0.5 * needles) * thickness ** (0.3 + 1.4 * needles)
    return out * paint(ICE, channels)
