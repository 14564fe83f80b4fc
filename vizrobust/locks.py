"""One process at a time writes a folder: the system lets go of the lock when the process ends, however it ends."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":  # Whoever starts one run twice on Windows is not stopped.
    import fcntl

LOCK_FILE = ".lock"


class Taken(ValueError):
    """Another process is writing the folder."""


@contextmanager
def sole_writer(folder: Path | str) -> Iterator[None]:
    """Inside, no other process gets into this block for `folder`, which must exist; `Taken` if one is there already.

    It holds between the processes of one machine, and between machines where their shared file system keeps locks.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, sole_writer(folder):
    ...     with sole_writer(folder):
    ...         pass
    Traceback (most recent call last):
    vizrobust.locks.Taken: ...
    """
    path = Path(folder) / LOCK_FILE
    if sys.platform == "win32":
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            writer = file.read().strip() or "another process"
            raise Taken(f"{str(folder)!r} is being written by {writer}; wait for it, or give --out another folder") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
