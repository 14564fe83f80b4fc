"""The layers of a network as objectives may name them: modules, and within them class tokens and attention heads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.models.evidence import layouts
from vizrobust.models.forward import LOGITS, Tap, body, modules, output_of
from vizrobust.models.heads import heads_of
from vizrobust.models.layouts import Layout
from vizrobust.models.probing import HEADS, Shape, look
from vizrobust.spec import unknown


@dataclass(frozen=True)
class View:
    """One layer: `source` names the module (with ``:heads`` for its heads) whose tensor of `shape` is seen by `layout`.

    `number` is that of a token beside the patches; None is everything else.
    """

    name: str
    kind: str
    source: str
    layout: Layout
    shape: tuple[int, ...]
    number: int | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """(N, units) or (N, units, height, width)."""
        return self.layout.canonical(raw) if self.number is None else self.layout.token(raw, self.number)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Of one image, units first."""
        whole = self.layout.shape(self.shape)
        return whole if self.number is None else whole[:1]

    def tap(self, net: nn.Module) -> Tap:
        module = body(net).get_submodule(self.source.removesuffix(HEADS))
        if not self.source.endswith(HEADS):
            return output_of(module)
        heads = heads_of(module)
        if heads is None:
            raise ValueError(f"layer {self.source.removesuffix(HEADS)!r} is no attention whose heads can be read")
        return heads


def views(net: nn.Module, shape: Shape, names: Sequence[str] | None = None) -> dict[str, View]:
    """Every layer by name, in the order in which they run, for images of `shape` (C, H, W); `logits` is the last.

    With `names`, only the layers up to the deepest of these; ``ValueError`` for one that is not there.
    """
    there = modules(net)
    bases = None if names is None else [_base(name, there) for name in names]
    seen = look(net, shape, bases)
    found = layouts(seen, shape, getattr(body(net), "num_prefix_tokens", None))
    listed: dict[str, View] = {}
    for item in seen:
        layout, size = found[item.name], item.output.shape if item.output is not None else ()
        listed[item.name] = View(item.name, item.kind, item.name, layout, size)
        if item.kind == "heads":
            continue
        for number in range(len(layout.extra)):
            name = f"{item.name}:class" if number == 0 else f"{item.name}:token{number}"
            listed[name] = View(name, "token", item.name, layout, size, number)
    for name in names or ():
        if name not in listed:
            raise ValueError(absent(name, there, listed))
    return listed


def _base(name: str, there: Mapping[str, nn.Module]) -> str:
    """The module that a layer's name belongs to; ``ValueError`` where there is none."""
    module = name if name in there or name == LOGITS else name.rpartition(":")[0]
    if module not in there and module != LOGITS:
        raise ValueError(unknown(name, [*there, LOGITS], "layer"))
    return module


def absent(name: str, there: Mapping[str, nn.Module], listed: Mapping[str, View]) -> str:
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
