"""The layers of a network: their names and shapes, and their activations by a forward pass that stops early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.models.borrow import borrowed
from vizrobust.models.normalized import Normalized
from vizrobust.spec import unknown

LOGITS = "logits"


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


class _DeepEnough(Exception):
    """The deepest layer asked for has been reached."""


def modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by dotted name; the normalization in front is not a layer."""
    body = net.net if isinstance(net, Normalized) else net
    return {name: module for name, module in body.named_modules() if name}


def activations(net: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of the named layers for images x, from one forward pass that ends at the deepest of them.

    `logits` is the network's own output. A module that runs several times counts at its first run. Values are
    those before any in-place operation behind the layer. Differentiable; raises ``ValueError`` for an unknown
    layer or one that the forward pass does not use.
    """
    there = modules(net)
    wanted = [name for name in dict.fromkeys(layers) if name != LOGITS]
    for name in wanted:
        if name not in there:
            raise ValueError(unknown(name, [*there, LOGITS], "layer"))
    needs_output = LOGITS in layers
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if name in found:
            return
        tensor = _first_tensor(output)
        last = not needs_output and len(found) == len(wanted) - 1
        # An in-place ReLU behind the layer would overwrite it; the last one is safe, nothing runs behind it.
        found[name] = tensor if last else tensor.clone()
        if last:
            raise _DeepEnough

    handles = [there[name].register_forward_hook(lambda _m, _i, output, name=name: keep(name, output)) for name in wanted]
    try:
        output = net(x)
        if needs_output:
            found[LOGITS] = output
    except _DeepEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"layer {missing[0]!r} is not used in the forward pass of this network")
    return found


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


def _first_tensor(output: Any) -> Tensor:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"a layer's output is {type(output).__name__}, not a tensor")
    return output
