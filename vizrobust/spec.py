"""Text to frozen dataclass and back: one notation for files, labels, test ids and the command line."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Any, TypeVar

from vizrobust.legacy import new_fields, new_name, old_defaults

T = TypeVar("T")
Names = Mapping[str, Callable[..., Any]]
Resolve = Callable[[str, str], Callable[..., Any]]

# Larger specs are a mistake or an attack: reading them, or showing them, could fill the stack.
MOST_LEVELS, MOST_TERMS = 100, 1000
LONGEST_QUOTE = 300
_SCALARS: tuple[type, ...] = (bool, int, float, str)
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}


def spec(cls: type[T]) -> type[T]:
    """Class decorator on top of ``@dataclass(frozen=True)``: a repr that reads back, and checked fields.

    Numbers are brought to the annotated type (``1`` becomes ``1.0`` in a float field), so equal specs
    have equal texts. Raises ``ValueError`` naming class, field and value where the type is wrong.

    >>> from dataclasses import dataclass
    >>> @spec
    ... @dataclass(frozen=True)
    ... class Step:
    ...     size: float = 1.0
    ...     count: int = 1
    >>> Step(size=8 / 255), Step(2)
    (Step(size=8/255), Step(size=2.0))
    """
    init = cls.__init__

    @wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if len(args) > len(names):
            raise ValueError(f"{cls.__name__} takes {len(names)} values ({', '.join(names)}), got {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise ValueError(f"{cls.__name__}: {name} is given twice")
            values[name] = value
        # A class may take shorter words for a field, such as an attack's eps for its ball.
        spell_out: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(cls, "spell_out", dict)
        values = spell_out(values)
        for name in values:
            if name not in names:
                raise ValueError(unknown(name, names, f"field of {cls.__name__}"))
        hints = _hints(cls)  # type: ignore[arg-type]
        missing = [f.name for f in fields(cls) if f.name not in values and not _has_default(f)]  # type: ignore[arg-type]
        if missing:
            raise ValueError(f"{cls.__name__} needs {', '.join(missing)}")
        values = {name: _fit(cls.__name__, name, value, hints[name]) for name, value in values.items()}
        # Held by the object itself: a spec that is too deep to compare or show is refused when it is made.
        levels = 1 + max((_levels(value) for value in values.values()), default=0)
        if levels > MOST_LEVELS:
            raise ValueError(f"{cls.__name__} holds specs inside each other on more than {MOST_LEVELS} levels; use fewer")
        object.__setattr__(self, "_levels", levels)
        init(self, **values)

    cls.__init__ = checked_init  # type: ignore[method-assign]
    cls.__repr__ = show  # type: ignore[method-assign]
    return cls


def show(x: Any) -> str:
    """The text of a spec: ``Name(field=value, ...)`` without the fields that have their default value."""
    parts = [
        f"{field.name}={_text(getattr(x, field.name))}"
        for field in fields(x)
        if not (_has_default(field) and getattr(x, field.name) == _default(field))
    ]
    return f"{_SHOWN.get(type(x), type(x).__name__)}({', '.join(parts)})"


# Classes that a text calls by another name than their own.
_SHOWN: dict[type, str] = {}


def shown_as(cls: type, name: str) -> None:
    """Let the texts of `cls` call it `name`, such as ``my.py:MyAttack``, which stands in quotes."""
    _SHOWN[cls] = name if name.isidentifier() else json.dumps(name, ensure_ascii=False)


def named(*things: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """A catalogue: the things under their own names."""
    return {thing.__name__: thing for thing in things}


def lookup(catalogue: Mapping[str, T], name: str, kind: str) -> T:
    """The entry called `name`, in any case; otherwise a ``ValueError`` that suggests the nearest one."""
    if name in catalogue:
        return catalogue[name]
    folded = {key.lower(): value for key, value in catalogue.items()}
    if name.lower() in folded:
        return folded[name.lower()]
    raise ValueError(unknown(name, catalogue, kind))


def unknown(name: str, known: Iterable[str], kind: str) -> str:
    """One sentence for a name that is not there: the name, the nearest known ones or all of them."""
    known = list(known)
    by_lower = {key.lower(): key for key in known}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known) or 'none'}"
    return f"no {kind} {name!r}; {hint}"


def parse(text: str, names: Names, kind: str = "spec", *, typed: bool = False) -> Any:
    """Read a spec from its text; ``parse(repr(x), names) == x``.

    The grammar: calls, literals, tuples, ``a/b``, and ``+ - *`` between whatever supports them; a bare name is
    a call without arguments. Nothing is evaluated: names come from `names` alone, in any case.
    A catalogue of `plugins` also finds what installed packages add, and ``my.py:Name(...)``, a name in a person's own
    file, if the text was `typed` by a person; read back it is ``"my.py:Name"(...)``. Raises ``ValueError`` for anything else.

    >>> from vizrobust.attacks import NAMES
    >>> parse("pgd(steps=7, ball=linf(eps=8/255))", NAMES)
    PGD(steps=7, ball=Linf(eps=8/255))
    """
    quoted = getattr(names, "quoted", str.strip)
    text = quoted(text.strip())
    try:
        tree = ast.parse(text, mode="eval")
    except (RecursionError, MemoryError) as error:
        raise ValueError(_too_large(kind, text)) from error
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {kind} {_excerpt(text)}: write it like Name(field=value)") from error
    return _build(tree.body, lambda name, kind: _found(names, name, kind, typed), kind, text)


def vary(x: T, /, *, where_present: bool = False, **changes: Any) -> T:
    """`x` with the named fields replaced wherever it, or a spec inside it, has them.

    Raises ``ValueError`` for a field that neither has, unless changes count only `where_present`.

    >>> from vizrobust.attacks import PGD, Linf
    >>> vary(PGD(ball=Linf(eps=0.3)), eps=0.1, steps=7)
    PGD(steps=7, ball=Linf(eps=0.1))
    """
    found: set[str] = set()
    varied = _varied(x, changes, found)
    for name in changes:
        if name not in found and not where_present:
            raise ValueError(unknown(name, dict.fromkeys(_field_names(x)), f"field of {x!r}"))
    return varied


def _varied(x: T, changes: Mapping[str, Any], found: set[str]) -> T:
    new: dict[str, Any] = {}
    for field in fields(x):  # type: ignore[arg-type]
        value = getattr(x, field.name)
        if field.name in changes:
            new[field.name] = changes[field.name]
            found.add(field.name)
        elif is_dataclass(value) and not isinstance(value, type):
            new[field.name] = _varied(value, changes, found)
    return replace(x, **new) if new else x  # type: ignore[type-var]


def _field_names(x: Any) -> Iterator[str]:
    """The fields of a spec and of the specs inside it."""
    for field in fields(x):
        yield field.name
        value = getattr(x, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _field_names(value)


def _build(root: ast.expr, resolve: Resolve, kind: str, text: str) -> Any:
    """The value of a syntax tree, without recursion: each node's parts are finished before it is."""
    values: list[Any] = []
    open_nodes: list[tuple[ast.AST, int, bool]] = [(root, 0, False)]
    terms = 0
    while open_nodes:
        node, depth, finished = open_nodes.pop()
        if finished:
            parts = _parts(node, kind, text)
            taken = values[len(values) - len(parts) :]
            del values[len(values) - len(parts) :]
            values.append(_value(node, taken, resolve, kind if node is root else "name", text))
            continue
        terms += not isinstance(node, ast.BinOp)
        if depth > MOST_LEVELS or terms > MOST_TERMS:
            raise ValueError(_too_large(kind, text))
        open_nodes.append((node, depth, True))
        # A sum nests to the left once for each term, which is no depth that a reader sees.
        nests = not isinstance(node, ast.BinOp)
        open_nodes.extend((part, depth + nests, False) for part in reversed(_parts(node, kind, text)))
    return values[0]


