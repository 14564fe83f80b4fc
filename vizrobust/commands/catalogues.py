"""`list`: everything that has a name, and one thing's fields, defaults, ranges, source and example, recorded without torch.

``python -m vizrobust.commands.catalogues > vizrobust/commands/catalogues.json`` records the catalogues anew; a test compares.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from vizrobust.plugins import GROUPS, Catalogue
from vizrobust.requests.study import ListRequest
from vizrobust.results import Event, Result, Row, Table, percent
from vizrobust.spec import lookup, number_text

if TYPE_CHECKING:
    from vizrobust.session import Session


# Catalogues that other packages add to -> the group of their entry points.
PLUGINS = {"archs" if group == "architectures" else group: group for group in GROUPS}


class Entry(NamedTuple):
    """An entry of a catalogue: what it is, in one line, and its fields; None for another package's, which is not loaded yet."""

    what: str
    table: Table | None


@dataclass(frozen=True, repr=False)
class Listing(Result):
    """What has a name, by catalogue; or the fields of one thing."""

    shown: tuple[Table, ...]
    found: tuple[Row, ...]

    def rows(self) -> list[Row]:
        return list(self.found)

    def tables(self) -> list[Table]:
        return list(self.shown)

    def __repr__(self) -> str:
        return f"Listing({len(self.found)} rows: {', '.join(table.title for table in self.shown)})"


def list_(request: ListRequest, _session: Session | None = None) -> Generator[Event, None, Listing]:
    """The entries of one catalogue or of all, or the description of one entry."""
    kinds = entries()
    if request.kind is None:
        chosen = kinds
    elif request.name is None:
        chosen = {request.kind.lower(): lookup(kinds, request.kind, "catalogue")}
    else:
        things = lookup(kinds, request.kind, "catalogue")
        known = {name.partition(":")[0]: entry for name, entry in things.items()}
        table = _described(request.kind.lower(), known, request.name, request.kind.lower().removesuffix("s"))
        rows: list[Row] = [dict(zip(table.header, row, strict=True)) for row in table.rows]
        yield from rows
        return Listing((table,), tuple(rows))
    found: list[Row] = []
    tables = []
    for title, things in chosen.items():
        mine = [{"kind": title, "name": name, "what": entry.what} for name, entry in things.items()]
        yield from mine
        found += mine
        tables.append(Table(title, ["name", "what it is"], [[row["name"], row["what"]] for row in mine]))
    return Listing(tuple(tables), tuple(found))


def entries() -> dict[str, dict[str, Entry]]:
    """Catalogue name -> its entries by name, with those that installed packages add; imports neither them nor torch."""
    found = {kind: dict(things) for kind, things in _recorded().items()}
    for kind, group in PLUGINS.items():
        for name, entry in Catalogue({}, group).installed().items():
            package = entry.dist.name if entry.dist else entry.value
            found[kind].setdefault(name, Entry(f"of the package {package}", None))
    return found


@cache
def _recorded() -> dict[str, dict[str, Entry]]:
    """The package's own entries, as `record` has written them."""
    recorded = json.loads(files("vizrobust").joinpath("commands", "catalogues.json").read_text(encoding="utf-8"))
    return {
        kind: {name: Entry(entry["what"], Table(**entry["table"])) for name, entry in things.items()}
        for kind, things in recorded.items()
    }


def _described(kind: str, known: Mapping[str, Entry], name: str, what: str) -> Table:
    """The fields of an entry; code of another package is run for that."""
    found = lookup({key: (key, entry) for key, entry in known.items()}, name, what)
    if found[1].table is not None:
        return found[1].table
    return described(Catalogue({}, PLUGINS[kind]).find(found[0], typed=False), found[0])


def list_attacks() -> tuple[str, ...]:
    """The names of all attacks, each usable as ``attack=``.

    >>> "PGD" in list_attacks()
    True
    """
    return _names("attacks", "unforeseen")


def list_models() -> tuple[str, ...]:
    """The names of the checkpoints that come with the package.

    >>> list_models()[0]
    'imagenette-fgsm'
    """
    return _names("models")


