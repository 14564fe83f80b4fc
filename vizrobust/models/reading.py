"""Layers as every objective sees them: (N, units) or (N, units, height, width), whatever the network's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.models.forward import activations


@dataclass(frozen=True)
class Reading:
    """``reading(net, x)`` gives canonical activations by name; made by `Reading.of` for images of one shape."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, net: nn.Module, shape: tuple[int, int, int], names: Sequence[str]) -> Reading:
        return cls(tuple(dict.fromkeys(names)))

    def __call__(self, net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return activations(net, x, self.names)
