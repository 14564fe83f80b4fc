"""Natural exemplars: the images that excite each unit most and least, and the receptive field that did it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.models import ActivationReader, evaluating
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams, seeded

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
    with evaluating(net):
        x = compute.images(noise.uniform(*shape)).requires_grad_()
        maps = ActivationReader.of(net, shape, [layer])(net, x)[layer]
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


Measure = Literal["mean", "peak"] | tuple[int | None, int | None]
BATCH_SIZE = 32
NOWHERE = -1


@dataclass(frozen=True)
class TopK:
    """The k images at one end of each unit's order, the most extreme first; of equal ones the lower index first.

    `values` (units, k) float32 and `images` (units, k) int64, the indices in the split. `places` (units, k, 2) int64
    is the row and column of the layer's map that did it, -1 where several cells share the extreme value (a map that
    is zero all over has no such place), None for layers without positions.
    """

    values: Tensor = field(repr=False)
    images: Tensor = field(repr=False)
    places: Tensor | None = field(repr=False)


@dataclass(frozen=True)
class Exemplars:
    """Both ends of a layer's units; `size` is the height and width of its maps, None where it has none."""

    most: TopK
    least: TopK
    size: tuple[int, int] | None

    def end(self, sign: int) -> TopK:
        return self.most if sign > 0 else self.least


def exemplars(
    net: nn.Module,
    layers: Sequence[str],
    images: Split,
    k: int = 9,
    *,
    shape: tuple[int, int, int],
    measure: Measure = "mean",
    compute: Compute | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Exemplars]:
    """The k images that excite every unit of the named layers most, and the k that excite it least; one pass.

    `shape` (C, H, W) is what the network takes. `measure` says by what images are ranked: ``mean``, a map's mean (what
    `Channel` maximizes), ``peak``, its largest value for the most and its smallest for the least exciting, or (row,
    column), its value there (what `Neuron` maximizes; None is the middle); the three are one for layers without
    positions. The place is that of the largest or smallest value, whatever the measure, or (row, column) itself.
    Memory is that of one batch plus units x k numbers, however many the images. `progress` is called with the number of
    images after each batch. Images are ranked in float32 and in batches of exactly `batch_size`, because the last
    bits of a value depend on it.

    Raises ``ValueError`` for fewer than k images, for images that the network does not take, for layers without
    units, for positions outside the map, and for values that are not numbers.

    >>> from vizrobust.data import load
    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 8, 8), 10)()
    >>> found = exemplars(net, ["logits"], load("digits").val, 3, shape=(1, 8, 8))
    >>> found["logits"].most.images.shape
    torch.Size([10, 3])
    """
    if measure not in ("mean", "peak") and not isinstance(measure, tuple):
        raise ValueError(f"exemplars: no measure {measure!r}; there are mean, peak and a position (row, column)")
    check_images(images, k, shape)
    compute = (compute or Compute()).in_fp32()
    compute.place(net)
    reading = ActivationReader.of(net, shape, layers)
    ends = {name: (_TopKSearch(k, 1), _TopKSearch(k, -1)) for name in layers}
    sizes: dict[str, tuple[int, int] | None] = {}
    with evaluating(net), torch.no_grad():
        for index, count in full_batches(len(images), batch_size):
            with seeded(int(index[0]), compute.device):
                found = reading(net, compute.images(images.take(index)))
            for name in ends:
                maps = _checked(found.pop(name)[:count].float(), name)
                sizes[name] = _size(maps)
                for end in ends[name]:
                    end.add(_scores(maps, end.sign, measure, name), index[:count].to(maps.device), maps, measure)
            if progress is not None:
                progress(count)
    return {
        name: Exemplars(most.ranked(sizes[name]), least.ranked(sizes[name]), sizes[name]) for name, (most, least) in ends.items()
    }


