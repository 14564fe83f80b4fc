"""Names to things: what is built in, what an installed package adds, and what a person's own file defines."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vizrobust.legacy import NAMES as OLD_NAMES
from vizrobust.spec import lookup, shown_as, unknown

T = TypeVar("T")

# What other packages may add to: the entry-point groups are vizrobust.attacks, vizrobust.objectives, ...
GROUPS = ("attacks", "objectives", "parametrizations", "transforms", "metrics", "judges", "architectures", "data")
FILE_REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")

# What was found outside the package by this process: a reference or package -> its content or version.
_used: dict[str, str] = {}
_modules: dict[tuple[Path, str], ModuleType] = {}


_STRING = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_REFERENCE = re.compile(r"""[^\s"'(),=+*-][^\s"'(),=+*]*\.py:[A-Za-z_]\w*(\s*\()?""")


def quoted_references(text: str) -> str:
    """``my.py:Name(...)`` as the grammar writes it, ``"my.py:Name"(...)``; strings stay as they are.

    >>> quoted_references("a/my.py:Mine(steps=3) - my.py:Other"), quoted_references("Channel('my.py:x')")
    ('"a/my.py:Mine"(steps=3) - "my.py:Other"()', "Channel('my.py:x')")
    """

    def quoted(match: re.Match[str]) -> str:
        whole, call = match.group(0), match.group(1)
        return f"{json.dumps(whole.removesuffix(call or '').strip())}{'(' if call else '()'}"

    pieces = _STRING.split(text)
    return "".join(piece if place % 2 else _REFERENCE.sub(quoted, piece) for place, piece in enumerate(pieces))


class Catalogue(dict[str, T]):
    """Built-in things by name, as a dict; `lookup` also finds those of installed packages and of a person's own file.

    `groups` are the parts of `GROUPS` to which other packages add. Nothing registers itself on import.

    >>> colors = Catalogue({"Red": 1}, "attacks")
    >>> colors.lookup("red", "color")
    1
    >>> colors.lookup("my.py:Blue", "color")
    Traceback (most recent call last):
    ValueError: 'my.py:Blue' is code of a file, which runs only where a person names it (typed=True)
    """

    def __init__(self, things: Mapping[str, T], *groups: str) -> None:
        super().__init__(things)
        self.groups = groups

    def lookup(self, name: str, kind: str, *, typed: bool = False) -> T:
        """The thing called `name`: built in (in any case), an installed package's, or ``FILE.py:NAME`` if `typed`.

        `typed` says that a person wrote the name, not a file. Raises ``ValueError`` with the nearest names where there
        is none, and for code of a file that no person has named in this process.
        """
        if name.lower() in {key.lower() for key in self}:
            return lookup(self, name, kind)
        found = self.find(name, typed=typed)
        if found is not None:
            return found
        return lookup({**self, **dict.fromkeys(self.installed())}, name, kind)  # type: ignore[return-value]

    def quoted(self, text: str) -> str:
        """The text of a spec with the references to files in it quoted, as `spec.parse` reads them."""
        return quoted_references(text)

    def find(self, name: str, *, typed: bool) -> T | None:
        """What is called `name` outside the package: an installed package's thing or a file's; None if there is none."""
        if FILE_REFERENCE.fullmatch(name):
            return _from_file(name, typed)
        installed = {key.lower(): entry for key, entry in self.installed().items()}
        return _from_package(installed[name.lower()]) if name.lower() in installed else None

    def installed(self) -> dict[str, EntryPoint]:
        """The entry points that installed packages add, by name."""
        return dict(_installed(self.groups, tuple(sys.path)))


@cache
def _installed(groups: tuple[str, ...], _path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Read once for each search path: reading the metadata of all packages takes as long as a small computation."""
    return {entry.name: entry for group in groups for entry in entry_points(group=f"vizrobust.{group}")}


def used() -> dict[str, str]:
    """What this process has found outside the package: reference -> sha256 of the file, or package -> version."""
    return dict(_used)


def is_file_reference(ref: str) -> bool:
    """Whether `ref` is ``FILE.py:NAME``.

    >>> is_file_reference("nets/mine.py:make"), is_file_reference("torchvision:resnet18")
    (True, False)
    """
    return FILE_REFERENCE.fullmatch(ref) is not None


def from_file(ref: str) -> Any:
    """The thing that ``FILE.py:NAME`` names; the file runs, once for each content.

    Raises ``FileNotFoundError`` where there is no such file, ``ValueError`` where it cannot run or has no such name.
    """
    path, _, name = ref.rpartition(":")
    module = _module(Path(path), ref)
    found = getattr(module, name, None)
    if found is None:
        raise ValueError(unknown(name, callables(module), f"callable in {path}"))
    return found


def callables(module: ModuleType) -> list[str]:
    """The public names of a module's classes and functions."""
    return [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]


def _module(path: Path, ref: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} (from {ref})")
    source = path.read_bytes()
    key = (path.resolve(), hashlib.sha256(source).hexdigest())
    if key not in _modules:
        name = f"vizrobust_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
        made = importlib.util.spec_from_file_location(name, path)
        if made is None or made.loader is None:
            raise ValueError(f"{str(path)!r} is not a Python file")
        module = importlib.util.module_from_spec(made)
        before = sys.modules.get(name)
        sys.modules[name] = module  # annotations of its classes are looked up there
        try:
            # What was hashed is what runs: a cached .pyc may be of an edit within the same second.
            exec(compile(source, str(path), "exec"), module.__dict__)
        except Exception as error:
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before
            raise ValueError(f"{str(path)!r} stopped with {type(error).__name__}: {' '.join(str(error).split())}") from error
        _modules[key] = module
    return _modules[key]


def _from_file(ref: str, typed: bool) -> Any:
    if not typed and ref not in _used:
        raise ValueError(f"{ref!r} is code of a file, which runs only where a person names it (typed=True)")
    found = from_file(ref)
    if isinstance(found, type):
        shown_as(found, ref)
    _used[ref] = hashlib.sha256(Path(ref.rpartition(":")[0]).read_bytes()).hexdigest()
    return found


def _from_package(entry: EntryPoint) -> Any:
    package = entry.dist.name if entry.dist else entry.value
    try:
        found = entry.load()
    except Exception as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{entry.name!r} of the package {package} cannot be loaded ({type(error).__name__}: {why})") from error
    if isinstance(found, type) and found.__name__ != entry.name:
        shown_as(found, entry.name)
    _used[package] = entry.dist.version if entry.dist else ""
    return found


# A test compares each with its catalogue.
DATA = (
    "mnist5k", "digits", "mnist", "mnist55k", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagenette", "imagenette64",
    "imagenette64-rest", "npz:FILE", "imagefolder:DIR[@SIZE]", "skip-broken:imagefolder:DIR", "shuffled:REF", "held-out:REF",
)  # fmt: skip
ATTACKS = (
    "Linf", "L2", "L1", "L0", "FGSM", "BIM", "PGD", "APGD", "AutoAttack", "FAB", "DeepFool", "CW", "FMN", "DDN", "ALMA",
    "SigmaZero", "Square", "HopSkipJump", "Noise", "Transfer", "EOT",
    "standard", "plus", "rand", "fast",
    "Elastic", "JPEG", "Fog", "Snow", "Gabor", "Pixel", "Glitch", "Kaleidoscope", "Wood", "eps",
)  # fmt: skip
RECIPES = ("gradient", "plain", "direct", "fourier", "lucid", "maco", "Recipe")


def builtin_names() -> list[str]:
    """The checkpoints that come with the package, in the order of their attack steps."""
    folder = files("vizrobust").joinpath("models", "builtin")
    names = [item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors")]
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts k2 before k16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def split_code(ref: str) -> tuple[str, str]:
    """A reference to a checkpoint, and the code that it names for its network alone.

    >>> split_code("mine.safetensors::arch=nets.py:Wide"), split_code("mnist-k8")
    (('mine.safetensors', 'nets.py:Wide'), ('mnist-k8', ''))
    """
    ref, _, code = ref.partition("::arch=")
    return ref, code


def no_data_set(ref: str) -> str:
    """The sentence about a reference that is no data set's; a path alone lacks its prefix.

    >>> no_data_set("mnist5kk"), no_data_set("mine.npz")
    ("no data set 'mnist5kk'; did you mean mnist5k or mnist55k or mnist?", "no data set 'mine.npz'; did you mean npz:mine.npz?")
    """
    path = Path(ref.rpartition(":")[2]).expanduser()
    meant = f"npz:{path}" if path.suffix == ".npz" else f"imagefolder:{ref}" if ref and path.is_dir() else None
    return f"no data set {ref!r}; did you mean {meant}?" if meant else unknown(ref, DATA, "data set")


def no_model(ref: str) -> str:
    """The sentence about a name that no checkpoint of the package has."""
    return unknown(ref, builtin_names(), "model") + " (or give a file, a run folder or torchvision:NAME)"


def check_names(request: Any) -> None:
    """Refuse the misspelt names of a request, as the commands would; ``ValueError`` with the nearest ones.

    Only texts are looked at, and only names alone: what follows a colon, files and other packages' things are left to
    those who load them.
    """
    checks = {"data": _check_data, "model": _check_model, "attack": _check_attack, "recipe": _check_recipe}
    for field in fields(request):
        check, value = checks.get(field.metadata["kind"]), getattr(request, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if check is not None and isinstance(one, str) and one:
                check(one)


def _check_data(ref: str) -> None:
    name = ref
    for suffix in ("@rgb", "@grey"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    while name.lower().startswith(("shuffled:", "held-out:")):
        name = name.partition(":")[2]
    if ":" not in name and name.partition("@")[0].lower() not in _lower(DATA, "data"):
        raise ValueError(no_data_set(name))


def _check_model(ref: str) -> None:
    ref, _ = split_code(ref)
    name = ref.removesuffix("@random")
    if ":" in name or "/" in name or Path(name).suffix or Path(ref).exists() or Path(name).exists():
        return
    if name not in builtin_names() and name.lower() not in _lower((), "judges"):
        raise ValueError(no_model(name))


def _check_attack(text: str) -> None:
    found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(\(.*)?", text, re.DOTALL)
    if found and found.group(1).lower() not in {*_lower((*ATTACKS, *OLD_NAMES), "attacks"), "none"}:
        raise ValueError(unknown(found.group(1), ATTACKS, "attack"))


def _check_recipe(text: str) -> None:
    name = text.strip().partition("(")[0].strip()
    if name.lower() not in _lower(RECIPES):
        raise ValueError(unknown(name, RECIPES, "recipe"))


def _lower(names: Iterable[str], *groups: str) -> set[str]:
    """Names in lower case, with those that installed packages add."""
    return {name.lower() for name in (*names, *Catalogue({}, *groups).installed())}
