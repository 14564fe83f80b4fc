"""Several processes do what one does: the same verdicts, pictures and words, also after one of them was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click import Context, UsageError
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vizrobust.cli import COMMANDS, TOGETHER, main
from vizrobust.compute import Compute, full_batches
from vizrobust.features.render import in_batches
from vizrobust.processes import ALONE, Launch, Processes, launched, lifeline
from vizrobust.processes.lifeline import Lifeline
from vizrobust.runs import Run, read_rows

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in NAMES} | {"OMP_NUM_THREADS": "1"}
PROGRAM = [sys.executable, "-m", "vizrobust"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vizrobust"]
DEADLINE = 60.0


def together(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command on two processes, as a person starts it."""
    return subprocess.run(
        [*TORCHRUN, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Any]:
    """Start a command (or another program) on two processes without a launcher that would end one after the other."""
    begun: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank in ("0", "1"):
            place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            begun.append(
                subprocess.Popen(
                    [*program, *arguments],
                    cwd=tmp_path,
                    env=ENVIRONMENT | place,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return begun

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def in_one(arguments: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command prints to stdout in this process, with one thread."""
    monkeypatch.chdir(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    finally:
        torch.set_num_threads(before)
    assert done.exit_code == 0, done.output
    return done.stdout


def verdicts(folder: Path) -> dict[tuple[Any, ...], tuple[int, float]]:
    """(checkpoint, attack, walk, place) -> the first wrong step and the norm."""
    found: dict[tuple[Any, ...], tuple[int, float]] = {}
    for row in read_rows(folder):
        for place, at, norm in zip(row["images"], row["broken_at"], row["norms"], strict=True):
            key = (row["checkpoint"], row["attack"], row["walk"], place)
            assert key not in found, "no verdict twice"
            found[key] = at, norm
    return found


def passes(folder: Path) -> tuple[int, int]:
    rows = read_rows(folder)
    return sum(row["forward_passes"] for row in rows), sum(row["gradient_passes"] for row in rows)


def words(table: str) -> list[list[str]]:
    """The words of a table without the rules and without the seconds at the end of each line."""
    return [re.sub(r"\s\d+\.\d$", "", line.rstrip()).split() for line in table.splitlines() if "─" not in line]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture)


ATTACK = [
    *("attack", "mnist-k0", "mnist-k8", "--attack", "PGD(restarts=2)", "--steps", "6", "--eps", "0.15"),
    *("--images", "46", "--batch-size", "8", "--curve", "steps", "--plot", "curve.png", "--out", "run"),
]  # fmt: skip


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An attack on one process; and one that was begun by one, was killed in the middle of a line, and goes on with two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with pytest.MonkeyPatch.context() as patch:
        printed = in_one(ATTACK, one, patch)
    lines = (one / "run" / "rows.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: len(lines) // 3]
    (two / "run").mkdir()
    (two / "run" / "run.json").write_text((one / "run" / "run.json").read_text())
    (two / "run" / "rows.jsonl").write_text("".join(kept) + lines[len(kept)][:40])
    return {"one": one, "two": two, "kept": kept, "printed": printed, "done": together(ATTACK, two)}


class TestAnAttackOnTwoProcesses:
    def test_gives_every_image_the_same_verdict(self, attacked: dict[str, Any]) -> None:
        assert attacked["done"].returncode == 0, attacked["done"].stderr
        one, two = (verdicts(attacked[name] / "run") for name in ("one", "two"))
        assert one == two
        assert len({at for at, _ in one.values()}) > 3, "images break at different steps"
        assert passes(attacked["one"] / "run") == passes(attacked["two"] / "run")

    def test_goes_on_where_one_process_stopped(self, attacked: dict[str, Any]) -> None:
        rows = (attacked["two"] / "run" / "rows.jsonl").read_text().splitlines(keepends=True)
        assert rows[: len(attacked["kept"])] == attacked["kept"]
        assert len(rows) > len(attacked["kept"])

    def test_prints_the_same_once(self, attacked: dict[str, Any]) -> None:
        assert words(attacked["done"].stdout) == words(attacked["printed"])
        assert attacked["done"].stderr.count("drawn: curve.png") == 1

    def test_draws_the_same(self, attacked: dict[str, Any]) -> None:
        one, two = (pixels(attacked[name] / "curve.png") for name in ("one", "two"))
        assert np.array_equal(one, two)

    def test_leaves_the_same_run(self, attacked: dict[str, Any]) -> None:
        one, two = (json.loads((attacked[name] / "run" / "run.json").read_text()) for name in ("one", "two"))
        assert one["threads"] == two["threads"] == 1
        assert {key: one[key] for key in one if key != "argv"} == {key: two[key] for key in two if key != "argv"}


NEURONS = ["neurons", "mnist-k8", "--layer", "conv2", "--units", "0:11", "--steps", "3", "--batch-size", "2", "--both",
           "--movie", "--out", "run"]  # fmt: skip


def test_neurons_on_two_processes_are_those_of_one(tmp_path: Path, by_hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"one": tmp_path / "one", "two": tmp_path}
    folders["one"].mkdir()
    (out, err), other = (process.communicate(timeout=2 * DEADLINE) for process in by_hand(NEURONS))
    assert out == in_one(NEURONS, folders["one"], monkeypatch), err
    assert err.count("made by:") == 1
    assert other == ("", "")
    one, two = (read_rows(folder / "run") for folder in folders.values())
    assert [row["unit"] for row in one] == [*range(11), *range(11)]
    assert [{**row, "seconds": 0} for row in two] == [{**row, "seconds": 0} for row in one], "the order included"
    for row in one:
        assert np.array_equal(*(pixels(folder / "run" / row["image"]) for folder in folders.values()))
        assert len({(folder / "run" / row["film"]).read_bytes() for folder in folders.values()}) == 1
    files = [sorted(path.relative_to(folder) for path in (folder / "run").rglob("*")) for folder in folders.values()]
    assert files[0] == files[1]


LONG = ["attack", "mnist-k8", "--attack", "PGD(restarts=4)", "--steps", "50", "--eps", "0.1", "--images", "20",
        "--batch-size", "4", "--out", "run"]  # fmt: skip


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_other_with_a_sentence_and_one_process_goes_on(
    victim: int, tmp_path: Path, by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    processes = by_hand(LONG)
    began = time.monotonic()
    while not any(row["walk"] != "clean" for row in read_rows(run)):
        assert time.monotonic() - began < DEADLINE
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    processes[victim].wait(DEADLINE)
    out, err = processes[1 - victim].communicate(timeout=DEADLINE)
    assert time.monotonic() - killed < 10
    assert (processes[1 - victim].returncode, out) == (1, "")
    assert re.fullmatch(
        rf"rank {victim} of 2 \(.+\) is gone, so the others stop too; the same command goes on where this one stopped\n", err
    )
    kept = verdicts(run)
    in_one(LONG, tmp_path, monkeypatch)
    found = verdicts(run)
    (tmp_path / "whole").mkdir()
    in_one(LONG, tmp_path / "whole", monkeypatch)
    assert found == verdicts(tmp_path / "whole" / "run")
    assert kept.items() < found.items(), "killed in the middle"


DRIVER = """
import torch
from vizrobust.compute import Compute
first = Compute("cpu")
group = torch.distributed.group.WORLD
compute = Compute("cpu", "bf16")
assert torch.distributed.group.WORLD is group, "one connection, whatever is built upon it"
p = compute.processes
assert first.processes == p and p.size == 2 and compute.in_fp32().processes == p and compute.alone().processes.size == 1
assert p.gathered([p.rank, "x"]) == [0, "x", 1, "x"]
assert p.broadcast({"from": p.rank}) == {"from": 0}
value = torch.tensor([1e-17 + p.rank, 2.0], dtype=torch.float64)
assert p.sum(value).tolist() == [(1e-17 + 0) + (1e-17 + 1), 4.0] and p.sum(value).dtype == torch.float64
assert value[0] == 1e-17 + p.rank, "what was given is as it was"
p.barrier()
assert list(p.merged(p.mine(range(7)))) == list(range(7))
assert sorted(p.merged(p.mine(range(7)), 0.2)) == list(range(7))
assert first.processes.gathered([1]) == [1, 1]
print("fine", p.rank, torch.get_num_threads(), flush=True)
from vizrobust.cli import main
main(["attack", "mnist-k8", "--minimal", "--curve", "eps"])
"""


def test_exchanges_are_exact_a_second_compute_takes_up_the_connection_and_a_wrong_command_is_answered_once(by_hand: Any) -> None:
    processes = by_hand([DRIVER], [sys.executable, "-c"])
    (out, err), other = (process.communicate(timeout=DEADLINE) for process in processes)
    assert out == "fine 0 1\n", err
    assert other == ("fine 1 1\n", "")
    assert [process.returncode for process in processes] == [2, 2]
    assert err.count("--minimal and --curve eps answer different questions") == 1


# From here on without other processes.


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_cover_everything_once_in_order(n: int, size: int) -> None:
    parts = [Processes(rank, size).part(n) for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 50), st.integers(1, 9))
def test_each_item_belongs_to_one_process(n: int, size: int) -> None:
    shares = [list(Processes(rank, size).mine(range(n))) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


jobs_ = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), unique=True, max_size=25)


@given(jobs_, st.integers(1, 3), st.integers(3, 8), st.integers(1, 4))
def test_a_process_renders_whole_batches_of_the_one_process_partition(
    jobs: list[tuple[int, int]], faces: int, batch_size: int, size: int
) -> None:
    batches = in_batches(jobs, faces, batch_size)
    assert sorted(job for batch in batches for job in batch) == sorted(jobs)
    owner: dict[tuple[int, int], int] = {}
    for number, batch in enumerate(batches):
        assert len({(unit, seed // faces) for unit, seed in batch}) * faces <= batch_size
        assert all(owner.setdefault((unit, seed // faces), number) == number for unit, seed in batch), "groups stay whole"
    for rank in range(size):
        mine = list(Processes(rank, size).mine(batches))
        # What a process hands to the renderer in one list falls into the very same batches.
        assert in_batches([job for batch in mine for job in batch], faces, batch_size) == mine


def test_without_groups_batches_are_those_of_full_batches() -> None:
    jobs = [(unit, 0) for unit in range(11)]
    expected = [[jobs[i] for i in index[:count].tolist()] for index, count in full_batches(11, 4)]
    assert in_batches(jobs, 1, 4) == expected


@dataclass(frozen=True)
class Threaded(Processes):
    """Processes that are threads: they meet at a barrier and read each other's rows."""

    place: Any = None

    def gathered(self, rows: Sequence[Any]) -> list[Any]:
        table, barrier = self.place
        barrier.wait(10)
        table[self.rank] = list(rows)
        barrier.wait(10)
        return [row for rank in range(self.size) for row in table[rank]]


def on_threads(size: int, work: Any) -> list[Any]:
    """What each of `size` threads gets from ``work(processes)``."""
    place = ({}, threading.Barrier(size))
    found: dict[int, Any] = {}

    def one(rank: int) -> None:
        found[rank] = work(Threaded(rank, size, place=place))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(size)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(2, 5))
def test_rounds_have_the_order_of_one_process(n: int, size: int) -> None:
    assert on_threads(size, lambda p: list(p.merged(p.mine(range(n))))) == [list(range(n))] * size


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=4))
def test_longer_rounds_lose_nothing_however_unequal_the_work(counts: list[int]) -> None:
    def work(p: Processes) -> list[tuple[int, int]]:
        def slowly() -> Iterator[tuple[int, int]]:
            for k in range(counts[p.rank]):
                time.sleep(0.001 * (p.rank + 1))
                yield p.rank, k

        return list(p.merged(slowly(), 0.004))

    found = on_threads(len(counts), work)
    assert sorted(found[0]) == [(rank, k) for rank, count in enumerate(counts) for k in range(count)]
    assert all(one == found[0] for one in found), "all know the same, in the same order"
    for rank in range(len(counts)):
        mine = [k for r, k in found[0] if r == rank]
        assert mine == sorted(mine)


def test_rows_are_handed_out_before_all_is_done() -> None:
    """Else a killed process would lose them."""

    def work(p: Processes) -> list[int]:
        made = []

        def source() -> Iterator[int]:
            for k in range(6):
                made.append(k)
                yield k

        rounds = p.merged(source())
        next(rounds)
        seen = len(made)
        list(rounds)
        return [seen]

    assert on_threads(2, work) == [[1], [1]]


def test_one_process_alone_exchanges_nothing() -> None:
    tensor = torch.tensor([1.5], dtype=torch.float64)
    assert ALONE.main
    assert ALONE.local_main
    assert ALONE.sum(tensor) is tensor
    assert ALONE.gathered([1, 2]) == [1, 2]
    assert ALONE.broadcast("x") == "x"
    assert list(ALONE.merged(iter("abc"), 5)) == list("abc")
    ALONE.barrier()
    assert Compute("cpu").processes is ALONE


def test_what_a_launcher_says_is_read() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29"}
    assert launched(said) == Launch(3, 4, 1, "a", 29)
    assert launched({}) is None
    assert launched(said | {"WORLD_SIZE": "1"}) is None
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but RANK, MASTER_PORT not set; start all processes with torchrun"):
        launched({"WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    with pytest.raises(ValueError, match="RANK is 4, but WORLD_SIZE is 4: ranks are counted from 0 to 3"):
        launched(said | {"RANK": "4"})
    with pytest.raises(ValueError, match="WORLD_SIZE is 'many', expected a whole number"):
        launched(said | {"WORLD_SIZE": "many"})


def test_commands_that_share_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("0", "2", "0", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    alone = next(name for name in COMMANDS if name not in TOGETHER)
    with pytest.raises(UsageError, match=f"{alone!r} runs in one process; start it without torchrun"):
        main.resolve_command(Context(main), [alone])
    assert set(TOGETHER) <= set(COMMANDS)


def test_only_the_main_process_writes_and_all_know_the_same(tmp_path: Path) -> None:
    identity, before = {"recipe": "plain"}, {"unit": 0, "at": [1, 2]}
    Run(tmp_path / "run", "neurons", identity).add(before)

    @dataclass(frozen=True)
    class Told(Processes):
        def broadcast(self, value: Any) -> Any:
            return value if self.main else [before]

    picture = np.zeros((2, 3), dtype=np.uint8)
    runs = [
        Run(tmp_path / ("run" if rank == 0 else "elsewhere"), "neurons", identity, processes=Told(rank, 2)) for rank in (0, 1)
    ]
    for run in runs:
        run.remember("checkpoints", {"a": {"name": "a"}})
        run.add({"unit": 1, "at": (3, 4)})
        run.add_image({"unit": 2}, picture, "images/2.png")
    assert runs[0].rows() == runs[1].rows() == read_rows(tmp_path / "run")
    assert [row["unit"] for row in runs[0].rows()] == [0, 1, 2]
    assert (tmp_path / "run" / "images" / "2.png").is_file()
    assert not (tmp_path / "elsewhere").exists()


class Left(BaseException):
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

    def leave(code: int) -> None:
        left.append(code)
        raise Left

    monkeypatch.setattr(lifeline, "_leave", leave)
    monkeypatch.setattr(lifeline, "GRACE", 0.2)
    monkeypatch.setattr(lifeline, "SPEAKS_WITHIN", 0.5)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    lines = [Lifeline(Launch(rank, 3, rank, "a", 1), lambda text, rank=rank: said.append((rank, text))) for rank in range(3)]
    for rank in (1, 2):
        lines[0].lines[rank], lines[rank].lines[0] = socket.socketpair()
        lines[0].names[rank] = f"host {rank}"
    for line in lines:
        threading.Thread(target=line._watch, daemon=True).start()
    yield Ends(lines, said, left)
    for line in lines:
        for one in line.lines.values():
            one.close()


def until(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 5
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
            thread.join(5)
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
            thread.join(5)
        time.sleep(0.4)
        assert ends.said == []
