"""A pretended second device, to find tensors on the wrong one without a GPU; like Apple's it has no float64.

Tensors "there" say that they are on `DEVICE` and hold their values in a tensor of the CPU. Operations whose tensors are on
two devices fail as they fail on a GPU: a plain tensor may meet one from there only as a number (no dimensions) or as
indices into it, and comes there by `to(DEVICE)` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vizrobust.compute import Compute

DEVICE = torch.device("meta")
ATEN = torch.ops.aten
CROSSING = {ATEN.copy_.default, ATEN._to_copy.default}
INDEXING = {
    ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default,
    ATEN._unsafe_index.Tensor, ATEN._unsafe_index_put.default,
}  # fmt: skip


class There(Tensor):
    """A tensor on the pretended device; `here` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            layout=here.layout, device=DEVICE, requires_grad=here.requires_grad,
        )  # fmt: skip

    def __init__(self, here: Tensor) -> None:
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_its_device(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.here.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.here})"


def on_its_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are; ``RuntimeError`` where they are on two devices."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, There)]
    wanted = kwargs.get("device")
    if there and func not in CROSSING:
        strangers = [one for one in tensors if not isinstance(one, There) and one.dim() > 0]
        if func in INDEXING and isinstance(args[0], There):
            strangers = [one for one in strangers if any(one is value for value in args[2:])]
        if strangers:
            sizes = [tuple(one.shape) for one in strangers]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, these are on the CPU: {sizes}")
    plain = {**kwargs, **({"device": torch.device("cpu")} if wanted is not None else {})}
    found = func(*tree_map(_here, args), **tree_map(_here, plain))
    mine = bool(there) if wanted is None else torch.device(wanted).type == DEVICE.type
    if func is ATEN.copy_.default:
        return args[0]
    if not mine:
        return found
    own = {id(one.here): one for one in there}

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, There):
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{func}: this device has no float64")
        return own[id(value)] if id(value) in own else There(value.resolve_conj().resolve_neg())

    return tree_map(moved, found)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


class Factories(TorchDispatchMode):
    """New tensors come to be on the device that they are made for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_its_device(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """`torch.tensor` makes its tensor without asking how; here it comes by way of the CPU, as on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1], dtype=None if args[1] else torch.int64), *args[2:])
        if func is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended() -> Iterator[Compute]:
    """A `Compute` on the pretended device, which has autocast as the CPU has it."""
    compute = Compute("cpu")
    compute.device = DEVICE
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a parameter keeps the values of its old kind
    with pytest.MonkeyPatch.context() as patch, Factories(), Literals():
        whole = torch.autocast
        patch.setattr(torch, "autocast", lambda kind, *more, **how: whole("cpu" if kind == DEVICE.type else kind, *more, **how))
        for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
            own = getattr(torch, name)
            patch.setattr(torch, name, lambda kind="cpu", *more, own=own: own("cpu" if kind == DEVICE.type else kind, *more))
        try:
            yield compute
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
