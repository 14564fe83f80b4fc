"""What a person sees of a command: tables on stdout, progress and notes on stderr; of several processes one speaks."""

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
    from rich.progress import Progress as Bars
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from vizrobust.results import Event, Note, Progress, Result, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
import os
import time
from typing import NoReturn

from vizrobust.lifeline import GRACE, INTERRUPTED, Lifeline
from vizrobust.parallel import Launch

# A table that goes to a file or a pipe is not cut at a terminal's width.
PIPE_WIDTH = 160
# Cells up to this length that are no words are numbers, which a broken line would make others.
UNBROKEN = 24


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", narrow: bool = False) -> None:
    """Print a table of finished texts; columns of numbers stand to the right, words to the left.

    Where the terminal is too narrow for a `narrow` one, each row takes two lines; where words or numbers of another would be
    broken, each row is a paragraph.
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
    least = [_least(name, [row[position] for row in rows]) for position, name in enumerate(header)]
    if sum(least) + 3 * len(least) - 1 > console.width:
        click.echo("\n" + visible("\n".join([title, *(line for row in rows for line in _paragraph(header, row, console.width))])))
        click.echo()
    else:
        for position, name in enumerate(header):
            words = any(row[position][:1].isalpha() for row in rows)
            drawn.add_column(escape(name), justify="left" if words else "right", overflow="fold", min_width=least[position])
        for row in rows:
            drawn.add_row(*(escape(visible(cell)) for cell in row))
        console.print()
        console.print(drawn)
    for line in visible(note).splitlines():
        # What is copied from a terminal has the breaks that we print, not those of its window.
        console.print(escape(line), style="dim", soft_wrap="vizrobust " in line)


def _least(name: str, cells: Sequence[str]) -> int:
    """How narrow a column may be: it holds its words, and numbers with their unit and interval, unbroken."""
    words = [word for text in (name, *(cell for cell in cells if cell[:1].isalpha())) for word in text.split()]
    return max(map(len, [*words, *(cell for cell in cells if not cell[:1].isalpha() and len(cell) <= UNBROKEN)]), default=0)


def _paragraph(header: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """A row whose cells stand behind their column's name, the first on a line of its own."""
    lines = ["", f"{header[0]} {row[0]}", ""]
    for name, cell in zip(header[1:], row[1:], strict=True):
        item = f"{name}: {cell}"
        lines += [""] if lines[-1] and len(lines[-1]) + 3 + len(item) > width else []
        lines[-1] = f"{lines[-1]} · {item}" if lines[-1] else f"    {item}"
    return lines


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
def progress_display(quiet: bool, *columns: str) -> Iterator[Bars]:
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


Events = Generator[Event, None, Result]
# Below this width the sentences about a row stand under it, above it in a column of their own.
WIDE = 110


@contextmanager
def reporting(quiet: bool, named: Callable[[str], str] = "--{}".format) -> Iterator[Callable[[Event], None]]:
    """A function that shows progress as bars and notes as lines, as long as the block lasts; `named` as in `show`."""
    with progress_display(quiet, "note") as bars:
        tasks: dict[str, Any] = {}
        told = ""

        def report(event: Event) -> None:
            nonlocal told
            if isinstance(event, Note):
                say(event.text if isinstance(event.text, str) else event.text.text(named))
            elif isinstance(event, Progress):
                if event.task not in tasks:
                    tasks[event.task] = bars.add_task(event.task, total=event.total, note="")
                bars.update(
                    tasks[event.task], description=event.stage or event.task, completed=event.done, total=event.total,
                    note=event.note,
                )  # fmt: skip
                head = event.stage.partition(":")[0]
                if head != told and event.total and not quiet and not sys.stderr.isatty():
                    say(f"{100 * event.done / event.total:3.0f} %  {head}")
                    told = head

        yield report


