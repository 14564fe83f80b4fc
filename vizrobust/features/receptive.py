"""Where in the image a unit at one position of a layer's map looks: its receptive field, found by gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.models import Reading, borrowed
from vizrobust.rng import Streams

Place = tuple[int, int]
Box = tuple[int, int, int, int]
# A max pooling shows one of its inputs at a time, a ReLU half of them: a few noise images show the whole field.
PROBES = 4


def receptive_fields(
    net: nn.Module, layer: str, places: Iterable[Place], *, shape: tuple[int, int, int], compute: Compute | None = None
) -> dict[Place, Box | None]:
    """The part of an image of `shape` (C, H, W) that can change the layer's map at each place (row, column).

    A box is (top, left, height, width) in pixels, cut at the image's edge: what bounds the non-zero gradients of all
    units at that place on images of noise. None where it is the whole image, or where nothing has a gradient. Rows
    are taken to depend on the place's row alone and columns on its column, as in any layer of a grid, so the cost is
    one backward pass for each row or column of the map that is asked for, whichever are more. Raises ``ValueError``
    for a layer without positions.

    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 28, 28), 10)()
    >>> receptive_fields(net, "conv1", [(0, 0)], shape=(1, 28, 28))[0, 0][:2]
    (0, 0)
    """
    wanted = list(dict.fromkeys(places))
    if not wanted:
        return {}
    compute = (compute or Compute()).in_fp32()
    compute.place(net)
    noise = Streams(0, range(PROBES), "receptive field")
    ys, xs = (sorted({place[axis] for place in wanted}) for axis in (0, 1))
    rows: dict[int, Place | None] = {}
    columns: dict[int, Place | None] = {}
    with borrowed(net):
        x = compute.images(noise.uniform(*shape)).requires_grad_()
        maps = Reading.of(net, shape, [layer])(net, x)[layer]
        if maps.dim() != 4:
            raise ValueError(f"layer {layer!r} has no positions, only units, so it has no receptive fields")
        for i in range(max(len(ys), len(xs))):
            y, x_ = ys[min(i, len(ys) - 1)], xs[min(i, len(xs) - 1)]
            # The units' gradients could cancel out if they were added with one weight.
            signs = noise.uniform(maps.shape[1]).to(maps) - 0.5
            (grad,) = torch.autograd.grad((signs * maps[:, :, y, x_]).sum(), x, retain_graph=True)
            touched = (grad != 0).any(0).any(0)
            rows[y], columns[x_] = _bounds(touched.any(1)), _bounds(touched.any(0))
    return {(y, x_): _box(rows[y], columns[x_], shape) for y, x_ in wanted}


def _bounds(touched: Tensor) -> Place | None:
    """First and one behind the last True."""
    at = touched.nonzero()[:, 0]
    return (int(at[0]), int(at[-1]) + 1) if len(at) else None


def _box(rows: Place | None, columns: Place | None, shape: tuple[int, int, int]) -> Box | None:
    if rows is None or columns is None or (rows, columns) == ((0, shape[1]), (0, shape[2])):
        return None
    return rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0]
