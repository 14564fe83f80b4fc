"""Many short-lived processes at the price of one start of Python, for tests that kill them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
# Starting Python with torch takes longer than what these tests run: one process loads everything, touches nothing, and
# forks a process for each line of its input; it prints the new process's number, and later how that ended.
LOOP = """
import os, sys
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            run(line.rstrip("\\n"))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Starts processes one after the other; each must have `ended` before the next."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout

    def start(self, argument: str) -> int:
        """The number of a new process that does ``run(argument)``."""
        self.stdin.write(f"{argument}\n")
        self.stdin.flush()
        return int(self.stdout.readline())

    def ended(self) -> int:
        """How it ended: 0, or minus the signal that killed it."""
        return int(self.stdout.readline())


@contextmanager
def forks(code: str, *argv: str, cwd: Path | None = None) -> Iterator[Forks]:
    """Processes on one thread in which `code` defines ``run``, a function of one line of text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code + LOOP, *argv]
    with subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Forks(process.stdin, process.stdout)
        process.stdin.close()
