"""How a tensor of activations is laid out, and its view as (N, units) or (N, units, height, width)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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

    @property
    def is_tokens(self) -> bool:
        return "T" in self.axes

    def canonical(self, raw: Tensor) -> Tensor:
        """A module's output as (N, units) or (N, units, height, width). ``ValueError`` for another grid's tokens."""
        tensor = self._units_second(raw)
        if self.grid is None:
            return tensor
        height, width = self.grid
        if tensor.shape[2] != height * width + len(self.extra):
            raise ValueError(
                f"this layer has {tensor.shape[2]} tokens for these images, but was seen with {height} x {width} "
                f"patches and {len(self.extra)} more; make the Reading for images of this shape"
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
