"""The hash of a user's own network code: the callable and what it reaches, so that edits elsewhere do not count."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from vizrobust.plugins import is_file_reference

# Code that says these may reach anything.
ANYTHING = {"eval", "exec", "globals", "vars", "__import__", "importlib"}


def code_sha256(ref: str) -> str:
    """The hash of the code behind ``path.py:callable``; empty for any other reference.

    It covers the callable, all that it reaches by name in its file, statements of the file that bind no name, and the
    modules beside the file that these import. Comments, docstrings and formatting do not count. A file that cannot be
    parsed is hashed whole.
    """
    if not is_file_reference(ref):
        return ""
    path, _, name = ref.rpartition(":")
    digest = hashlib.sha256()
    for text in _reached(Path(path), name, set()):
        digest.update(text.encode())
    return digest.hexdigest()


def object_sha256(net: nn.Module) -> str:
    """The hash of the code of a network that is given as an object: its classes outside torch, where their source is known."""
    digest = hashlib.sha256()
    kinds = {type(module) for module in net.modules() if not type(module).__module__.startswith("torch.")}
    for kind in sorted(kinds, key=lambda one: f"{one.__module__}.{one.__qualname__}"):
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):
            digest.update(kind.__qualname__.encode())
    return digest.hexdigest()


def _reached(path: Path, name: str | None, visited: set[Path]) -> Iterator[str]:
    """The statements of a file that `name` reaches, as text (all of them for None), then those of the modules beside it."""
    visited.add(path.resolve())
    source = path.read_bytes()
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


def _beside(path: Path, statements: Iterable[ast.stmt]) -> Iterator[Path]:
    """The files beside `path` that the statements import."""
    names: list[str] = []
    for node in (node for one in statements for node in ast.walk(one)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module else [alias.name for alias in node.names]
    for name in dict.fromkeys(names):
        place = path.parent.joinpath(*name.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                yield file
