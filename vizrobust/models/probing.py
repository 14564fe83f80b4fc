"""What a network's modules do with a few images: the shapes that tell how their outputs are laid out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.models.borrow import borrowed
from vizrobust.models.forward import LOGITS, first_tensor, modules
from vizrobust.models.heads import heads_of

Shape = tuple[int, int, int]
HEADS = ":heads"
# How much larger the second image is. The two numbers differ, so that a map's height and width grow differently.
LARGER = (32, 64)


@dataclass(frozen=True)
class Trace:
    """A tensor's shape and, for two images and three axes, the rows along each axis that are the same for both images."""

    shape: tuple[int, ...]
    still: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a module was seen to do: for two images, then for one, which was `larger` where the network takes that.

    `output` is None where the module hands on no tensor; `problem` says what it was. `module` is None for the
    network's own output and for the heads of an attention, whose `kind` is ``heads``.
    """

    name: str
    kind: str
    module: nn.Module | None
    output: Trace | None
    given: Trace | None = None
    problem: str = ""
    single: tuple[int, ...] | None = None
    larger: bool = False


class _Enough(Exception):
    """All modules asked for have run."""


def look(net: nn.Module, shape: Shape, names: Sequence[str] | None = None) -> list[Seen]:
    """Every module that runs for images of `shape` (C, H, W) in the order of its first end, last the output as `logits`.

    With `names`, only up to where all of them have run. Two or three short forward passes without gradients; raises
    what the network raises for images of this shape.
    """
    c, h, w = shape
    weight = next(iter(net.parameters()), torch.zeros(()))

    def images(count: int, height: int, width: int) -> Tensor:
        # Noise of a generator of our own: what is the same for two such images does not depend on the image.
        drawn = torch.rand(count, c, height, width, generator=torch.Generator().manual_seed(0))
        return drawn.to(weight.device, weight.dtype)

    with borrowed(net), torch.no_grad(), _same_random_state(weight.device):
        seen, failed = _run(net, images(2, h, w), names)
        if failed is not None:
            raise failed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            larger, failed = _run(net, images(1, h + LARGER[0], w + LARGER[1]), names)
        # A network of one size only still says which axis counts the images.
        same = {} if failed is None else _run(net, images(1, h, w), names)[0]
    return [_joined(item, larger.get(name), same.get(name)) for name, item in seen.items()]


def _joined(item: Seen, larger: Seen | None, same: Seen | None) -> Seen:
    other = larger or same
    if other is None or other.output is None:
        return item
    return Seen(item.name, item.kind, item.module, item.output, item.given, item.problem, other.output.shape, larger is not None)


def _run(net: nn.Module, x: Tensor, names: Sequence[str] | None) -> tuple[dict[str, Seen], Exception | None]:
    seen: dict[str, Seen] = {}
    heads: dict[str, Trace] = {}
    missing = None if names is None else set(names)

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if name in seen:
            return
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        seen[name] = _seen(name, type(module).__name__, module, output, given)
        if name in heads:
            seen[name + HEADS] = Seen(name + HEADS, "heads", None, heads[name])
        if missing is not None:
            missing.discard(name)
            if not missing:
                raise _Enough

    def note_heads(name: str, lengths: Tensor) -> None:
        heads.setdefault(name, Trace(tuple(lengths.shape)))

    handles = []
    failed: Exception | None = None
    try:
        for name, module in modules(net).items():
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, output, name=name: note(name, m, args, kwargs, output), with_kwargs=True
                )
            )
            tap = heads_of(module)
            if tap is not None:
                handles.append(tap(lambda lengths, name=name: note_heads(name, lengths)))  # type: ignore[misc]
        output = net(x)
        seen[LOGITS] = _seen(LOGITS, "output", None, output, None)
    except _Enough:
        pass
    except Exception as error:
        failed = error
    finally:
        for handle in handles:
            handle.remove()
    return seen, failed


def _seen(name: str, kind: str, module: nn.Module | None, output: Any, given: Tensor | None) -> Seen:
    try:
        tensor = first_tensor(output)
    except ValueError:
        return Seen(name, kind, module, None, problem=f"hands on {type(output).__name__}, not a tensor")
    return Seen(name, kind, module, _trace(tensor), None if given is None else _trace(given))


def _trace(tensor: Tensor) -> Trace:
    shape = tuple(tensor.shape)
    images = next((axis for axis in (0, 1) if len(shape) == 3 and shape[axis] == 2), None)
    if images is None:
        return Trace(shape)
    same = tensor.select(images, 0) == tensor.select(images, 1)
    rest = [axis for axis in range(3) if axis != images]
    still = {axis: same.all(1 - place).nonzero().flatten().tolist() for place, axis in enumerate(rest)}
    return Trace(shape, {axis: tuple(rows) for axis, rows in still.items()})


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    """A network that draws numbers leaves the caller's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
