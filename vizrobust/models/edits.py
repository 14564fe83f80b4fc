"""Change what a layer hands on: during a forward pass, in the module's own layout or unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.models.forward import LOGITS, first_tensor, without_normalization
from vizrobust.models.layers import LayerView
from vizrobust.models.probing import HEADS

Change = Callable[[Tensor], Tensor]


@contextmanager
def edited(net: nn.Module, view: LayerView, change: Change) -> Iterator[None]:
    """Within the block, what a layer hands on is `change` of it, in the module's own layout.

    A module that runs several times in one pass is changed at its first run, which is the one that is read. Raises
    ``ValueError`` for the heads of an attention, which can be read alone.

    >>> from vizrobust.models.layers import views
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> with edited(net, views(net, (1, 2, 2))["1"], torch.zeros_like):
    ...     net(torch.rand(1, 1, 2, 2)).tolist()
    [[0.0, 0.0, 0.0]]
    """
    if view.source.endswith(HEADS):
        raise ValueError(f"layer {view.name!r} can be read, not changed; name a layer whose tensor is handed on")
    module = net if view.source == LOGITS else without_normalization(net).get_submodule(view.source)
    ran = False

    def begin(_net: nn.Module, _inputs: Any) -> None:
        nonlocal ran
        ran = False

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal ran
        if ran:
            return None
        ran = True
        return _with_first(output, change(first_tensor(output)))

    handles = [net.register_forward_pre_hook(begin), module.register_forward_hook(replace)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_first(output: Any, tensor: Tensor) -> Any:
    """A module's output with another first tensor."""
    if isinstance(output, tuple | list):
        return type(output)([_with_first(output[0], tensor), *output[1:]])
    return tensor


def on_units(view: LayerView, units: Sequence[int], change: Change) -> Change:
    """A change of a layer's raw tensor that gives the activations of some `units`, (…, units), to `change`.

    Of a layer of tokens all tokens are changed, of one token that token alone. Of a dictionary's units the layer changes by
    what their codes change, times the decoder's rows: what the dictionary misses of the layer stays (Marks et al. 2025).

    >>> from vizrobust.models.layers import views
    >>> view = views(nn.Conv2d(1, 3, 1), (1, 2, 4))["logits"]
    >>> on_units(view, [1], lambda values: values + 1)(torch.zeros(1, 3, 2, 4)).sum((0, 2, 3)).tolist()
    [0.0, 8.0, 0.0]
    """
    axes = view.layout.axes

    def changed(raw: Tensor) -> Tensor:
        result = raw.clone()
        seen = result.movedim(axes.index("C"), -1)  # a view of the clone
        if view.number is not None:
            tokens = axes.replace("C", "").index("T")
            seen = seen.select(tokens, view.layout.extra[view.number])
        index = torch.tensor(list(units), dtype=torch.int64, device=raw.device)
        if view.dictionary is None:
            seen[..., index] = change(seen[..., index])
        else:
            seen += view.dictionary.moved(seen, index, change)
        return result

    return changed
