"""The layers of a network by name: their activations as (N, units) or (N, units, height, width), and changes to these."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.models.dictionaries import Dictionary, dictionary_of
from vizrobust.models.forward import LOGITS, Hook, collect, first_tensor, modules, output_of, without_normalization
from vizrobust.models.layouts import Layout, layouts
from vizrobust.models.probing import HEADS, Shape, heads_of, probe
from vizrobust.requests.request import MARK, parts_of
from vizrobust.spec import unknown


@dataclass(frozen=True)
class LayerView:
    """One layer: `source` names the module (with ``:heads`` for its heads) whose tensor of `shape` is seen by `layout`.

    `number` is that of a token beside the patches; None is everything else. With a `dictionary` its units are those.
    """

    name: str
    kind: str
    source: str
    layout: Layout
    shape: tuple[int, ...]
    number: int | None = None
    dictionary: Dictionary | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """(N, units) or (N, units, height, width)."""
        seen = self.layout.canonical(raw) if self.number is None else self.layout.token(raw, self.number)
        return seen if self.dictionary is None else self.dictionary.encode(seen)

    def gradient(self, raw: Tensor) -> Tensor:
        """The gradient of the module's tensor as that of the units; of a dictionary's along the rows of its decoder."""
        seen = replace(self, dictionary=None)(raw)
        return seen if self.dictionary is None else self.dictionary.along(seen)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Of one image, units first."""
        whole = self.layout.shape(self.shape)
        own = whole if self.number is None else whole[:1]
        return own if self.dictionary is None else (self.dictionary.units, *own[1:])

    def in_dictionary(self, name: str) -> LayerView:
        """The same layer with the units of the dictionary that a ``LAYER:sae=FILE`` names."""
        if self.layout.reason or not self.canonical_shape:
            return replace(self, name=name)
        return replace(self, name=name, kind="dictionary", dictionary=dictionary_of(name, self.canonical_shape[0]))

    def hook(self, net: nn.Module) -> Hook:
        module = without_normalization(net).get_submodule(self.source.removesuffix(HEADS))
        if not self.source.endswith(HEADS):
            return output_of(module)
        heads = heads_of(module)
        if heads is None:
            raise ValueError(f"layer {self.source.removesuffix(HEADS)!r} is no attention whose heads can be read")
        return heads


def views(net: nn.Module, shape: Shape, names: Sequence[str] | None = None) -> dict[str, LayerView]:
    """Every layer by name, in the order in which they run, for images of `shape` (C, H, W); `logits` is the last.

    With `names`, only the layers up to the deepest of these, and what ``LAYER:sae=FILE`` among them names; ``ValueError`` for
    one that is not there.
    """
    there = modules(net)
    bases = None if names is None else [_base(parts_of(name).layer, there) for name in names]
    seen = probe(net, shape, bases)
    found = layouts(seen, shape, getattr(without_normalization(net), "num_prefix_tokens", None))
    listed: dict[str, LayerView] = {}
    for item in seen:
        layout, size = found[item.name], item.output.shape if item.output is not None else ()
        listed[item.name] = LayerView(item.name, item.kind, item.name, layout, size)
        if item.kind == "heads":
            continue
        for number in range(len(layout.extra)):
            name = f"{item.name}:class" if number == 0 else f"{item.name}:token{number}"
            listed[name] = LayerView(name, "token", item.name, layout, size, number)
    for name in names or ():
        own = parts_of(name).layer
        if own not in listed:
            raise ValueError(missing_layer(own, there, listed))
        if own != name:
            listed[name] = listed[own].in_dictionary(name)
    return listed


def module_of(name: str) -> str:
    """The module behind a layer's name, where its own name has no colon.

    >>> module_of("blocks.1:class"), module_of("conv2:sae=d.safetensors"), module_of("conv2")
    ('blocks.1', 'conv2', 'conv2')
    """
    layer = parts_of(name).layer
    return layer.rpartition(":")[0] or layer


def _base(name: str, there: Mapping[str, nn.Module]) -> str:
    """The module that a layer's name belongs to; ``ValueError`` where there is none."""
    module = name if name in there or name == LOGITS else module_of(name)
    if module not in there and module != LOGITS:
        raise ValueError(unknown(name, [*there, LOGITS], "layer"))
    return module


def missing_layer(name: str, there: Mapping[str, nn.Module], listed: Mapping[str, LayerView]) -> str:
    """Why there is no layer of this name."""
    if name in there:
        return f"layer {name!r} is not used in the forward pass of this network"
    base, colon, part = name.rpartition(":")
    if not colon or base not in listed:
        return (
            f"layer {base!r} is not used in the forward pass of this network" if base in there else unknown(name, listed, "layer")
        )
    view = listed[base]
    if part == "heads":
        return f"layer {base!r} ({view.kind}) is no attention whose heads can be read; leave out ':heads'"
    if part != "class" and not re.fullmatch(r"token\d+", part):
        return f"no part {part!r} of layer {base!r}; parts of layers are :class, :token1, :token2 … and :heads"
    parts = [other.name.removeprefix(base) for other in listed.values() if other.source == base and other.number is not None]
    if parts:
        return f"layer {base!r} has no :{part}, only {', '.join(parts)} beside its patches"
    return f"layer {base!r} has no token beside its places (its layout is {view.layout.word}); leave out ':{part}'"


@dataclass(frozen=True)
class ActivationReader:
    """``reading(net, x)``: the canonical activations of some layers by name, for images x (N, C, H, W).

    Vector layers are (N, units), all others (N, units, height, width): maps whatever their layout, and the patch
    tokens of a transformer. ``L:class``, ``L:token1`` … are the tokens of layer L that are no patches, (N, units);
    ``L:heads`` are the lengths of each attention head's output vector at each patch, (N, heads, height, width).
    ``L:sae=FILE`` are the features of the dictionary in a file, whose codes stand in the place of L's units.
    One forward pass for all layers, which ends at the deepest; differentiable. Made by `ActivationReader.of`.
    """

    views: tuple[LayerView, ...]

    @classmethod
    def of(cls, net: nn.Module, shape: Shape, names: Sequence[str]) -> ActivationReader:
        """The reader of the layers `names` for images of `shape` (C, H, W), after a probe of how the network runs.

        Raises ``ValueError`` for a layer that is not there or whose units cannot be told, and what the network
        raises for images of this shape.

        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(2), nn.Flatten(), nn.Linear(24, 5))
        >>> found = ActivationReader.of(net, (3, 4, 6), ["0", "logits"])(net, torch.zeros(2, 3, 4, 6))
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
        hooks = {view.source: view.hook(net) for view in self.views if view.source != LOGITS}
        raw = collect(net, x, [view.source for view in self.views], hooks)
        return {view.name: view(raw[view.source]) for view in self.views}


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

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    >>> [(one.name, one.units) for one in layers(net, (1, 8, 8))]
    [('0', 2), ('1', 72), ('2', 3), ('logits', 3)]
    """
    return [_layer(view) for view in views(net, shape).values()]


def layer(net: nn.Module, shape: tuple[int, int, int], name: str) -> Layer:
    """The layer called `name`, with its shape; ``ValueError`` that suggests the nearest where there is none."""
    listed = views(net, shape, [name] if MARK in name else None)
    if name not in listed:
        raise ValueError(missing_layer(name, modules(net), listed))
    return _layer(listed[name])


def _layer(view: LayerView) -> Layer:
    return Layer(view.name, view.kind, view.canonical_shape, view.layout.word, view.layout.reason)


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