def list_recipes() -> tuple[str, ...]:
    """The names of the render recipes, each usable as ``recipe=``.

    >>> list_recipes()[:2]
    ('gradient', 'plain')
    """
    return _names("recipes")


def help(name: str) -> Table:  # noqa: A001
    """The fields, defaults, ranges and source of anything that has a name, in any case, with an example.

    >>> print(help("fgsm").text().splitlines()[1])
    field     default  range                                 type
    """
    everything: dict[str, tuple[str, str, Entry]] = {}
    for kind, things in entries().items():
        known = {key.lower() for key in everything}  # the attack FGSM comes before the training method fgsm
        everything |= {key: (kind, key, entry) for key, entry in things.items() if key.lower() not in known}
    kind, key, entry = lookup(everything, name, "name")
    return _described(kind, {key: entry}, key, "name")


def _names(*kinds: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for kind in kinds for name in entries()[kind]))


# Values that no field of their type takes, so that the refusal says what it takes.
IMPOSSIBLE: dict[str, tuple[object, ...]] = {"int": (-(10**9), 10**9), "float": (-1e9, 1e9), "str": ("?",)}


def catalogues() -> dict[str, Mapping[str, Any]]:
    """Catalogue name -> its entries by name."""
    from vizrobust.attacks import ATTACKS, BALLS, ENSEMBLES, LOSSES, UNFORESEEN
    from vizrobust.attribution import ATTRIBUTIONS
    from vizrobust.clarity import METRICS
    from vizrobust.clarity.judges import BUILTIN
    from vizrobust.data import DATA
    from vizrobust.features import OBJECTIVES, OPTIMIZERS, PARAMETRIZATIONS, RECIPES, TRANSFORMS
    from vizrobust.models import ARCHS, builtin_names
    from vizrobust.robustness.corruptions import CORRUPTIONS
    from vizrobust.training import BASELINE_ATTACKS, METHODS
    from vizrobust.training.examples import MIX_MODES
    from vizrobust.training.train_state import SCHEDULES

    return {
        "models": {name: Model(name) for name in builtin_names()},
        "data": DATA,
        "archs": ARCHS,
        "attacks": {**ATTACKS, **ENSEMBLES},
        "unforeseen": UNFORESEEN,
        "corruptions": CORRUPTIONS,
        "methods": {**BASELINE_ATTACKS, **METHODS},
        "mixes": MIX_MODES,
        "schedules": SCHEDULES,
        "balls": BALLS,
        "losses": LOSSES,
        "recipes": RECIPES,
        "objectives": OBJECTIVES,
        "parametrizations": PARAMETRIZATIONS,
        "transforms": TRANSFORMS,
        "optimizers": OPTIMIZERS,
        "attributions": ATTRIBUTIONS,
        "metrics": METRICS,
        "judges": {name: JudgesOf(name, tuple(refs)) for name, refs in BUILTIN.items()},
    }


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint that comes with the package; loaded when it is asked about."""

    name: str

    def __str__(self) -> str:
        facts = dict(self.facts())
        return f"{facts['arch']} on {facts['data']}, clean {facts['clean']}, {facts['robust']} under {facts['attack']}"

    def facts(self) -> list[tuple[str, str]]:
        from vizrobust.models import load_checkpoint

        info = load_checkpoint(self.name).info
        measured = info.metrics
        return [
            ("arch", info.arch), ("data", info.data), ("input", " x ".join(map(str, info.input_shape))),
            ("classes", str(len(info.classes))), ("attack steps K", "-" if info.attack_steps is None else str(info.attack_steps)),
            ("training", info.training or "-"), ("clean", percent(measured.get("clean"))),
            ("fgsm", percent(measured.get("fgsm"))), ("robust", percent(measured.get("robust"))),
            ("attack", str(measured.get("attack", "attack"))), ("images", str(measured.get("n", "-"))),
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class JudgesOf:
    """The built-in judges of a data set."""

    data: str
    refs: tuple[str, ...]

    def __str__(self) -> str:
        return f"judges of {self.data}: {', '.join(self.refs)}"


def first_line(thing: Any) -> str:
    """What an entry of a catalogue is, in one line."""
    if isinstance(thing, Model | JudgesOf):
        return str(thing)
    title = getattr(thing, "title", None)
    return str(title) if isinstance(title, str) else (thing.__doc__ or "").strip().split("\n")[0]


def described(thing: Any, name: str = "") -> Table:
    """The fields of an entry with defaults and ranges; its description, source and example are the note.

    >>> from vizrobust.attacks import PGD
    >>> print(described(PGD).text().splitlines()[2])
    steps         40       not negative                          int
    """
    if isinstance(thing, Model):
        return Table(thing.name, ["field", "value"], [list(fact) for fact in thing.facts()], f"example: vr.load({thing.name!r})")
    if isinstance(thing, JudgesOf):
        rows = [["judge", ref] for ref in thing.refs]
        return Table(
            thing.data, ["field", "value"], rows, f"example: vizrobust study --data {thing.data} --judge {thing.refs[0]}"
        )
    doc = inspect.cleandoc(thing.__doc__ or "")
    if not callable(thing) and dataclasses.is_dataclass(thing):  # an entry that describes itself, such as a metric
        facts = [(field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing)]
        rows = [[key, getattr(value, "__name__", None) or str(value)] for key, value in facts]
        return Table(name or str(getattr(thing, "name", "")), ["field", "value"], rows)
    rows = [[field, default, allowed, kind] for field, default, kind, allowed in _fields(thing)]
    return Table(name or thing.__name__, ["field", "default", "range", "type"], rows, doc)


def _fields(thing: Any) -> list[tuple[str, str, str, str]]:
    """(name, default, type, range) of what a class or function of a catalogue takes."""
    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        made = [(field.name, _default(field), str(field.type)) for field in dataclasses.fields(thing) if field.init]
    else:
        made = [
            (one.name, "" if one.default is one.empty else _text(one.default), _kind(one.annotation))
            for one in inspect.signature(thing).parameters.values()
        ]
    return [(name, default, kind, _allowed(thing, name, kind)) for name, default, kind in made]


def _kind(annotation: Any) -> str:
    return "" if annotation is inspect.Parameter.empty else annotation if isinstance(annotation, str) else annotation.__name__


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return _text(field.default)
    return _text(field.default_factory()) if field.default_factory is not dataclasses.MISSING else ""


def _text(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else repr(value)


def _allowed(thing: Callable[..., Any], name: str, kind: str) -> str:
    """What a field takes, in the words with which it refuses a value that it does not take; empty where it says nothing."""
    found = []
    for value in (value for word in kind.split(" | ") for value in IMPOSSIBLE.get(word, ())):
        try:
            thing(**{name: value})
        except (ValueError, TypeError) as error:
            told = _range(str(error), name)
            if told and told not in found:
                found.append(told)
        except Exception:
            return ""
    return "; ".join(found)


def _range(refusal: str, name: str) -> str:
    """``must be at least 1, got -5`` -> ``at least 1``; ``no loss '?'; there are: ce, kl`` -> ``ce, kl``."""
    there = re.search(r"there are: (.*)$", refusal)
    if there:
        return there.group(1)
    must = re.search(rf"\b{re.escape(name)} must (?:be )?(.*?)(?:, got .*|; .*)?$", refusal)
    if must and "number" not in must.group(1).split(", got")[0].split()[:2]:
        return must.group(1).replace("not be", "not")
    above = re.search(rf"\b{re.escape(name)} \S+ is above 1\b", refusal)
    return "at most 1" if above else ""


def record() -> dict[str, dict[str, dict[str, Any]]]:
    """Catalogue name -> entry's name -> what it is, in one line, and the table that describes it."""
    return {
        kind: {name: {"what": first_line(thing), "table": _written(described(thing, name))} for name, thing in things.items()}
        for kind, things in catalogues().items()
    }


def _written(table: Table) -> dict[str, Any]:
    return {"title": table.title, "header": table.header, "rows": table.rows, "note": table.note}


def text() -> str:
    """The record as JSON; one line for each entry, so that a difference can be read."""
    kinds = []
    for kind, things in record().items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in things.items())
        kinds.append(f" {json.dumps(kind)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(kinds) + "\n}"


if __name__ == "__main__":
    sys.stdout.write(text() + "\n")
