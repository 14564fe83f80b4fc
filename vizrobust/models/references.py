"""References to networks, and the person's own code that some of them need."""

from __future__ import annotations

import ast
import hashlib
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from vizrobust.models import packages
from vizrobust.models.architectures import ARCHS, Build, Shape, called
from vizrobust.models.checkpoints import UNTRAINED, Checkpoint, CheckpointInfo, read_checkpoint
from vizrobust.models.object_code import PACKAGES
from vizrobust.plugins import builtin_names, from_file, is_file_reference, no_model
from vizrobust.requests import ParameterError
from vizrobust.runs import file_sha256

# Of files that code names these are a part of it; it may write others.
CONFIGURATIONS = (".json", ".yaml", ".yml", ".toml", ".ini", ".cfg")
LONGEST = 200  # of a text that may be a path
INSTALLED = ("vizrobust", "torch")
# Code that says these may reach anything.
ANYTHING = {"eval", "exec", "globals", "vars", "__import__", "importlib"}


def code_sha256(ref: str) -> str:
    """The hash of the code behind ``path.py:callable``; empty for any other reference.

    It covers the callable, all that it reaches by name in its file, statements of the file that bind no name, the person's own
    modules that these import, and configurations that they name. Comments, docstrings and formatting do not count. A file that
    cannot be parsed is hashed whole.
    """
    if not is_file_reference(ref):
        return ""
    path, _, name = ref.rpartition(":")
    digest = hashlib.sha256()
    for text in _reached(Path(path), name, set()):
        digest.update(text.encode())
    return digest.hexdigest()


