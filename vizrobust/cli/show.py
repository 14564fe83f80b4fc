"""What a person sees of a command: tables on stdout, progress and notes on stderr, one JSON object per row with --json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vizrobust.cli.output import json_row, say, table
from vizrobust.cli.output import progress as progress_display
from vizrobust.results import Event, Note, Progress, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

Events = Generator[Event, None, Result]


@contextmanager
def reporting(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A function that shows progress as bars and notes as lines, as long as the block lasts."""
    with progress_display(quiet) as bars:
        tasks: dict[str, Any] = {}

        def report(event: Event) -> None:
            if isinstance(event, Note):
                say(event.text)
            elif isinstance(event, Progress):
                if event.task not in tasks:
                    tasks[event.task] = bars.add_task(event.task, total=event.total)
                bars.update(tasks[event.task], completed=event.done, total=event.total)

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
            table(one.title, one.header, one.rows, one.note)
    sys.stdout.flush()
    return result