class _TopKSearch:
    """The k most extreme images of each unit so far."""

    def __init__(self, k: int, sign: int) -> None:
        self.k, self.sign = k, sign
        self.kept: tuple[Tensor, ...] = ()

    def add(self, values: Tensor, images: Tensor, maps: Tensor, measure: Measure) -> None:
        """Scores (N, units) and maps of N images, whose indices are above all those added before."""
        new = ((self.sign * values).T, images.expand(values.shape[1], -1), torch.full_like(values.T, NOWHERE, dtype=torch.int64))
        both = tuple(torch.cat(pair, 1) for pair in zip(self.kept, new, strict=True)) if self.kept else new
        # Stable: those added before, which have the lower indices, win a tie. topk promises no order.
        order = both[0].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        before = both[0].shape[1] - len(values)
        self.kept = tuple(part.gather(1, order) for part in both)
        if maps.dim() == 4:
            # Places are sought for the few that are kept: in every map of a batch that would cost as much as the network.
            unit, slot = (order >= before).nonzero(as_tuple=True)
            self.kept[2][unit, slot] = _places(maps[order[unit, slot] - before, unit], self.sign, measure)

    def ranked(self, size: tuple[int, int] | None) -> TopK:
        values, images, places = (part.cpu() for part in self.kept)
        if size is None:
            return TopK(self.sign * values, images, None)
        rows = places.div(size[1], rounding_mode="floor")
        split = torch.stack((rows, places - rows * size[1]), dim=-1)
        return TopK(self.sign * values, images, torch.where(places[..., None] == NOWHERE, NOWHERE, split))


def _scores(maps: Tensor, sign: int, measure: Measure, name: str) -> Tensor:
    """(N, units) or (N, units, h, w) -> (N, units)."""
    if maps.dim() == 2:
        scores = maps
    elif isinstance(measure, tuple):
        height, width = maps.shape[2:]
        y, x = _position(measure, height, width)
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"position {y},{x} is outside layer {name!r}, whose maps are {height} x {width}")
        scores = maps[:, :, y, x]
    elif measure == "mean":
        scores = maps.mean((2, 3))
    else:
        scores = maps.amax((2, 3)) if sign > 0 else maps.amin((2, 3))
    if not scores.isfinite().all():
        raise ValueError(f"layer {name!r} gives values that are not finite numbers, so its images have no order; see its weights")
    return scores


def _places(maps: Tensor, sign: int, measure: Measure) -> Tensor:
    """(P, h, w) -> (P,): the place that did it in each map, counted along the rows."""
    if isinstance(measure, tuple):
        y, x = _position(measure, *maps.shape[1:])
        return torch.full((len(maps),), y * maps.shape[2] + x, device=maps.device)
    cells = maps.flatten(1)
    extreme, places = cells.max(dim=1) if sign > 0 else cells.min(dim=1)
    return torch.where((cells == extreme[:, None]).sum(1) == 1, places, NOWHERE)


def _position(measure: tuple[int | None, int | None], height: int, width: int) -> tuple[int, int]:
    y, x = measure
    return height // 2 if y is None else y, width // 2 if x is None else x


def _size(maps: Tensor) -> tuple[int, int] | None:
    """Height and width of a layer's maps; a single cell is no place."""
    return (maps.shape[2], maps.shape[3]) if maps.dim() == 4 and maps.shape[2] * maps.shape[3] > 1 else None


def _checked(maps: Tensor, name: str) -> Tensor:
    if maps.dim() not in (2, 4):
        shape = " x ".join(map(str, maps.shape[1:]))
        raise ValueError(f"layer {name!r} has output {shape}, which has no unit axis; choose another layer for exemplars")
    return maps


def check_images(images: Split, k: int, shape: tuple[int, int, int]) -> None:
    """``ValueError`` where there are fewer than k images, or images of another shape (C, H, W)."""
    if k < 1:
        raise ValueError(f"exemplars: ask for at least 1 image of each unit, got {k}")
    if len(images) < k:
        raise ValueError(f"exemplars: {k} images asked for each unit, but there are only {len(images)}; ask for at most so many")
    there = tuple(images.take(torch.tensor([0])).shape[1:])
    if there != shape:
        sizes = [" x ".join(map(str, one)) for one in (there, shape)]
        raise ParameterError("exemplars: the images are %s, the network takes %s; give other {data}", *sizes)