def _reached(path: Path, name: str | None, visited: set[Path]) -> Iterator[str]:
    """The statements of a file that `name` reaches, as text (all of them for None), then those of the modules beside it."""
    visited.add(path.resolve())
    source = path.read_bytes()
    if path.suffix != ".py":
        yield hashlib.sha256(source).hexdigest()
        return
    try:
        statements = [one for one in ast.parse(source).body if not _is_text(one)]
    except (SyntaxError, ValueError, RecursionError):
        yield hashlib.sha256(source).hexdigest()
        return
    binding = [(one, set(_bound(one))) for one in statements]
    wanted, chosen = {name or ""}, [one for one, names in binding if name is None or not names]
    todo = list(chosen)
    while todo or wanted:
        wanted |= {used for one in todo for used in _used(one)}
        if wanted & ANYTHING:
            chosen = statements
            break
        todo = [one for one, names in binding if one not in chosen and names & wanted]
        chosen += todo
        if not todo:
            break
    ordered = [one for one in statements if one in chosen]
    for one in ordered:
        yield ast.unparse(_without_docstrings(one)) + "\n"
    for file in _beside(path, ordered):
        if file.resolve() not in visited:
            yield f"# {file.name}\n"
            yield from _reached(file, None, visited)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def _used(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _is_text(node.body[0]):
            node.body = node.body[1:] or [ast.Pass()]
    return statement


def _beside(path: Path, statements: Sequence[ast.stmt]) -> Iterator[Path]:
    """The person's own files that the statements import or, where they are a configuration, name."""
    nodes = [node for one in statements for node in ast.walk(one)]
    said = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    texts = [text for text in dict.fromkeys(said) if 0 < len(text) < LONGEST and "\0" not in text]
    places = [path.parent, *_search_path(path, nodes, texts)]
    for start, name in dict.fromkeys(_imported(path, nodes)):
        for root in places if start is None else [start]:
            place = root.joinpath(*name.split("."))
            found = [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
            yield from found
            if found:
                break
    for text in texts:
        if text.endswith(CONFIGURATIONS):
            yield from (file for file in (path.parent / text, Path(text)) if file.is_file())


def _imported(path: Path, nodes: Iterable[ast.AST]) -> Iterator[tuple[Path | None, str]]:
    """The modules that code may import: dotted names, with the folder that a relative one starts from."""
    for node in nodes:
        names: list[str] = []
        start = None
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else None
            # What is imported from a package may be a module of it.
            within = [node.module] if node.module else []
            names = [".".join(parts) for parts in (within, *([*within, alias.name] for alias in node.names)) if parts]
        for name in names:
            top = name.partition(".")[0]
            if start is not None or (top not in sys.stdlib_module_names and top not in INSTALLED):
                yield start, name


def _search_path(path: Path, nodes: Iterable[ast.AST], texts: Iterable[str]) -> list[Path]:
    """Where Python looks for a person's own modules, with the folders that code puts into ``sys.path`` by text."""
    found = [Path(place) for place in sys.path if not str(Path(place).resolve()).startswith(PACKAGES)]
    if any(isinstance(node, ast.Attribute) and node.attr == "path" for node in nodes):
        said = (base / text for text in texts for base in (path.parent, Path()))
        found += [path.parent.parent, *(place for place in said if place.is_dir())]
    return found


CHECKPOINT_FILE = "checkpoint.safetensors"
# What `vizrobust neurons` shows without a reference: K = 0 to 16 attack steps.
SWEEP = tuple(f"imagenette-k{steps}" for steps in (0, 1, 2, 4, 8))
PICKLES = (".pt", ".pth", ".pt2", ".ckpt", ".bin", ".pkl", ".tar")


def architecture(ref: str, shape: Shape, classes: int) -> Build:
    """A function that builds the network `ref` names, for images of `shape` (C, H, W) and so many classes.

    `ref` is one of our architectures, ``torchvision:NAME``, ``timm:NAME``, ``hf:DIR`` (what the folder's config.json
    describes), ``robustbench:NAME`` or ``path/to/file.py:callable``: the user's own code, called as ``callable(classes)``,
    ``callable(shape, classes)`` or ``callable()``, whichever it takes. Raises ``ValueError`` or ``FileNotFoundError`` where
    there is no such thing.
    """
    kind, _, name = ref.partition(":")
    if kind in packages.BUILDERS:
        return packages.BUILDERS[kind](name, shape, classes)
    if is_user_code(ref):
        return _user_code(ref, shape, classes)
    make = ARCHS.lookup(ref, "architecture")
    return lambda: called(make, ref, shape, classes)


def is_user_code(ref: str) -> bool:
    """Whether `ref` is ``path.py:callable``."""
    return is_file_reference(ref)


def _user_code(ref: str, shape: Shape, classes: int) -> Build:
    make = from_file(ref)
    if not callable(make):
        path, _, name = ref.rpartition(":")
        raise ValueError(f"no callable in {path} {name!r}: it is a {type(make).__name__}; name a class or function")
    return lambda: called(make, ref, shape, classes)


def load_checkpoint(ref: str, arch: str | Sequence[str] | None = None, download: bool = False) -> Checkpoint:
    """The checkpoint that `ref` names.

    A built-in name (``mnist-k8``), a file in our format, a training run's folder, ``torchvision:NAME`` (published weights
    from torch's cache, or fetched with `download`), ``hf:DIR`` (a folder that ``save_pretrained`` of Hugging Face's
    transformers wrote), or untrained ``torchvision:NAME@random`` and ``timm:NAME@random``; ``@random`` behind any other
    reference is its network untrained. A checkpoint whose network is the user's own code loads only when `arch` names that
    code again; of several it takes its own. Raises ``ValueError`` or ``FileNotFoundError`` with the next step.

    >>> import torch
    >>> load_checkpoint("mnist-k8").net()(torch.zeros(1, 1, 28, 28)).shape
    torch.Size([1, 10])
    """
    kind, colon, _ = ref.partition(":")
    if colon and kind in packages.KINDS:
        return packages.checkpoint(ref, download)
    if ref.endswith(UNTRAINED) and not Path(ref).exists():
        return load_checkpoint(ref.removesuffix(UNTRAINED), arch, download).untrained(ref)
    path = _file(ref)
    info, state = read_checkpoint(path)
    if not is_user_code(info.arch):
        return Checkpoint(ref, info, state, architecture(info.arch, info.input_shape, len(info.classes)))
    own, code = _own_code(ref, info, (arch,) if isinstance(arch, str) else tuple(arch or ()))
    return Checkpoint(ref, info, state, architecture(own, info.input_shape, len(info.classes)), code=code)


def _file(ref: str) -> Path:
    path = Path(ref)
    if path.is_dir():
        if (path / CHECKPOINT_FILE).is_file():
            return path / CHECKPOINT_FILE
        state = " yet; its training has not ended" if (path / "state.pt").is_file() else ""
        raise FileNotFoundError(f"folder {ref!r} holds no {CHECKPOINT_FILE}{state}")
    if path.is_file():
        if path.suffix in PICKLES:
            raise ValueError(
                f"{ref!r} is not in vizrobust's format; convert it once: vizrobust import {shlex.quote(ref)} --arch … --out …"
            )
        return path
    if ref in builtin_names():
        return Path(str(files("vizrobust.models").joinpath("builtin", f"{ref}.safetensors")))
    if path.suffix or "/" in ref:
        raise FileNotFoundError(f"no file or folder {ref!r}; check the path, or name a built-in network (vizrobust list models)")
    raise ValueError(no_model(ref))


def _own_code(ref: str, info: CheckpointInfo, given: tuple[str, ...]) -> tuple[str, str]:
    """Which of the `given` codes is the checkpoint's, and its hash: the one that it records, else the one of its name."""
    if not given:
        raise ParameterError("%r needs your code: give {arch} %s again (it runs that file)", ref, info.arch)
    for arch in given:
        # Earlier versions recorded the hash of the whole file.
        if info.arch_sha256 in (code := code_sha256(arch), file_sha256(arch.rpartition(":")[0])):
            return arch, code
    named = [arch for arch in given if Path(arch).name == Path(info.arch).name]
    if len(given) > 1 and len(named) != 1:
        there = ", ".join(given)
        raise ParameterError("%r needs the code %s, and none of %s is that; give it with {arch}", ref, info.arch, there)
    arch = named[0] if named else given[0]
    warnings.warn(f"{arch} has changed since {ref!r} was imported", stacklevel=3)
    return arch, code_sha256(arch)