def _too_large(kind: str, text: str) -> str:
    return f"{kind} {_excerpt(text)} is too large: it may have {MOST_LEVELS} levels and {MOST_TERMS} terms at most"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…")


def _parts(node: ast.AST, kind: str, text: str) -> list[ast.expr]:
    """The expressions inside a node whose values it needs; ``ValueError`` where the grammar has no such node."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None) | ast.Name():
            return []
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return items
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return [operand]
        case ast.BinOp(left=left, op=ast.Div() | ast.Add() | ast.Sub() | ast.Mult(), right=right):
            return [left, right]
        case ast.Call(func=ast.Name() | ast.Constant(value=str()), args=args, keywords=keywords) if all(k.arg for k in keywords):
            return [*args, *(keyword.value for keyword in keywords)]
    here = _excerpt(ast.get_source_segment(text.strip(), node) or text)
    raise ValueError(f"cannot read {here} in {kind} {_excerpt(text)}: write it like Name(field=value)")


def _value(node: ast.AST, parts: list[Any], resolve: Resolve, kind: str, text: str) -> Any:
    """What a node stands for, given the values of its parts."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id=name):
            return _call(resolve(name, kind), name, (), {})
        case ast.UnaryOp():
            return _arithmetic(ast.Mult(), -1, parts[0], text)
        case ast.BinOp(op=ast.Div()):
            return _quotient(parts[0], parts[1], text)
        case ast.BinOp(op=op):
            return _arithmetic(op, parts[0], parts[1], text)
        case ast.Call(func=ast.Name(id=name) | ast.Constant(value=str(name)), args=args, keywords=keywords):
            given = dict(zip((str(keyword.arg) for keyword in keywords), parts[len(args) :], strict=True))
            if len(given) < len(keywords):
                raise ValueError(f"in {_excerpt(text)}, a field of {name} is given twice")
            return _call(resolve(name, kind), name, tuple(parts[: len(args)]), given)
    return tuple(parts)


