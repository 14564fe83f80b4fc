"""One forward pass in evaluation mode that leaves the network untouched and can end early; normalization as a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vizrobust.spec import unknown


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, with gradients possible even below a caller's ``no_grad``.

    Afterwards every module has its own training flag again. Nothing else needs to be given back: image gradients
    come from ``torch.autograd.grad``, which leaves every ``.grad`` alone, and hooks are removed where they are set.
    """
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.enable_grad():
            yield net
    finally:
        for module, training in flags:
            module.training = training


class Normalized(nn.Module):
    """``net((x - mean) / std)`` with one mean and standard deviation per channel; x is (N, C, H, W) in [0, 1].

    There is deliberately no clip: torch's clamp has zero gradient at the bound and would mask saturated pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise ValueError(f"normalization needs as many means as positive deviations, got {tuple(mean)} / {tuple(std)}")
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


LOGITS = "logits"


class _DeepEnough(Exception):
    """The deepest layer asked for has been reached."""


def without_normalization(net: nn.Module) -> nn.Module:
    """The network without the normalization in front, which is not a layer."""
    return net.net if isinstance(net, Normalized) else net


def modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by dotted name."""
    return {name: module for name, module in without_normalization(net).named_modules() if name}


def activations(net: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of the named layers for images x, from one forward pass that ends at the deepest of them.

    `logits` is the network's own output. A module that runs several times counts at its first run, one that returns
    several tensors with the first. Values are those before any in-place operation behind the layer, in the module's
    own layout (`ActivationReader` gives every layer as (N, units, height, width)). Differentiable; raises ``ValueError`` for
    an unknown layer or one that the forward pass does not use.
    """
    there = modules(net)
    for name in layers:
        if name != LOGITS and name not in there:
            raise ValueError(unknown(name, [*there, LOGITS], "layer"))
    return collect(net, x, layers, {name: output_of(there[name]) for name in layers if name != LOGITS})


# Given what to call with a tensor, it registers a hook and returns the handle.
Hook = Callable[[Callable[[Tensor], None]], RemovableHandle]


def output_of(module: nn.Module) -> Hook:
    """The hook of a module's own output."""
    return lambda keep: module.register_forward_hook(lambda _module, _inputs, output: keep(first_tensor(output)))


def collect(net: nn.Module, x: Tensor, names: Sequence[str], hooks: dict[str, Hook]) -> dict[str, Tensor]:
    """What the hooks called `names` hand out during one forward pass that ends at the last of them, and `logits`."""
    wanted = [name for name in dict.fromkeys(names) if name != LOGITS]
    needs_output = LOGITS in names
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        if name in found:
            return
        last = not needs_output and len(found) == len(wanted) - 1
        # An in-place ReLU behind the layer would overwrite it; the last one is safe, nothing runs behind it.
        found[name] = tensor if last else tensor.clone()
        if last:
            raise _DeepEnough

    handles: list[RemovableHandle] = []
    try:
        handles += [hooks[name](lambda tensor, name=name: keep(name, tensor)) for name in wanted]  # type: ignore[misc]
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


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first tensor of several; ``ValueError`` where there is none."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"a layer's output is {type(output).__name__}, not a tensor")
    return output
