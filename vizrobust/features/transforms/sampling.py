"""From several random maps to pixels: the maps multiply, and the image is sampled once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vizrobust.rng import Streams

Corners = list[tuple[int, int]]


def windows(image: Tensor, corners: Corners, reach: tuple[int, int], edge: str, value: float) -> Tensor:
    """(N, C, H, W) -> the same shape: image i from row and column `corners[i]` on, which lie within +- `reach`.

    `edge` reflect (`reach` less than the side), wrap (at most the side) or constant (any), filled with `value`.
    """
    cut: Tensor = _Windows.apply(image, corners, reach, edge, value)
    return cut


class _Windows(torch.autograd.Function):
    """Its own backward pass: that of reflection padding takes three times as long, that of slices grows with the batch."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, corners: Corners, reach: tuple[int, int], edge: str, value: float) -> Tensor:
        ctx.corners, ctx.reach, ctx.edge = corners, reach, edge
        height, width = image.shape[2:]
        dy, dx = reach
        mode = "circular" if edge == "wrap" else edge
        # A constant is the one fill for which torch takes a value.
        padded = F.pad(image, (dx, dx, dy, dy), mode=mode, value=value if edge == "constant" else None)
        out = torch.empty_like(image)
        for own, one, (top, left) in zip(out, padded, corners, strict=True):
            own.copy_(one[:, dy + top : dy + top + height, dx + left : dx + left + width])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        height, width = grad.shape[2:]
        dy, dx = ctx.reach
        padded = grad.new_zeros(*grad.shape[:2], height + 2 * dy, width + 2 * dx)
        for own, one, (top, left) in zip(padded, grad, ctx.corners, strict=True):
            own[:, dy + top : dy + top + height, dx + left : dx + left + width].copy_(one)
        return _folded(_folded(padded, dy, 2, ctx.edge), dx, 3, ctx.edge), None, None, None, None


def _folded(grad: Tensor, reach: int, axis: int, edge: str) -> Tensor:
    """The gradient of an extended image, brought back to the pixels that its margins along an axis show; in place."""
    side = grad.shape[axis] - 2 * reach
    inner = grad.narrow(axis, reach, side)
    if reach and edge != "constant":
        before, after = grad.narrow(axis, 0, reach), grad.narrow(axis, reach + side, reach)
        if edge == "wrap":
            inner.narrow(axis, side - reach, reach).add_(before)
            inner.narrow(axis, 0, reach).add_(after)
        else:
            inner.narrow(axis, 1, reach).add_(before.flip(axis))
            inner.narrow(axis, side - 1 - reach, reach).add_(after.flip(axis))
    return inner


Size = tuple[int, int]
Matrices = npt.NDArray[np.float64]
Entry = Matrices | float

EDGES = ("reflect", "constant", "wrap")


@runtime_checkable
class GeometricTransform(Protocol):
    """A random affine map of the plane, in pixels about the centre: the point p of the result shows what was at M p.

    ``matrices(draws, size)``: numbers (N, `draws`) in [0, 1), height and width of the picture -> (N, 3, 3) acting on
    (x, y, 1). A transform with `is_identity` is the identity at this size, whatever is drawn.
    """

    @property
    def draws(self) -> int: ...
    def is_identity(self, size: Size) -> bool: ...
    def matrices(self, draws: Matrices, size: Size) -> Matrices: ...


@runtime_checkable
class WholePixels(GeometricTransform, Protocol):
    """A geometric transform by whole pixels, of at most `reach` (rows, columns)."""

    def reach(self, size: Size) -> Size: ...


@runtime_checkable
class MultipleViews(GeometricTransform, Protocol):
    """A geometric transform that makes `count` views of each picture, of size `window`; its matrices come view by view."""

    @property
    def count(self) -> int: ...
    def window(self, size: Size) -> Size: ...


