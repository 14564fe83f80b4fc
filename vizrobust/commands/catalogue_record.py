"""What `list` knows of every entry of every catalogue, written to catalogues.json: reading it needs no torch.

``python -m vizrobust.commands.catalogue_record > vizrobust/commands/catalogues.json`` writes it anew; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from vizrobust.results import Table, percent
from vizrobust.spec import number_text

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
