"""Parts and rounds of several processes, checked within one: threads stand in for processes where they must meet."""

from __future__ import annotations

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
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_processes import NAMES
from vizrobust.cli import COMMANDS, TOGETHER, main
from vizrobust.compute import Compute, full_batches
from vizrobust.features.render import plan_batches
from vizrobust.parallel import SINGLE, Launch, Processes, launched
from vizrobust.runs import RunFolder, Taken, read_rows


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_cover_everything_once_in_order(n: int, size: int) -> None:
    parts = [Processes(rank, size).part(n) for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 50), st.integers(1, 9))
def test_each_item_belongs_to_one_process(n: int, size: int) -> None:
    shares = [list(Processes(rank, size).shard(range(n))) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


jobs_ = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), unique=True, max_size=25)


@given(jobs_, st.integers(1, 3), st.integers(3, 8), st.integers(1, 4))
def test_a_process_renders_whole_batches_of_the_one_process_partition(
    jobs: list[tuple[int, int]], group_size: int, batch_size: int, size: int
) -> None:
    planned = plan_batches(jobs, group_size, batch_size)
    batches = [list(batch.pairs) for batch in planned]
    assert sorted(job for batch in batches for job in batch) == sorted(jobs)
    owner: dict[tuple[int, int], int] = {}
    for number, batch in enumerate(batches):
        assert len({(unit, seed // group_size) for unit, seed in batch}) * group_size <= batch_size
        assert all(owner.setdefault((unit, seed // group_size), number) == number for unit, seed in batch), "groups stay whole"
    shares = [list(Processes(rank, size).shard(planned)) for rank in range(size)]
    assert sorted(batch for share in shares for batch in share) == sorted(planned), "with the sizes of one process"


def test_without_groups_batches_are_those_of_full_batches() -> None:
    jobs = [(unit, 0) for unit in range(11)]
    expected = [[jobs[i] for i in index[:count].tolist()] for index, count in full_batches(11, 4)]
    assert [list(batch.pairs) for batch in plan_batches(jobs, 1, 4)] == expected


@dataclass(frozen=True)
class Threaded(Processes):
    """Processes that are threads: they meet at a barrier and read each other's rows."""

    place: Any = None

    def all_gather(self, rows: Sequence[Any]) -> list[Any]:
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
    assert on_threads(size, lambda p: list(p.interleave(p.shard(range(n))))) == [list(range(n))] * size


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=4))
def test_longer_rounds_lose_nothing_however_unequal_the_work(counts: list[int]) -> None:
    def work(p: Processes) -> list[tuple[int, int]]:
        def slowly() -> Iterator[tuple[int, int]]:
            for k in range(counts[p.rank]):
                time.sleep(0.001 * (p.rank + 1))
                yield p.rank, k

        return list(p.interleave(slowly(), 0.004))

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

        rounds = p.interleave(source())
        next(rounds)
        seen = len(made)
        list(rounds)
        return [seen]

    assert on_threads(2, work) == [[1], [1]]


def test_one_process_alone_exchanges_nothing() -> None:
    tensor = torch.tensor([1.5], dtype=torch.float64)
    assert SINGLE.main
    assert SINGLE.local_main
    assert SINGLE.sum(tensor) is tensor
    assert SINGLE.all_gather([1, 2]) == [1, 2]
    assert SINGLE.broadcast("x") == "x"
    assert list(SINGLE.interleave(iter("abc"), 5)) == list("abc")
    SINGLE.barrier()
    assert Compute("cpu").processes is SINGLE


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


def test_a_folder_that_is_taken_is_heard_by_all_processes(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Told(Processes):
        def broadcast(self, value: Any) -> Any:
            return value if self.main else (Taken("'run' is being written by process 7"), [], 0, 0)

    with pytest.raises(Taken, match="process 7"):
        RunFolder(tmp_path / "run", "neurons", {}, processes=Told(1, 2))
    assert not (tmp_path / "run").exists()


def test_only_the_main_process_writes_and_all_know_the_same(tmp_path: Path) -> None:
    identity, before = {"recipe": "plain"}, {"unit": 0, "at": [1, 2]}
    RunFolder(tmp_path / "run", "neurons", identity).add(before)

    @dataclass(frozen=True)
    class Told(Processes):
        def broadcast(self, value: Any) -> Any:
            return value if self.main else ("", [before], 0, 0)

    picture = np.zeros((2, 3), dtype=np.uint8)
    runs = [
        RunFolder(tmp_path / ("run" if rank == 0 else "elsewhere"), "neurons", identity, processes=Told(rank, 2))
        for rank in (0, 1)
    ]
    for run in runs:
        run.remember("checkpoints", {"a": {"name": "a"}})
        run.add({"unit": 1, "at": (3, 4)})
        run.add_image({"unit": 2}, picture, "images/2.png")
    assert runs[0].rows() == runs[1].rows() == read_rows(tmp_path / "run")
    assert [row["unit"] for row in runs[0].rows()] == [0, 1, 2]
    assert (tmp_path / "run" / "images" / "2.png").is_file()
    assert not (tmp_path / "elsewhere").exists()