def sampled(
    image: Tensor, moves: Sequence[GeometricTransform], streams: Streams, edge: str = "reflect", value: float = 0.5
) -> tuple[Tensor, Streams]:
    """The image (N, C, H, W) after all moves, (N * copies, C, height, width), and the streams of these rows.

    The picture goes on for ever behind its edge: mirrored about its outermost pixels, filled with `value`, or again.
    Moves by whole pixels alone copy pixels; all others are one bilinear resampling together.
    """
    height, width = size = (image.shape[2], image.shape[3])
    total: Matrices | None = None
    reach: Size | None = (0, 0)
    copies = 1
    for part in _drawn_together(tuple(moves)):
        # The streams live on the CPU, so reading them costs no synchronization.
        draws = streams.uniform(sum(move.draws for move, _, _ in part)).numpy().astype(np.float64)
        for move, whole, several in part:
            own, draws = draws[:, : move.draws], draws[:, move.draws :]
            if move.is_identity(size):
                continue
            step = move.matrices(own, size)
            total = step if total is None else np.tile(total, (len(step) // len(total), 1, 1)) @ step
            far = whole.reach(size) if whole else None
            reach = None if reach is None or far is None else (reach[0] + far[0], reach[1] + far[1])
            if several:
                size, copies, streams = several.window(size), copies * several.count, _for_copies(streams, several.count)
    if total is None:
        return image, streams
    # A mirror that is copied shows no more than the image has.
    if reach is not None and (edge == "constant" or (reach[0] < height and reach[1] < width)):
        corners = [(round(y), round(x)) for x, y in total[:, :2, 2].tolist()]
        return windows(image, corners, reach, edge, value), streams
    return _resampled(image, total, copies, size, edge, value), streams


@lru_cache(maxsize=64)
def _drawn_together(
    moves: tuple[GeometricTransform, ...],
) -> list[list[tuple[GeometricTransform, WholePixels | None, MultipleViews | None]]]:
    """The moves in stretches that are drawn in one call, each with what else it is; one ends where an image becomes several.

    Cached: to ask a Protocol costs more than to draw.
    """
    parts: list[list[tuple[GeometricTransform, WholePixels | None, MultipleViews | None]]] = []
    fresh = True
    for move in moves:
        if fresh:
            parts.append([])
        whole, several = move if isinstance(move, WholePixels) else None, move if isinstance(move, MultipleViews) else None
        parts[-1].append((move, whole, several))
        fresh = several is not None
    return parts


def _for_copies(streams: Streams, copies: int) -> Streams:
    """(N,) streams -> (copies * N,) independent ones, copy by copy, that differ from step to step."""
    if copies == 1:
        return streams
    copy = torch.arange(copies).repeat_interleave(len(streams))
    return Streams.of(streams.keys.repeat(copies), streams.drawn * copies + copy)


def _resampled(image: Tensor, total: Matrices, copies: int, size: Size, edge: str, value: float) -> Tensor:
    """One bilinear resampling; the copies of an image are windows below each other, so the image itself is not repeated."""
    n, channels, height, width = image.shape
    wraps = edge == "wrap"
    # grid_sample counts from -1 at the first pixel's centre to 1 at the last one's; behind the last comes the first again.
    spans = np.array([width if wraps else max(width - 1, 1), height if wraps else max(height - 1, 1)])
    rows = total[:, :2] * (2 / spans)[:, None]
    rows[:, :, 2] -= (1 / spans) if wraps else 0.0
    # In float32 on every path: numpy's float64 may differ in the last place between the lanes of a vector.
    matrix = torch.from_numpy(rows.astype(np.float32)).to(image)
    grid = _grid(matrix.reshape(copies, n, 2, 3).transpose(0, 1), size)
    if wraps:
        grid = grid - 2 * torch.floor((grid + 1) / 2)
        out = F.grid_sample(F.pad(image, (0, 1, 0, 1), mode="circular"), grid, padding_mode="border", align_corners=True)
    elif edge == "constant":
        out = F.grid_sample(image - value, grid, padding_mode="zeros", align_corners=True) + value
    else:
        out = F.grid_sample(image, grid, padding_mode="reflection", align_corners=True)
    if copies == 1:
        return out
    return out.reshape(n, channels, copies, *size).permute(2, 0, 1, 3, 4).reshape(-1, channels, *size)


def _grid(matrix: Tensor, size: Size) -> Tensor:
    """(N, copies, 2, 3) -> (N, copies * height, width, 2), by sums alone: a third of affine_grid's time, every lane alike."""
    height, width = size
    n, copies = matrix.shape[:2]
    x = torch.arange(width, dtype=matrix.dtype, device=matrix.device) - (width - 1) / 2
    y = torch.arange(height, dtype=matrix.dtype, device=matrix.device) - (height - 1) / 2
    grid = matrix.new_empty(n, copies, height, width, 2)
    along = matrix[..., 0, None] * x + matrix[..., 2, None]
    down = matrix[..., 1, None] * y
    for axis in (0, 1):
        torch.add(along[:, :, axis, None, :], down[:, :, axis, :, None], out=grid[..., axis])
    return grid.reshape(n, copies * height, width, 2)


def affine(n: int, a: Entry, b: Entry, c: Entry, d: Entry, x: Entry = 0.0, y: Entry = 0.0) -> Matrices:
    """(n, 3, 3) of ((a, b, x), (c, d, y), (0, 0, 1)), each entry a number or (n,)."""
    out = np.zeros((n, 3, 3))
    out[:, 0, 0], out[:, 0, 1], out[:, 0, 2] = a, b, x
    out[:, 1, 0], out[:, 1, 1], out[:, 1, 2] = c, d, y
    out[:, 2, 2] = 1
    return out
