"""The layers of a network: their names and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.models.borrow import borrowed
from vizrobust.models.forward import LOGITS, modules
from vizrobust.spec import unknown


@dataclass(frozen=True)
class Layer:
    """A module as seen by one image: `shape` is its output without the batch axis, `units` the first of it."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def units(self) -> int:
        return self.shape[0] if self.shape else 0

    @property
    def visualizable(self) -> bool:
        """Whether its units are its first axis: (units,) or (units, height, width)."""
        return len(self.shape) in (1, 3)


def layers(net: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """Every layer with its output shape for one image of `shape` (C, H, W), in the order in which they run."""
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else None
        if tensor is not None and name not in seen:
            seen[name] = (type(module).__name__, tuple(tensor.shape[1:]))

    handles = [
        module.register_forward_hook(lambda m, _i, output, name=name: note(name, m, output))
        for name, module in modules(net).items()
    ]
    weight = next(iter(net.parameters()), torch.zeros(()))
    try:
        with borrowed(net), torch.no_grad():
            output = net(torch.full((1, *shape), 0.5, dtype=weight.dtype, device=weight.device))
    finally:
        for handle in handles:
            handle.remove()
    listed = [Layer(name, kind, size) for name, (kind, size) in seen.items()]
    return [*listed, Layer(LOGITS, "output", tuple(output.shape[1:]))]


def layer(net: nn.Module, shape: tuple[int, int, int], name: str) -> Layer:
    """The layer called `name`, with its shape; ``ValueError`` that suggests the nearest where there is none."""
    listed = {item.name: item for item in layers(net, shape)}
    if name not in listed:
        raise ValueError(unknown(name, listed, "layer"))
    return listed[name]
