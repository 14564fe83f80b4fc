"""Windows of an image by whole pixels, cut from what goes on behind its edge."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
