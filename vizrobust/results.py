"""What a command yields on its way and returns at its end: progress, notes, tables, a result; and numbers as words."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from vizrobust.requests.request import ParameterError, named_parameters

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
    """A sentence for the person, beside the result; one that names parameters is a `ParameterError` that is not raised."""

    text: str | ParameterError


@dataclass(frozen=True)
class Table:
    """Finished texts under a header, with a title above and a note below.

    A `narrow` one has names that must not be broken: where the terminal is too narrow, each row takes two lines.
    `details` are sentences about each row, `marked` rows stand out, a line is drawn after `rule` rows, and the
    `conclusion` comes last. Details may hold templates of parameters, such as ``{steps}``.

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
    details: Sequence[Sequence[str]] = ()
    marked: Sequence[int] = ()
    rule: int = 0
    conclusion: str = ""

    def text(self, show: Callable[[str], str] = str) -> str:
        """The table as plain text, columns padded; `show` writes the parameters that details name."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        body = []
        for k, line in enumerate(lines):
            body.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            body += [f"    {text}" for text in (self.details_of(k - 1, show) if k else ())]
        return "\n".join([self.title, *body, *filter(None, (self.note, self.conclusion))])

    def details_of(self, row: int, show: Callable[[str], str] = str) -> list[str]:
        """The sentences about a row, with each parameter's name as `show` writes it."""
        return [named_parameters(text, show) for text in self.details[row]] if self.details else []

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str, told: Sequence[str] = ()) -> str:
            last = f"<td>{'<br>'.join(map(html.escape, told))}</td>" if told else ""
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + last + "</tr>"

        note = "".join(f"<p>{html.escape(text)}</p>" for text in (self.note, self.conclusion) if text)
        body = "".join(line(row, "td", self.details_of(k)) for k, row in enumerate(self.rows))
        return f"<table><caption>{html.escape(self.title)}</caption>{line(self.header, 'th')}{body}</table>{note}"


class Result(ABC):
    """The answer of a command: rows for programs, tables and lines for people, a figure where there is one.

    In a notebook it shows its tables, lines and figure.
    """

    @property
    def ok(self) -> bool | None:
        """Whether all is well; None where that is undecided."""
        return True

    @abstractmethod
    def rows(self) -> list[Row]:
        """One dict for each thing found, as `--json` prints them."""

    def tables(self) -> list[Table]:
        return []

    def lines(self) -> list[str]:
        """What a person reads below the tables."""
        return []

    def figure(self) -> Any:
        """A matplotlib figure; None where there is none, `ValueError` where what was found has no common axis."""
        return None

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines() if line)
        return "".join(table._repr_html_() for table in self.tables()) + lines + self._picture_html()

    def _picture_html(self) -> str:
        try:
            figure = self.figure()
        except ValueError:
            return ""
        return "" if figure is None else str(figure.html())


Event = Progress | Note | Row


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
