"""A lifeline: whoever ends, and however, one process says so and all end; no process is started here."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from vizrobust import lifeline
from vizrobust.lifeline import Lifeline
from vizrobust.parallel import Launch


class Left(Exception):
    """In place of the end of the process."""


@dataclass
class Ends:
    """The ends of the lines between a main process and two others, all in this one."""

    lines: list[Lifeline]
    said: list[tuple[int, str]]
    left: list[int]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    said: list[tuple[int, str]] = []
    left: list[int] = []

    def leave(code: int) -> NoReturn:
        left.append(code)
        raise Left

    def watch(line: Lifeline) -> None:
        with suppress(Left):
            line._watch()

    monkeypatch.setattr(lifeline, "GRACE", 0.2)
    # Each is given its way to leave: a thread that outlives its test must not find the true one.
    lines = [
        Lifeline(Launch(rank, 3, rank, "a", 1), lambda text, rank=rank: said.append((rank, text)), leave) for rank in range(3)
    ]
    for rank in (1, 2):
        lines[0].lines[rank], lines[rank].lines[0] = socket.socketpair()
        lines[0].names[rank] = f"host {rank}"
    threads = [threading.Thread(target=watch, args=(line,), daemon=True) for line in lines]
    for thread in threads:
        thread.start()
    yield Ends(lines, said, left)
    sockets = [one for line in lines for one in line.lines.values()]
    for one in sockets:
        with suppress(OSError):  # a test has done it
            one.shutdown(socket.SHUT_RDWR)
    if lines[0]._closing.locked():
        lines[0]._closing.release()  # the one that holds it has ended, as far as its test is concerned
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    for one in sockets:
        one.close()


def until(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


class TestALifeline:
    def test_a_good_end_waits_for_all(self, ends: Ends) -> None:
        codes: list[int] = []
        threads = [threading.Thread(target=lambda line=line: codes.append(line.end(0)), daemon=True) for line in ends.lines[:2]]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert not codes, "rank 2 is still at work"
        assert ends.lines[2].end(0) == 0
        for thread in threads:
            thread.join(60)
        assert (codes, ends.said, ends.left) == ([0, 0], [], [])

    def test_a_death_is_told_by_the_main_process_and_ends_all(self, ends: Ends) -> None:
        ends.lines[2].lines[0].shutdown(socket.SHUT_RDWR)
        until(lambda: ends.left.count(1) >= 2)
        assert [text for rank, text in ends.said if rank == 0] == [
            "rank 2 of 3 (host 2) is gone, so the others stop too; the same command goes on where this one stopped"
        ]
        assert 1 not in [rank for rank, _ in ends.said]

    def test_the_death_of_the_main_process_is_told_by_another(self, ends: Ends) -> None:
        for line in ends.lines[0].lines.values():
            line.shutdown(socket.SHUT_WR)
        until(lambda: len(ends.left) >= 2)
        assert ends.said == [
            (1, "rank 0 of 3 (the main process) is gone, so the others stop too; the same command goes on where this one stopped")
        ]

    def test_a_failure_of_one_is_told_by_the_main_process_with_its_code(self, ends: Ends) -> None:
        assert ends.lines[1].end(7, "the disk is full") == 7
        until(lambda: ends.left.count(7) >= 2)
        assert ends.said == [(0, "rank 1 of 3: the disk is full")]

    def test_a_failure_of_all_is_told_once(self, ends: Ends) -> None:
        # The main process has printed its error before it ends; what the others have to say is the same.
        threads = [threading.Thread(target=line.end, args=(2, "no such layer"), daemon=True) for line in ends.lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        time.sleep(0.4)
        assert ends.said == []
