"""Many processes at the price of one start of Python: for tests that kill them, and for two that work together."""

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


# Two ranks of one launch, as torchrun places them; each says what it has to say in files of its own. What Python does at its
# end takes a second of each process, so all but the registered functions is left out.
TOGETHER = """
import atexit, gc, os, socket, sys
gc.freeze()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
children = []
for rank in ("0", "1"):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(f"{name}-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        code = 0
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
os._exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))
"""


def together(code: str, *argv: str, cwd: Path) -> tuple[str, str]:
    """What two ranks print to stdout and stderr, rank 0 first, that each do ``run()``, which `code` defines, to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code + TOGETHER, *argv]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    out, err = ("".join((cwd / f"{name}-{rank}").read_text() for rank in "01") for name in ("stdout", "stderr"))
    assert done.returncode == 0, err + done.stderr
    return out, err
