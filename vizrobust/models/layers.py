"""The list of a network's layers: their names, shapes, units and layouts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vizrobust.models.forward import modules
from vizrobust.models.views import View, absent, views


@dataclass(frozen=True)
class Layer:
    """A layer as seen by one image: `shape` is its output without the images' axis, units first.

    `layout` is the module's own in one word (vector, NCHW, NHWC, tokens); `reason` says why it cannot be
    visualized, and is empty where it can.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: str = "NCHW"
    reason: str = ""

    @property
    def units(self) -> int:
        """How many units it has; 0 where that cannot be told."""
        return self.shape[0] if self.shape and self.layout != "unknown" else 0

    @property
    def visualizable(self) -> bool:
        """Whether it is seen as (units,) or (units, height, width)."""
        return not self.reason


def layers(net: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """Every layer for images of `shape` (C, H, W), in the order in which they run.

    A layer of tokens is followed by its ``:class`` and ``:token1`` … where it has such, an attention by ``:heads``.
    """
    return [_layer(view) for view in views(net, shape).values()]


def layer(net: nn.Module, shape: tuple[int, int, int], name: str) -> Layer:
    """The layer called `name`, with its shape; ``ValueError`` that suggests the nearest where there is none."""
    listed = views(net, shape)
    if name not in listed:
        raise ValueError(absent(name, modules(net), listed))
    return _layer(listed[name])


def _layer(view: View) -> Layer:
    return Layer(view.name, view.kind, view.canonical_shape, view.layout.word, view.layout.reason)
