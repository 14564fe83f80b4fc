"""A connection over which the processes of one command learn at once that another has ended, and how.

Every process holds a TCP connection to the main one. The kernel closes it when a process dies, however busy or silent
it was, and asks for a sign of life from the machine at the other end. So a death is noticed within a second, the loss
of a machine within half a minute, and a process that merely works for an hour is never taken for a dead one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

from vizrobust.parallel import Launch

# The launcher starts all processes within seconds; a queue may start the machines of a job minutes apart.
PATIENCE = timedelta(minutes=10)
# What failed in one process has mostly failed in all. So long the main one may take to say so itself.
GRACE = 5.0
# And so long a failed process waits for the main one to speak for it.
SPEAKS_WITHIN = 30.0
# The exit codes of commands that a person (SIGINT) or a batch system (SIGTERM) stopped.
INTERRUPTED = (130, 143)
KEY = "vizrobust/lifeline"
# Signs of life are asked for after 10 s without any, then every 5 s; four unanswered ones mean that the machine is lost.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

Message = dict[str, Any]


class Lifeline:
    """The present process's end of the connections; use `joined`, and at the end `end`.

    Where another process fails or dies, this one ends too, at once and from a thread of its own: the main thread may
    hang in an exchange with the dead one. One process says why with `say`: the main one, or where that is the dead
    one, rank 1 and the first process of every other machine. `leave` is how the process ends; it does not return.
    """

    def __init__(self, launch: Launch, say: Callable[[str], object], leave: Callable[[int], NoReturn] | None = None) -> None:
        self.launch, self.say, self.leave = launch, say, leave or _leave
        self.lines: dict[int, socket.socket] = {}
        self.names: dict[int, str] = {}
        self.store: Any = None  # torch's, through which the processes find each other
        self.over = threading.Event()  # nothing more will come from the others
        self._closing = threading.Lock()

    @classmethod
    def joined(cls, launch: Launch, say: Callable[[str], object], patience: timedelta = PATIENCE) -> Lifeline:
        """Connected with all processes; ``ConnectionError`` where they do not meet."""
        from torch.distributed import DistError
        from torch.distributed.rendezvous import rendezvous

        line = cls(launch, say)
        try:
            # Kept, since the main process may be the store's server; torch's own meeting follows at the same place.
            line.store, _, _ = next(rendezvous("env://", launch.rank, launch.size, timeout=patience))
            if launch.rank == 0:
                line._accept(patience)
            else:
                line._connect()
        except (DistError, OSError) as error:
            raise ConnectionError(
                f"rank {launch.rank} waited for {launch.size} processes at {launch.address}:{launch.port}, and not all came "
                f"within {patience.total_seconds():.0f} s; start all of them with the same MASTER_ADDR, MASTER_PORT and "
                f"WORLD_SIZE ({next(iter(str(error).splitlines()), '')})"
            ) from error
        threading.Thread(target=line._watch, name="lifeline", daemon=True).start()
        return line

    def end(self, code: int, text: str = "") -> int:
        """Say how this process ends, and wait until all may; `text` is the sentence of a failure, `code` its exit code.

        In the main process a failure's sentence has been said already. Returns the code.
        """
        if self.launch.rank == 0:
            if code == 0:
                self.over.wait()
            self._closing.acquire()  # never released: whoever holds it ends the process
            self._tell({"code": code})
        else:
            self._tell({"code": code, "text": text})
            if not self.over.wait(None if code == 0 else SPEAKS_WITHIN) and text:
                self.say(f"rank {self.launch.rank} of {self.launch.size}: {text}")
        return code

    def _accept(self, patience: timedelta) -> None:
        token = secrets.token_hex(16)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=self.launch.size) as server:
            self.store.set(KEY, json.dumps({"port": server.getsockname()[1], "token": token}))
            deadline = time.monotonic() + patience.total_seconds()
            while len(self.lines) < self.launch.size - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                line, _ = server.accept()
                line.settimeout(SPEAKS_WITHIN)
                hello = _read(line)
                # A stranger that happened upon the port does not know the token.
                if hello is None or hello.get("token") != token:
                    line.close()
                    continue
                self.lines[hello["rank"]] = _kept_alive(line)
                self.names[hello["rank"]] = hello["name"]
        for line in self.lines.values():
            line.settimeout(None)

    def _connect(self) -> None:
        place = json.loads(self.store.get(KEY))
        line = socket.create_connection((self.launch.address, place["port"]), timeout=60)
        line.settimeout(None)
        self.lines[0] = _kept_alive(line)
        name = f"host {socket.gethostname()}, pid {os.getpid()}"
        self._tell({"token": place["token"], "rank": self.launch.rank, "name": name})

    def _tell(self, message: Message) -> None:
        for line in self.lines.values():
            with contextlib.suppress(OSError):  # it is gone itself
                line.sendall(json.dumps(message).encode() + b"\n")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, line in self.lines.items():
                selector.register(line, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    self._heard(key.data, _read(self.lines[key.data]))
                    selector.unregister(self.lines[key.data])
        self.over.set()

    def _heard(self, rank: int, message: Message | None) -> None:
        """What to do about another process's last word, or about its having none."""
        if message is not None and message["code"] == 0:
            return
        if self.launch.rank:
            # The main process has spoken, unless it died.
            if message is None and (self.launch.rank == 1 or self.launch.local_main):
                self.say(self._gone(0, "the main process"))
            if message is not None:
                # It goes first, so that the launcher sees its exit code and not this one's.
                self.lines[0].settimeout(GRACE)
                _read(self.lines[0])
                self.over.set()
            self.leave(1 if message is None else message["code"])
        code = 1 if message is None else int(message["code"])
        if message is not None:
            time.sleep(GRACE)
        self._closing.acquire()  # waits for ever where the main thread is on its way out
        if message is None:
            self.say(self._gone(rank, self.names[rank]))
        elif message["text"]:
            self.say(message["text"] if code in INTERRUPTED else f"rank {rank} of {self.launch.size}: {message['text']}")
        self._tell({"code": code})
        self.leave(code)

    def _gone(self, rank: int, name: str) -> str:
        return (
            f"rank {rank} of {self.launch.size} ({name}) is gone, so the others stop too; "
            "the same command goes on where this one stopped"
        )


def _read(line: socket.socket) -> Message | None:
    """The next message, or None where the other end is closed."""
    content = b""
    try:
        while not content.endswith(b"\n"):
            # Byte by byte, so that nothing of a later message is swallowed; they are few and short.
            byte = line.recv(1)
            if not byte:
                return None
            content += byte
        message: Message = json.loads(content)
    except (OSError, ValueError):
        return None
    return message


def _kept_alive(line: socket.socket) -> socket.socket:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def _leave(code: int) -> NoReturn:
    """End the process from whatever thread; files are written whole or not at all, as for a kill."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # a progress display hides the cursor
        sys.stderr.flush()
    os._exit(code)
