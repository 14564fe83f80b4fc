"""A command on several processes: all of them run it, one of them speaks, and none outlives another's failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click

from vizrobust.cli.output import stopped
from vizrobust.lifeline import GRACE, INTERRUPTED, Lifeline
from vizrobust.parallel import Launch


def run_together(launch: Launch, command: Callable[[], Any]) -> NoReturn:
    """Run the command (click's, not standalone) as one of several processes, and exit with its code."""
    line = None
    speech = 2 if launch.rank == 0 else _silenced()
    code, text = 0, ""
    try:
        line = Lifeline.joined(launch, lambda text: os.write(speech, (text + "\n").encode()))
        result = command()
        code = result if isinstance(result, int) else 0
        text = stopped() if code == INTERRUPTED else ""
    except click.ClickException as error:
        if line is not None and isinstance(error.__cause__, ConnectionError):
            # The lifeline knows which process is gone, says so and ends this one.
            time.sleep(2 * GRACE)
        error.show()
        code, text = error.exit_code, error.format_message()
    except ConnectionError as error:
        os.write(speech, f"Error: {error}\n".encode())
        code = 1
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
