"""`list`: everything that has a name, and one thing's fields, defaults, ranges, source and example."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from vizrobust.plugins import GROUPS, Catalogue
from vizrobust.requests.study import ListRequest
from vizrobust.results import Event, Result, Row, Table
from vizrobust.spec import lookup

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
    """The package's own entries, as `catalogue_record` has written them."""
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
    from vizrobust.commands.catalogue_record import described

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
