"""What a command yields on its way and returns at its end: progress, notes, tables, a result; and numbers as words."""

from __future__ import annotations

import html
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Row = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far one task is: `done` of `total` steps (None: not known); `note` stands behind the bar.

    `stage` names what is being done of the task. Where there is no bar, each new stage is one line.
    """

    task: str
    done: float
    total: float | None = None
    note: str = ""
    stage: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence for the person, beside the result."""

    text: str


@dataclass(frozen=True)
class Table:
    """Finished texts under a header, with a title above and a note below.

    A `narrow` one has names that must not be broken: where the terminal is too narrow, each row takes two lines.

    >>> print(Table("accuracy", ("checkpoint", "clean"), [("mnist-k8", "97.1 %")]).text())
    accuracy
    checkpoint  clean
    mnist-k8    97.1 %
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    narrow: bool = False

    def text(self) -> str:
        """The table as plain text, columns padded."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        body = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
        return "\n".join([self.title, *body, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><caption>{html.escape(self.title)}</caption>{line(self.header, 'th')}{body}</table>{note}"


@runtime_checkable
class Result(Protocol):
    """The answer of a command: rows for programs, tables for people, and whether all is well (None: undecided)."""

    @property
    def ok(self) -> bool | None: ...
    def rows(self) -> list[Row]: ...
    def tables(self) -> list[Table]: ...


Event = Progress | Note | Row
Answer = Generator[Event, None, Result]


def answer_of(events: Generator[Event, None, Any]) -> tuple[Any, list[Note]]:
    """Run a command's function to its end without showing anything: its result, and its notes.

    >>> def command():
    ...     yield Note("a note")
    ...     return 3
    >>> answer_of(command())
    (3, [Note(text='a note')])
    """
    notes: list[Note] = []
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value, notes
        if isinstance(event, Note):
            notes.append(event)


def percent(value: float | None) -> str:
    """A fraction as percent with one digit, - for None.

    >>> percent(0.7471), percent(None)
    ('74.7 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def interval_text(low: float | None, high: float | None) -> str:
    """An interval of fractions in percent, - where there is none.

    >>> interval_text(0.7192, 0.773)
    '71.9 to 77.3'
    """
    return "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def tables_html(tables: Sequence[Table]) -> str:
    """Several tables as HTML, for notebooks."""
    return "".join(table._repr_html_() for table in tables)
