"""Layers as every objective sees them: (N, units) or (N, units, height, width), whatever the network's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.models.forward import LOGITS, collect
from vizrobust.models.probing import Shape
from vizrobust.models.views import View, views


@dataclass(frozen=True)
class Reading:
    """``reading(net, x)``: the canonical activations of some layers by name, for images x (N, C, H, W).

    Vector layers are (N, units), all others (N, units, height, width): maps whatever their layout, and the patch
    tokens of a transformer. ``L:class``, ``L:token1`` … are the tokens of layer L that are no patches, (N, units);
    ``L:heads`` are the lengths of each attention head's output vector at each patch, (N, heads, height, width).
    One forward pass for all layers, which ends at the deepest; differentiable. Made by `Reading.of`.
    """

    views: tuple[View, ...]

    @classmethod
    def of(cls, net: nn.Module, shape: Shape, names: Sequence[str]) -> Reading:
        """The reading of the layers `names` for images of `shape` (C, H, W), after a look at how the network runs.

        Raises ``ValueError`` for a layer that is not there or whose units cannot be told, and what the network
        raises for images of this shape.

        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(2), nn.Flatten(), nn.Linear(24, 5))
        >>> found = Reading.of(net, (3, 4, 6), ["0", "logits"])(net, torch.zeros(2, 3, 4, 6))
        >>> {name: tuple(tensor.shape) for name, tensor in found.items()}
        {'0': (2, 4, 2, 3), 'logits': (2, 5)}
        """
        there = views(net, shape, list(names))
        for name in names:
            view = there[name]
            if view.layout.reason:
                sizes = " x ".join(map(str, view.shape[1:]))
                raise ValueError(f"layer {name!r} has no units that can be read: {view.layout.reason} (output {sizes or 'none'})")
        return cls(tuple(there[name] for name in dict.fromkeys(names)))

    def __call__(self, net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        taps = {view.source: view.tap(net) for view in self.views if view.source != LOGITS}
        raw = collect(net, x, [view.source for view in self.views], taps)
        return {view.name: view(raw[view.source]) for view in self.views}
