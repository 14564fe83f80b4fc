"""Several processes do what one does: the same verdicts, pictures and words, also after one of them was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests import forks
from tests.digits import save_digits_net
from vizrobust.cli import main
from vizrobust.models import load_checkpoint
from vizrobust.runs import read_rows

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
def port() -> str:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def by_hand(tmp_path: Path, port: str) -> Iterator[Any]:
    """Start a command (or another program) on two processes without a launcher that would end one after the other."""
    begun: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> list[subprocess.Popen[str]]:
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
    *("attack", "one.safetensors", "other.safetensors", "--attack", "PGD(restarts=2)", "--steps", "6", "--eps", "0.12"),
    *("--images", "46", "--batch-size", "8", "--curve", "steps", "--plot", "curve.png", "--out", "run"),
]  # fmt: skip


# As torchrun starts them, but for what each would load by itself.
AS_TORCHRUN = f"""
import vizrobust.attacks, vizrobust.commands.attack, vizrobust.report, vizrobust.robustness
from vizrobust.cli import main

def run():
    main({ATTACK!r}, standalone_mode=False)
"""


@pytest.fixture(scope="module", params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def attacked(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """An attack on one process; and one that was begun by one, was killed in the middle of a line, and goes on with two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        save_digits_net(folder / "one.safetensors")
        save_digits_net(folder / "other.safetensors", noise=0.05)
    with pytest.MonkeyPatch.context() as patch:
        printed = in_one(ATTACK, one, patch)
    lines = (one / "run" / "rows.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: len(lines) // 3]
    (two / "run").mkdir()
    (two / "run" / "run.json").write_text((one / "run" / "run.json").read_text())
    (two / "run" / "rows.jsonl").write_text("".join(kept) + lines[len(kept)][:40])
    if request.param == "forked":
        out, err = forks.together(AS_TORCHRUN, cwd=two)
    else:
        done = together(ATTACK, two)
        assert done.returncode == 0, done.stderr
        out, err = done.stdout, done.stderr
    return {"one": one, "two": two, "kept": kept, "printed": printed, "out": out, "err": err}


class TestAnAttackOnTwoProcesses:
    def test_gives_every_image_the_same_verdict(self, attacked: dict[str, Any]) -> None:
        one, two = (verdicts(attacked[name] / "run") for name in ("one", "two"))
        assert one == two
        assert len({at for at, _ in one.values()}) > 3, "images break at different steps"
        assert passes(attacked["one"] / "run") == passes(attacked["two"] / "run")

    def test_goes_on_where_one_process_stopped(self, attacked: dict[str, Any]) -> None:
        rows = (attacked["two"] / "run" / "rows.jsonl").read_text().splitlines(keepends=True)
        assert rows[: len(attacked["kept"])] == attacked["kept"]
        assert len(rows) > len(attacked["kept"])

    def test_prints_the_same_once(self, attacked: dict[str, Any]) -> None:
        assert words(attacked["out"]) == words(attacked["printed"])
        assert attacked["err"].count("drawn: curve.png") == 1

    def test_draws_the_same(self, attacked: dict[str, Any]) -> None:
        one, two = (pixels(attacked[name] / "curve.png") for name in ("one", "two"))
        assert np.array_equal(one, two)

    def test_leaves_the_same_run(self, attacked: dict[str, Any]) -> None:
        one, two = (json.loads((attacked[name] / "run" / "run.json").read_text()) for name in ("one", "two"))
        assert one["threads"] == two["threads"] == 1
        assert {key: one[key] for key in one if key != "argv"} == {key: two[key] for key in two if key != "argv"}


NEURONS = ["neurons", "mnist-k8", "--layer", "conv2", "--units", "0:11", "--steps", "3", "--batch-size", "2", "--both",
           "--movie", "--out", "run"]  # fmt: skip


@pytest.mark.slow
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


TRAIN = ("train", "--data", "digits", "--arch", "small_cnn", "--steps", "2", "--eps", "0.1", "--epochs", "1", "--out", "run")


@pytest.mark.slow
def test_two_machines_train_what_two_processes_of_one_do(tmp_path: Path, port: str) -> None:
    """Two torchruns that meet at an address, each in a folder that the other does not see: as on two machines."""
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "1", "--rdzv-backend", "c10d"]
    launch = [*TORCHRUN[:3], *nodes, "--rdzv-endpoint", f"127.0.0.1:{port}", *TORCHRUN[-2:], *TRAIN]
    folders = {name: tmp_path / name for name in ("first", "second", "alone")}
    for folder in folders.values():
        folder.mkdir()
    begun = [
        subprocess.Popen(launch, cwd=folders[name], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("first", "second")
    ]
    try:
        ends = [process.communicate(timeout=2 * DEADLINE) for process in begun]
    finally:
        for process in begun:
            process.kill()
    assert [process.returncode for process in begun] == [0, 0], ends
    assert together(TRAIN, folders["alone"]).returncode == 0
    (main_one,) = (folders[name] / "run" for name in ("first", "second") if (folders[name] / "run").exists())
    found, wanted = (load_checkpoint(str(folder)).state for folder in (main_one, folders["alone"] / "run"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
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
assert p.all_gather([p.rank, "x"]) == [0, "x", 1, "x"]
assert p.broadcast({"from": p.rank}) == {"from": 0}
value = torch.tensor([1e-17 + p.rank, 2.0], dtype=torch.float64)
assert p.sum(value).tolist() == [(1e-17 + 0) + (1e-17 + 1), 4.0] and p.sum(value).dtype == torch.float64
assert value[0] == 1e-17 + p.rank, "what was given is as it was"
p.barrier()
assert list(p.interleave(p.shard(range(7)))) == list(range(7))
assert sorted(p.interleave(p.shard(range(7)), 0.2)) == list(range(7))
assert first.processes.all_gather([1]) == [1, 1]
print("fine", p.rank, torch.get_num_threads(), flush=True)
from vizrobust.cli import main
main(["attack", "mnist-k8", "--minimal", "--curve", "eps"])
"""


@pytest.mark.slow
def test_exchanges_are_exact_a_second_compute_takes_up_the_connection_and_a_wrong_command_is_answered_once(by_hand: Any) -> None:
    processes = by_hand([DRIVER], [sys.executable, "-c"])
    (out, err), other = (process.communicate(timeout=DEADLINE) for process in processes)
    assert out == "fine 0 1\n", err
    assert other == ("fine 1 1\n", "")
    assert [process.returncode for process in processes] == [2, 2]
    assert err.count("--minimal and --curve eps answer different questions") == 1


ENDS = """
import atexit, torch
atexit.register(lambda: print(torch.distributed.is_initialized()))
from vizrobust.compute import Compute
Compute("cpu")
assert Compute("cpu").processes.sum(torch.ones(1)) == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(("last_line", "connected"), [("", "False"), ("1 / 0", "True")])
def test_the_connection_is_closed_before_python_is(by_hand: Any, last_line: str, connected: str) -> None:
    """Else gloo's threads free what they exchanged in an interpreter that is no more, and abort the process."""
    processes = by_hand([ENDS + last_line], [sys.executable, "-c"])
    ends = [process.communicate(timeout=DEADLINE) for process in processes]
    assert [out for out, _ in ends] == [f"{connected}\n"] * 2, ends
