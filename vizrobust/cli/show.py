"""What a person sees of a command: tables on stdout, progress and notes on stderr, one JSON object per row with --json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli.output import json_row, say, table
from vizrobust.cli.output import progress as progress_display
from vizrobust.results import Event, Note, Progress, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

Events = Generator[Event, None, Result]


@contextmanager
def reporting(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A function that shows progress as bars and notes as lines, as long as the block lasts."""
    with progress_display(quiet, "note") as bars:
        tasks: dict[str, Any] = {}
        told = ""

        def report(event: Event) -> None:
            nonlocal told
            if isinstance(event, Note):
                say(event.text)
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


def show(events: Events, as_json: bool, report: Callable[[Event], None]) -> Result:
    """Run a command to its end and show what it yields; returns its result."""
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
            table(one.title, one.header, one.rows, one.note, one.narrow)
        for line in getattr(result, "lines", tuple)():
            click.echo(line)
    sys.stdout.flush()
    return result
