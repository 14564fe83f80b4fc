"""The hash of code and settings of things in memory: networks given as objects, and attacks or objectives of a person's own."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...), range, np.generic, torch.dtype, torch.device, torch.Size)
# What every module has; its weights, buffers and parts are hashed elsewhere or by name.
OF_EVERY_MODULE = set(vars(nn.Module()))
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Of a class: what Python itself writes there.
OF_EVERY_CLASS = {*vars(type("Empty", (), {})), "__annotations__", "__firstlineno__", "__static_attributes__", "_abc_impl"}
READS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
# An object may lead to a whole training program; behind so many things only their kinds count.
MOST = 20_000
PACKAGES = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib")})


def object_sha256(*things: Any) -> str:
    """The hash of the code and the settings of things in memory.

    Of a network: the kinds of its modules with their settings, but not weights and buffers. Of a class or a function outside
    installed packages: its code with all that this names, and what a function encloses. Of other objects: their class and
    attributes.

    >>> one, other = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())
    >>> object_sha256(one) == object_sha256(nn.Sequential(nn.ReLU())) != object_sha256(other)
    True
    """
    found = _Content()
    for thing in things:
        found.add(thing)
    return found.digest.hexdigest()


def own_sources(*specs: Any) -> str:
    """16 hex digits over what the texts of specs do not tell: code of a person's own and files that they read; else "".

    A spec that reads a file, such as another network, has a method ``reads() -> tuple[str, ...]`` that gives its hash.

    >>> from vizrobust.attacks import EOT, PGD
    >>> class Mine(PGD):
    ...     __module__ = "mine"
    >>> own_sources(EOT(PGD(eps=0.1))), len(own_sources(EOT(Mine(eps=0.1))))
    ('', 16)
    """
    found = list(_outside(specs))
    return object_sha256(*found)[:16] if found else ""


def _outside(x: Any) -> Iterator[Any]:
    if isinstance(x, tuple | list):
        for item in x:
            yield from _outside(item)
    elif is_dataclass(x) and not isinstance(x, type):
        if is_own(type(x)):
            yield type(x)
        yield from getattr(x, "reads", tuple)()
        for field in fields(x):
            yield from _outside(getattr(x, field.name))
    elif isinstance(x, types.FunctionType) and _is_own_module(x.__module__ or ""):
        yield x


def is_own(kind: type) -> bool:
    """Whether a class is a person's own: of no installed package, nor of this one.

    >>> is_own(nn.Linear), is_own(type("Mine", (), {"__module__": "mine"}))
    (False, True)
    """
    return _is_own_module(kind.__module__)


@functools.cache
def _is_own_module(name: str) -> bool:
    top = name.partition(".")[0]
    if (top in sys.stdlib_module_names and top != "__main__") or top in ("vizrobust", "torch"):
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return not (isinstance(file, str) and str(Path(file).resolve()).startswith(PACKAGES))


class _Content:
    """Adds things to a hash, each once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # holds them, so that no number is used twice

    def put(self, *texts: object) -> None:
        self.digest.update(("\x1f".join(map(str, texts)) + "\x1e").encode(errors="surrogatepass"))

    def add(self, x: Any) -> None:
        if isinstance(x, PLAIN):
            self.put(type(x).__name__, repr(x))
            return
        if id(x) in self.seen:
            self.put("again", self.seen[id(x)][0])
            return
        self.seen[id(x)] = len(self.seen), x
        if len(self.seen) > MOST:
            self.put(type(x).__qualname__)
        elif isinstance(x, nn.Module):
            self._network(x)
        elif isinstance(x, Tensor | np.ndarray):
            self._array(x)
        elif isinstance(x, types.FunctionType):
            self._function(x, _is_own_module(x.__module__ or ""))
        elif isinstance(x, type):
            self._class(x)
        elif isinstance(x, types.ModuleType):
            self.put("module", x.__name__)
        elif isinstance(x, types.MethodType):
            self._all("method", (x.__func__, x.__self__))
        elif isinstance(x, functools.partial):
            self._all("partial", (x.func, x.args, x.keywords))
        elif isinstance(x, property | staticmethod | classmethod | functools.cached_property):
            parts = ("fget", "fset", "__func__", "func")
            self._all(type(x).__name__, [getattr(x, part, None) for part in parts])
        elif isinstance(x, Mapping):
            self._all(type(x).__qualname__, [one for pair in x.items() for one in pair])
        elif isinstance(x, set | frozenset):
            self.put(type(x).__name__, *sorted(object_sha256(one) for one in x))
        elif isinstance(x, list | tuple):
            self._all(type(x).__qualname__, x)
        elif isinstance(x, PurePath):
            self.put("path", x)
        else:
            self._object(x)

    def _all(self, kind: str, parts: Iterable[Any]) -> None:
        parts = list(parts)
        self.put(kind, len(parts))
        for part in parts:
            self.add(part)

    def _array(self, x: Tensor | np.ndarray[Any, Any]) -> None:
        self.put("array", x.dtype, tuple(x.shape))
        if isinstance(x, Tensor) and (x.grad_fn is not None or x.layout != torch.strided or x.is_meta or x.is_quantized):
            return  # computed by a pass, or without numbers of its own
        values = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if isinstance(x, Tensor) else x
        self.digest.update(values.tobytes() if values.dtype != object else repr(values).encode())

    def _network(self, net: nn.Module) -> None:
        for name, module in net.named_modules():
            self.put("part", name)
            self.add(type(module))
            # A module that is compiled at run time (torch.fx, TorchScript) tells its code as text.
            if isinstance(code := getattr(module, "code", None), str):
                self.put(code)
            for key, value in sorted(vars(module).items()):
                if key not in OF_EVERY_MODULE and not isinstance(value, torch._C.ScriptModule):
                    self.put(key)
                    self.add(value)
            for hooks in HOOKS:  # what they enclose are often lists that grow
                for hook in getattr(module, hooks, {}).values():
                    self.put(hooks, type(hook).__qualname__)
                    if isinstance(hook, types.FunctionType):
                        self._code(hook.__code__)

    def _class(self, kind: type) -> None:
        own, top = is_own(kind), kind.__module__.partition(".")[0]
        self.put("class", "" if own else top, kind.__qualname__)
        if top in ("torch", "builtins"):
            return
        for base in kind.__bases__:
            self.add(base) if is_own(base) else self.put(base.__qualname__)
        for key, value in sorted(vars(kind).items()):
            if isinstance(value, types.FunctionType):
                self.put(key)
                self._function(value, own)
            elif own and key not in OF_EVERY_CLASS and not key.startswith("__dataclass"):
                self.put(key)
                self.add(value)

    def _function(self, function: types.FunctionType, own: bool) -> None:
        """Its code; of a person's own also what it encloses and names."""
        self.put("function", function.__qualname__)
        self._code(function.__code__)
        self._all("defaults", (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if own:
                self.add(content)
        if own:
            self._named(function.__code__, function.__globals__)

    def _code(self, code: types.CodeType) -> None:
        self.put("code", code.co_code.hex(), *code.co_names, *code.co_freevars)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._code(const)
            elif isinstance(const, frozenset):
                self.put(*sorted(map(repr, const)))
            else:
                self.put(repr(const))

    def _named(self, code: types.CodeType, there: Mapping[str, Any]) -> None:
        """The module-level things that a code reads; of a module of the person's own, those of its things that it may read."""
        names = {one.argval for one in dis.get_instructions(code) if one.opname in READS_GLOBAL}
        for name in sorted(names & there.keys()):
            self.put(name)
            value = there[name]
            self.add(value)
            if isinstance(value, types.ModuleType) and _is_own_module(value.__name__):
                for read in sorted(set(code.co_names) & vars(value).keys()):
                    self.put(read)
                    self.add(getattr(value, read))
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._named(const, there)

    def _object(self, x: Any) -> None:
        self.add(type(x))
        if not isinstance(x, types.CodeType) and isinstance(there := getattr(x, "__dict__", None), dict):
            self._all("attributes", [one for pair in sorted(there.items()) for one in pair])