def _quotient(a: Any, b: Any, text: str) -> Any:
    if not (isinstance(a, int | float) or hasattr(a, "__truediv__")) or not isinstance(b, int | float) or b == 0:
        raise ValueError(f"in {_excerpt(text)}, a/b is for two numbers with b not 0")
    try:
        return a / b
    except OverflowError as error:
        raise ValueError(f"in {_excerpt(text)}, a number is too large") from error


def _arithmetic(op: ast.operator, a: Any, b: Any, text: str) -> Any:
    try:
        if any(isinstance(x, str | tuple) for x in (a, b)):
            raise TypeError("strings and tuples are values; repeating one could fill the memory")
        match op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
        return a * b
    except TypeError as error:
        raise ValueError(f"in {_excerpt(text)}, {_text(a)} and {_text(b)} cannot be combined") from error


def _found(names: Names, name: str, kind: str, typed: bool) -> Callable[..., Any]:
    """What `name` stands for: in the catalogue, in it before it was renamed, or outside the package."""
    new = None
    if name.lower() not in {key.lower() for key in names}:
        new = new_name(name, names)
        find = None if new else getattr(names, "find", None)
        outside = find(name, typed=typed) if find else None
        if outside is not None:
            return outside
    try:
        return lookup(names, new or name, kind)
    except ValueError as error:
        # side=step/16 is arithmetic with a field, and specs have none.
        hint = "; a field takes a number such as 8/255, a string in quotes, or another spec" if name.islower() else ""
        raise ValueError(f"{error}{hint}" if kind == "name" else str(error)) from error


def _call(thing: Callable[..., Any], name: str, args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    if not callable(thing):
        raise ValueError(f"{name} is a {type(thing).__name__}, not a class or function to call")
    own, present = _parameters(thing), getattr(thing, "__name__", name)
    values = new_fields(present, values, own)
    if name.lower() != present.lower():
        values = {**old_defaults(name, own[len(args) :]), **values}
    try:
        return thing(*args, **values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _text(value: Any) -> str:
    match value:
        case bool() | int() | None:
            return repr(value)
        case float():
            return number_text(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case tuple():
            inner = ", ".join(_text(item) for item in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def number_text(value: float) -> str:
    """A number as a spec writes it: ``8/255`` where that is exact and shorter."""
    plain = repr(value)
    # Beyond this a fraction is no help to a reader, and value * 255 might overflow.
    if not abs(value) < 1e12:
        return plain
    steps = round(value * 255)
    as_fraction = f"{steps}/255"
    # 0.2 is exactly 51/255 too: the shorter text is what a person would write.
    return as_fraction if steps / 255 == value and len(as_fraction) < len(plain) else plain


@cache
def _parameters(thing: Callable[..., Any]) -> tuple[str, ...]:
    """The names that a class or function of a catalogue takes."""
    if isinstance(thing, type) and is_dataclass(thing):
        return tuple(field.name for field in fields(thing) if field.init)
    return tuple(inspect.signature(thing).parameters)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _fit(owner: str, name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type, or a ValueError."""
    allowed = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    scalars = [kind for kind in allowed if kind in _SCALARS]
    if Any in allowed:
        return value
    if isinstance(value, bool):
        fits = bool in scalars
    elif isinstance(value, int) and int not in scalars and float in scalars:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{owner}: {name} is too large a number") from None
    elif isinstance(value, str | int | float):
        fits = type(value) in scalars
    elif value is None:
        fits = NoneType in allowed
    else:
        fits = any(_is_a(value, kind) for kind in allowed if kind not in _SCALARS and kind is not NoneType)
    if isinstance(value, float) and math.isnan(value):
        fits = False
    if not fits:
        words = " or ".join(_WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in allowed if kind is not NoneType)
        raise ValueError(f"{owner}: {name} must be {words}, got {_text(value)}")
    return value


def _levels(value: Any) -> int:
    """On how many levels specs and tuples are inside each other; counted no further than is allowed."""
    most, depth, layer = 0, 0, [value]
    while layer and depth <= MOST_LEVELS:
        most = max(most, depth, *(depth + getattr(item, "_levels", 0) for item in layer))
        layer = [item for one in layer if isinstance(one, tuple) for item in one]
        depth += 1
    return most


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value that is not a scalar is of the annotated kind; a Protocol counts if it is runtime-checkable."""
    kind = typing.get_origin(kind) or kind
    unchecked = getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    return kind is Any or unchecked or not isinstance(kind, type) or isinstance(value, kind)
