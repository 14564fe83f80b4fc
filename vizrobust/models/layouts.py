"""The layout of a tensor of activations (NCHW, NHWC, tokens), decided by evidence and never by a guess."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt

from torch import Tensor, nn

from vizrobust.models.probing import ModuleRecord, Shape

WORDS = {"": "unknown", "N": "number", "NC": "vector", "NTC": "tokens", "NCT": "tokens", "TNC": "tokens", "TCN": "tokens"}


@dataclass(frozen=True)
class Layout:
    """`axes` has a letter for each axis: N images, C units, H and W a map's height and width, T tokens; "" is unknown.

    For tokens, `grid` is (height, width) of the map that the patch tokens make, row by row from token `first` on, and
    `extra` are the places of the other tokens (the class token, registers). `reason` says why a layer cannot be
    seen as units, and is empty where it can.

    >>> import torch
    >>> Layout("NTC", grid=(2, 3), first=1, extra=(0,)).canonical(torch.zeros(5, 7, 4)).shape
    torch.Size([5, 4, 2, 3])
    """

    axes: str
    grid: tuple[int, int] | None = None
    first: int = 0
    extra: tuple[int, ...] = ()
    reason: str = ""

    @property
    def word(self) -> str:
        """The layout in one word: vector, NCHW, NHWC, tokens, ..., unknown."""
        return WORDS.get(self.axes, self.axes)

    def canonical(self, raw: Tensor) -> Tensor:
        """A module's output as (N, units) or (N, units, height, width). ``ValueError`` for another grid's tokens."""
        tensor = self._units_second(raw)
        if self.grid is None:
            return tensor
        height, width = self.grid
        if tensor.shape[2] != height * width + len(self.extra):
            raise ValueError(
                f"this layer has {tensor.shape[2]} tokens for these images, but was seen with {height} x {width} "
                f"patches and {len(self.extra)} more; make the ActivationReader for images of this shape"
            )
        patches = tensor[:, :, self.first : self.first + height * width]
        return patches.reshape(*patches.shape[:2], height, width)

    def token(self, raw: Tensor, number: int) -> Tensor:
        """The token `number` of those that are no patches, as (N, units)."""
        return self._units_second(raw)[:, :, self.extra[number]]

    def shape(self, raw: tuple[int, ...]) -> tuple[int, ...]:
        """The shape for one image, units first (as it is, where the layout is unknown)."""
        if not self.axes:
            return raw[1:]
        units = [raw[self.axes.index("C")]] if "C" in self.axes else []
        if self.grid is not None:
            return (*units, *self.grid)
        return (*units, *(raw[self.axes.index(axis)] for axis in "THW" if axis in self.axes))

    def _units_second(self, raw: Tensor) -> Tensor:
        if self.axes in ("NC", "NCHW", "NCT"):
            return raw
        return raw.permute([self.axes.index(axis) for axis in "NCTHW" if axis in self.axes])


# Modules of these files of torch have their units on the second axis by definition.
UNITS_SECOND = tuple(f"torch.nn.modules.{name}" for name in ("conv", "pooling", "batchnorm", "instancenorm", "pixelshuffle"))
Grid = tuple[int, int]


@dataclass
class LayoutEvidence:
    """What the layers before have told."""

    shape: Shape
    prefix_tokens: int | None
    axes: dict[object, set[str]] = field(default_factory=dict)
    grids: list[tuple[Grid, Grid | None, int]] = field(default_factory=list)
    tokens: dict[tuple[int, int | None], Layout] = field(default_factory=dict)

    def note(self, grid: Grid, larger: Grid | None, units: int) -> None:
        """A map of so many units; `larger` is its grid for the larger image."""
        if (grid, larger, units) not in self.grids:
            self.grids.append((grid, larger, units))


def layouts(seen: Sequence[ModuleRecord], shape: Shape, prefix_tokens: int | None = None) -> dict[str, Layout]:
    """The layout of everything seen, in the order in which it ran, for images of `shape` (C, H, W).

    A layer is judged by itself and by the layers before it, so that a pass that stops early tells the same. In this
    order: the axes that grow with the image are places, not units; modules of torch that define their unit axis, and
    weights; an earlier layer of the same shape; the earlier maps. `prefix_tokens` is what the network itself says of
    tokens in front of its patches, and counts only where the probe cannot tell.
    """
    evidence = LayoutEvidence(shape, prefix_tokens)
    return {item.name: _layout(item, evidence) for item in seen}


def _layout(item: ModuleRecord, evidence: LayoutEvidence) -> Layout:
    if item.output is None:
        return Layout("", reason=item.problem)
    _note_patches_cut(item, evidence)
    sizes = item.output.shape
    images = _images_axis(sizes, item.single)
    if images is None:
        return Layout("", reason="its output has no axis of images (it works on windows of them, or on something else)")
    rest = [axis for axis in range(len(sizes)) if axis != images]
    if not rest:
        return Layout("N", reason="one number per image")
    if len(rest) == 1:
        return Layout("".join("N" if axis == images else "C" for axis in range(2)))
    if len(rest) > 3:
        return Layout("", reason=f"{len(rest)} axes besides the images")
    axes = _grown(item, images, rest)
    if not axes:
        axes = next((axes for axes in _witnesses(item, images, rest, evidence) if axes), "")
        if not axes:
            return Layout("", reason="nothing tells its units from its places")
        if len(rest) == 3 and not _is_map(item, axes, evidence):
            return Layout("", reason="its places are no map of the image (windows, or pairs of tokens)")
    if item.kind != "heads":
        evidence.axes.setdefault((sizes, item.single), set()).add(axes)
    if len(rest) == 2:
        return _tokens(item, axes, evidence)
    evidence.note(*_grid_of(item, axes))
    return Layout(axes)


def _images_axis(two: tuple[int, ...], one: tuple[int, ...] | None) -> int | None:
    """The axis that is 2 for two images and 1 for one."""
    if one is None or len(one) != len(two):
        return 0 if two[:1] == (2,) else None
    counting = [axis for axis, (a, b) in enumerate(zip(two, one, strict=True)) if (a, b) == (2, 1)]
    return 0 if 0 in counting else counting[0] if len(counting) == 1 else None


def _named(images: int, units: int, places: Sequence[int]) -> str:
    """The letters of the axes."""
    letters = {images: "N", units: "C"} | dict(zip(places, "T" if len(places) == 1 else "HW", strict=True))
    return "".join(letters[axis] for axis in sorted(letters))


def _grown(item: ModuleRecord, images: int, rest: list[int]) -> str:
    """The axes where all but one grow with the image, each as much as it should; "" where that was not seen."""
    growth = _growth(item)
    growing = sorted((axis for axis in rest if growth[axis]), key=lambda axis: growth[axis])
    if len(growing) != len(rest) - 1 or len({growth[axis] for axis in growing}) != len(growing):
        return ""
    # The larger image grows more in width than in height.
    return _named(images, next(axis for axis in rest if axis not in growing), growing)


def _witnesses(item: ModuleRecord, images: int, rest: list[int], evidence: LayoutEvidence) -> Iterator[str]:
    """What each kind of evidence within one size says of the axes, the strongest first; "" where it says nothing."""
    assert item.output is not None
    sizes = item.output.shape

    def by_units(units: int | None) -> str:
        return "" if units is None else _named(images, units, [axis for axis in rest if axis != units])

    yield by_units(_defined(item, rest))
    same = evidence.axes.get((sizes, item.single), set())
    yield next(iter(same)) if len(same) == 1 else ""
    if any(_growth(item)):
        return
    several = [axis for axis in rest if sizes[axis] > 1]
    yield by_units(several[0] if len(rest) == 3 and len(several) == 1 else None)
    matching = [axis for axis in rest if _are_places([other for other in rest if other != axis], item, sizes[axis], evidence)]
    yield by_units(matching[0] if len(matching) == 1 else None)


def _growth(item: ModuleRecord) -> list[int]:
    """How much each axis grows where the image does; zeros where only one size was seen."""
    assert item.output is not None
    sizes = item.output.shape
    if not item.larger or item.single is None or len(item.single) != len(sizes):
        return [0] * len(sizes)
    return [large - small for small, large in zip(sizes, item.single, strict=True)]


def _defined(item: ModuleRecord, rest: list[int]) -> int | None:
    """The unit axis by the definition of the module or by the size of its weights."""
    module = item.module
    assert item.output is not None
    sizes = item.output.shape
    if item.kind == "heads" or isinstance(module, nn.Linear | nn.MultiheadAttention):
        return rest[-1]
    if any(kind.__module__ in UNITS_SECOND for kind in type(module).__mro__) or isinstance(module, nn.GroupNorm):
        return 1
    normalized = getattr(module, "normalized_shape", None)
    if isinstance(normalized, tuple | list) and len(normalized) == 1:
        fitting = [axis for axis in rest if sizes[axis] == normalized[0]]
        if len(fitting) == 1:
            return fitting[0]
        # A subclass may permute, as torchvision's LayerNorm2d does; torch's own never does.
        return rest[-1] if type(module) in (nn.LayerNorm, nn.RMSNorm) else None
    return None


def _are_places(places: list[int], item: ModuleRecord, units: int, evidence: LayoutEvidence) -> bool:
    """Whether these axes fit a map seen before, as a map, as its tokens with others of any image, or as patches of the image."""
    assert item.output is not None
    sizes = [item.output.shape[axis] for axis in places]
    if len(places) == 2:
        return any(grid == tuple(sizes) for grid, _, _ in evidence.grids)
    more = len(item.output.still.get(places[0], ()))
    counts = {sizes[0], sizes[0] - more}
    return any(h * w in counts and c == units for (h, w), _, c in evidence.grids) or bool(_cut(sizes[0], units, evidence.shape))


def _is_map(item: ModuleRecord, axes: str, evidence: LayoutEvidence) -> bool:
    """Whether the two axes beside the units can be height and width, where the image's growth has not shown it.

    A convolution's are; those of a linear layer may be windows and their pixels, so they must be an earlier map, or
    one that is coarser by a whole number. Pairs of tokens make a square as wide as there are tokens.
    """
    (h, w), _, _ = _grid_of(item, axes)
    maps = {grid for grid, _, _ in evidence.grids} | {evidence.shape[1:]}
    if (h, w) in maps:
        return True
    if h == w and any(h == tokens for tokens, _ in evidence.tokens):
        return False
    if axes == "NCHW":
        return True
    coarser = ((mh, mw, k) for mh, mw in maps for k in range(2, max(mh, mw) + 1))
    return any(h in (mh // k, -(-mh // k)) and w in (mw // k, -(-mw // k)) for mh, mw, k in coarser)


def _cut(tokens: int, units: int, shape: Shape) -> Grid | None:
    """The grid of square patches cut from the image, where tokens of so many units are just that."""
    c, h, w = shape
    side = isqrt(units // c)
    if side < 1 or side * side * c != units or h % side or w % side or (h // side) * (w // side) != tokens:
        return None
    return h // side, w // side


def _note_patches_cut(item: ModuleRecord, evidence: LayoutEvidence) -> None:
    """A linear layer's (or a normalization's) input may be the image cut into patches by reshaping alone."""
    if item.given is None or len(item.given.shape) != 3 or not isinstance(item.module, nn.Linear | nn.LayerNorm):
        return
    _, tokens, units = item.given.shape
    cut = _cut(tokens, units, evidence.shape)
    if cut is not None:
        evidence.note(cut, None, units)


def _grid_of(item: ModuleRecord, axes: str) -> tuple[Grid, Grid | None, int]:
    assert item.output is not None

    def grid(sizes: tuple[int, ...]) -> Grid:
        return sizes[axes.index("H")], sizes[axes.index("W")]

    larger = grid(item.single) if item.larger and item.single is not None and len(item.single) == len(axes) else None
    return grid(item.output.shape), larger, item.output.shape[axes.index("C")]


def _tokens(item: ModuleRecord, axes: str, evidence: LayoutEvidence) -> Layout:
    """The layout of tokens: which of them are the patches of which grid."""
    assert item.output is not None
    place = axes.index("T")
    tokens = item.output.shape[place]
    many = item.single[place] if item.larger and item.single is not None and len(item.single) == 3 else None
    if (tokens, many) in evidence.tokens:
        before = evidence.tokens[tokens, many]
        return Layout(axes, before.grid, before.first, before.extra)
    units = item.output.shape[axes.index("C")]
    cut = _cut(tokens, units, evidence.shape)
    if cut is not None:
        evidence.note(cut, None, units)
    still = _still(item, place, tokens)
    reason = f"its {tokens} tokens are the patches of no map before it" if tokens > 1 else "a single token, which is no patch"
    grids = [(h * w, (h, w), larger) for (h, w), larger, _ in reversed(evidence.grids) if h * w <= tokens]
    for count, grid, larger in sorted(grids, key=lambda found: found[0] < tokens):
        more = tokens - count
        if larger is not None and many is not None and many - larger[0] * larger[1] != more:
            continue
        places = [rows for rows in still if len(rows) == more]
        if not more and any(0 < len(rows) < tokens for rows in still):
            continue
        if more and not places and evidence.prefix_tokens == more:
            places = [tuple(range(more))]
        if more and not places:
            if more > count:
                continue
            reason = f"nothing tells which of its {tokens} tokens are the {grid[0]} x {grid[1]} patches"
            continue
        extra = places[0] if more else ()
        first = next(token for token in range(tokens) if token not in extra)
        if any(first <= token < first + count for token in extra):
            reason = "its other tokens stand among the patches"
            continue
        evidence.note(grid, larger, units)
        evidence.tokens[tokens, many] = Layout(axes, grid, first, extra)
        return evidence.tokens[tokens, many]
    return Layout(axes, reason=reason)


def _still(item: ModuleRecord, place: int, tokens: int) -> list[tuple[int, ...]]:
    """The tokens that are the same for any image (class tokens before the first attention), in the input and output."""
    traces = [trace for trace in (item.given, item.output) if trace is not None and len(trace.shape) == 3]
    return [trace.still[place] for trace in traces if trace.shape[place] == tokens and place in trace.still]
