"""What a person sees: tables on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

# A table that goes to a file or a pipe is not cut at a terminal's width.
PIPE_WIDTH = 160


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", narrow: bool = False) -> None:
    """Print a table of finished texts; columns of numbers stand to the right, words to the left.

    Where the terminal is too narrow for a `narrow` one, each row takes two lines.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    drawn = Table(title=escape(visible(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    rows = list(rows)
    if narrow and sum(max(map(len, column)) + 3 for column in zip(header, *rows, strict=True)) > console.width:
        click.echo(visible(f"\n{title}\n"))
        for name, *cells, last in rows:
            click.echo(visible(f"{name}\n    {', '.join(cells)}, {header[-1]}: {last}"))
        click.echo(visible(f"\n{note}"))
        return
    for position, name in enumerate(header):
        words = any(row[position][:1].isalpha() for row in rows)
        drawn.add_column(escape(name), justify="left" if words else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(visible(cell)) for cell in row))
    console.print()
    console.print(drawn)
    if note:
        console.print(escape(visible(note)), style="dim")


def json_row(row: dict[str, Any]) -> None:
    click.echo(json.dumps(row, ensure_ascii=False))


def visible(text: str) -> str:
    r"""A text whose control characters, from foreign names, are written out: a terminal would obey them.

    >>> visible("a\x1b[2Jb"), visible("two\nlines")
    ('a\\x1b[2Jb', 'two\nlines')
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") else char.encode("unicode_escape").decode()
        for char in text
    )


def say(text: str) -> None:
    """A note for the person, on stderr."""
    click.echo(visible(text), err=True)


@contextmanager
def progress(quiet: bool, *columns: str) -> Iterator[Progress]:
    """A progress display where stderr is a terminal; `columns` are names of task fields shown behind the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    shown = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()]
    fields = [TextColumn("{task.fields[" + name + "]}") for name in columns]
    with Bars(
        *shown, *fields, console=Console(file=sys.stderr), disable=quiet or not sys.stderr.isatty(), transient=True
    ) as bars:
        yield bars


def command_line() -> str:
    """The present command as a person would type it again."""
    return shlex.join(["vizrobust", *sys.argv[1:]])


def stopped(resumable: bool = True) -> str:
    """What an interrupted command says."""
    return "stopped" + (f"; go on with: {command_line()}" if resumable else "")