def show(
    events: Events, as_json: bool, report: Callable[[Event], None], named: Callable[[str], str] = "--{}".format
) -> Result:  # fmt: skip
    """Run a command to its end and show what it yields; returns its result. `named` writes a parameter as an option."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: Result = end.value
            break
        if not isinstance(event, dict):
            report(event)
        elif as_json:
            json_row(event)
    if not as_json:
        for one in result.tables():
            if one.details:
                detailed_table(one, named)
            else:
                table(one.title, one.header, one.rows, one.note, one.narrow)
        for line in result.lines():
            click.echo(line)
    sys.stdout.flush()
    return result


def detailed_table(one: Table, named: Callable[[str], str]) -> None:
    """A table with sentences about each row: in a column of their own, or below the row where the terminal is narrow."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print()
    (_with_column if console.width >= WIDE else _with_lines)(console, one, named)
    if one.note:
        console.print(escape(one.note), style="dim")
    if one.conclusion:
        console.print(f"\n[bold]{escape(one.conclusion)}[/]")


def _with_column(console: Console, one: Table, named: Callable[[str], str]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=escape(one.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for position, name in enumerate(one.header):
        words = any(row[position][:1].isalpha() for row in one.rows)
        drawn.add_column(escape(name), justify="left" if words else "right", no_wrap=True)
    drawn.add_column("evidence")
    for number, row in enumerate(one.rows):
        name, *cells = map(escape, row)
        told = "\n".join(_sentences(one, number, named))
        marked = number in one.marked
        drawn.add_row(f"[bold]{name}[/]" if marked else name, *cells, told, end_section=number + 1 == one.rule)
    console.print(drawn)


def _with_lines(console: Console, one: Table, named: Callable[[str], str]) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    widths = [max(len(row[i]) for row in (one.header, *one.rows)) for i in range(len(one.header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join((first, *others))

    rule = "─" * min(console.width, sum(widths) + 2 * len(widths))
    console.print(f"[bold]{escape(one.title)}[/]\n\n{escape(line(one.header))}\n{rule}")
    for number, row in enumerate(one.rows):
        marked = number in one.marked
        console.print(f"[bold]{escape(line(row))}[/]" if marked else escape(line(row)))
        for text in _sentences(one, number, named):
            console.print(Padding(text, (0, 0, 0, 4)), style="" if marked else "dim")
        if number + 1 == one.rule:
            console.print(rule)


def _sentences(one: Table, number: int, named: Callable[[str], str]) -> list[str]:
    """The sentences about a row; of a row that stands out the last one, which says what to do, does so too."""
    from rich.markup import escape

    told = [escape(text) for text in one.details_of(number, named)]
    return [*told[:-1], f"[bold]{told[-1]}[/]"] if number in one.marked and len(told) > 1 else told


def run_together(launch: Launch, command: Callable[[], Any]) -> NoReturn:
    """Run the command (click's, not standalone) as one of several processes, and exit with its code."""
    line = None
    speech = 2 if launch.rank == 0 else _silenced()
    code, text = 0, ""
    try:
        line = Lifeline.joined(launch, lambda text: os.write(speech, (text + "\n").encode()))
        result = command()
        code = result if isinstance(result, int) else 0
        text = stopped() if code in INTERRUPTED else ""
    except click.ClickException as error:
        if line is not None and isinstance(error.__cause__, ConnectionError):
            # The lifeline knows which process is gone, says so and ends this one.
            time.sleep(2 * GRACE)
        error.show()
        code, text = error.exit_code, error.format_message()
    except ConnectionError as error:
        os.write(speech, f"Error: {error}\n".encode())
        code = 1
    except KeyboardInterrupt:
        # The processes have not met yet.
        code, text = INTERRUPTED[0], stopped()
        say("\n" + text)
    except click.Abort:
        code = 1
    raise SystemExit(code if line is None else line.end(code, text))


def _silenced() -> int:
    """Send all that this process would print to nowhere, whoever prints it; returns where stderr went before."""
    speech = os.dup(2)
    if not os.environ.get("VIZROBUST_DEBUG"):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    return speech
