"""Run folders: what is there is whole, and nothing of another run is touched."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image

from vizrobust import runs
from vizrobust.runs import (
    RunFolder,
    default_folder,
    digest,
    file_sha256,
    read_rows,
    read_run,
    slug,
    write_atomic,
    write_json,
    write_rows,
    write_text,
)

IDENTITY = {"recipe": "plain(steps=64)", "size": [28, 28]}
PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b", "neurons", IDENTITY, {"threads": 2})
    run.add({"unit": 1, "name": "é\n"})
    run.add({"unit": 2})
    again = RunFolder(tmp_path / "a" / "b", "neurons", IDENTITY, {"threads": 3})
    again.add({"unit": 3})
    assert [row["unit"] for row in again.rows()] == [1, 2, 3]
    assert read_rows(tmp_path / "a" / "b")[0]["name"] == "é\n"
    info = read_run(tmp_path / "a" / "b")
    assert info is not None
    assert info["command"] == "neurons"
    assert info["identity"] == IDENTITY
    assert info["threads"] == 3


def test_what_is_recorded_besides_may_grow_and_is_kept(tmp_path: Path) -> None:
    RunFolder(tmp_path, "neurons", IDENTITY, {"checkpoints": ["a"], "seeds": [0]})
    RunFolder(tmp_path, "neurons", IDENTITY, {"checkpoints": ["a", "b"]})
    info = read_run(tmp_path)
    assert info is not None
    assert info["checkpoints"] == ["a", "b"]
    assert info["seeds"] == [0]


def test_tuples_and_lists_are_the_same_identity(tmp_path: Path) -> None:
    RunFolder(tmp_path, "neurons", {"size": (28, 28)})
    RunFolder(tmp_path, "neurons", {"size": [28, 28]})


def test_a_run_recorded_under_old_names_goes_on(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "train", {"training": 'Training(arch="a", attack=ISM(steps=3))'})
    new = {"training": 'TrainingRecipe(arch="a", attack=BIM(steps=3))'}
    RunFolder(tmp_path / "run", "train", new)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"] == new
    with pytest.raises(ValueError, match="holds another run: training was"):
        RunFolder(tmp_path / "run", "train", {"training": 'TrainingRecipe(arch="a", attack=BIM(steps=4))'})


@pytest.mark.parametrize(
    ("command", "identity", "said"),
    [
        ("neurons", {**IDENTITY, "recipe": "fourier"}, "recipe was 'plain(steps=64)', now 'fourier'"),
        ("neurons", {**IDENTITY, "start": "x.png"}, "start was None, now 'x.png'"),
        ("neurons", {"recipe": "plain(steps=64)"}, "size was [28, 28], now None"),
        ("attack", IDENTITY, "holds a run of 'neurons', not of 'attack'"),
    ],
)
def test_another_run_is_refused_and_the_folder_left_alone(tmp_path: Path, command: str, identity: dict, said: str) -> None:
    run = RunFolder(tmp_path, "neurons", IDENTITY)
    run.add_image({"unit": 1}, PICTURE, "images/1.png")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"half')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"\S") as error:
        RunFolder(tmp_path, command, identity, {"threads": 9})
    assert said in str(error.value)
    assert "give out another folder" in str(error.value)
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files; give out a new or empty folder"):
        RunFolder(tmp_path, "neurons", IDENTITY)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"x")
    RunFolder(tmp_path, "neurons", IDENTITY)


@pytest.mark.parametrize("text", ["{", "[]", '{"identity": 3}', "{}", ""])
def test_a_foreign_run_json_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="give out another folder"):
        RunFolder(tmp_path, "neurons", IDENTITY)
    assert contents(tmp_path) == {"run.json": text.encode()}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        RunFolder(tmp_path / name, "neurons", IDENTITY)


def test_an_incomplete_last_row_is_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "neurons", IDENTITY)
    run.add({"unit": 1})
    path = tmp_path / "rows.jsonl"
    whole = path.read_bytes()
    for half in (b'{"unit": 2', b'{"unit": "\xc3', b"{"):
        path.write_bytes(whole + half)
        assert read_rows(tmp_path) == [{"unit": 1}], "readers skip it"
        again = RunFolder(tmp_path, "neurons", IDENTITY)
        assert path.read_bytes() == whole, "the next run cuts it"
        again.add({"unit": 3})
        assert [row["unit"] for row in read_rows(tmp_path)] == [1, 3]
        path.write_bytes(whole)


def test_a_picture_carries_its_row(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "neurons", IDENTITY)
    row = run.add_image({"unit": 3, "objective": 'Channel(layer="é")', "score": 1.5}, PICTURE, "images/a/3.png")
    assert row == {"unit": 3, "objective": 'Channel(layer="é")', "score": 1.5, "image": "images/a/3.png"}
    with Image.open(tmp_path / "images/a/3.png") as picture:
        assert json.loads(picture.text["vizrobust"]) == row
        assert (np.asarray(picture) == PICTURE).all()
    assert run.rows() == [row]


def test_grey_pictures_are_saved_too(tmp_path: Path) -> None:
    runs.write_png(tmp_path / "a.png", PICTURE[..., 0].copy(), {})
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "L"
        assert (np.asarray(picture) == PICTURE[..., 0]).all()


def test_a_picture_comes_before_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path, "neurons", IDENTITY)
    monkeypatch.setattr(runs, "write_png", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run.add_image({"unit": 3}, PICTURE, "images/3.png")
    assert run.rows() == []


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    before = contents(tmp_path)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"a": 2})

    def half(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_atomic(path, half)
    with pytest.raises(TypeError):
        write_rows(path, [{"a": 1}, {"a": object()}])
    assert contents(tmp_path) == before


def test_a_rewritten_file_is_whole(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"a": k} for k in range(100)])
    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    assert read_rows(tmp_path) == [{"a": 1}]


def test_names() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    assert default_folder("neurons", IDENTITY) == Path("runs") / f"neurons-{digest(IDENTITY)}"
    assert slug("runs/k8: the best!") == "runs-k8-the-best"
    assert slug("../..") == slug("") == "x"
    assert all("/" not in slug(text) and not slug(text).startswith(".") for text in ("/etc", "..", "a/../b", "\0"))


def test_a_files_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


WRITER = """
import sys
import numpy as np
from vizrobust.runs import RunFolder, write_json
run = RunFolder(sys.argv[1], "neurons", {"recipe": "plain"})
done = len(run.rows())
print("started", flush=True)
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
for unit in range(done, 100_000):
    run.add_image({"unit": unit, "note": "x" * 20_000}, noise, f"images/{unit}.png")
    write_json(run.folder / "state.json", {"unit": unit, "note": "y" * 200_000})
"""


def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path) -> None:
    folder, counts = tmp_path / "run", [0]
    for pause in (0.0, 0.017, 0.009, 0.031):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            while len(read_rows(folder)) <= counts[-1]:
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        rows = read_rows(folder)
        assert [row["unit"] for row in rows] == list(range(len(rows))), "each row once, none lost"
        for row in rows[counts[-1] :]:
            with Image.open(folder / row["image"]) as picture:
                picture.load()
                assert json.loads(picture.text["vizrobust"]) == row
        for picture_file in (folder / "images").glob("*.png"):
            with Image.open(picture_file) as picture:
                picture.verify()
        assert read_run(folder) is not None
        if (folder / "state.json").is_file():
            # Each round may have been killed after its only row and before the state that belongs to it.
            behind = len(rows) - 1 - json.loads((folder / "state.json").read_text())["unit"]
            assert 0 <= behind <= len(counts)
        counts.append(len(rows))


TO_FOLDER = """
import os, sys
from vizrobust.runs import RunFolder, write_json
if len(sys.argv) > 2:  # permissions do not bind root, so root becomes another user once Python is loaded
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    run = RunFolder(sys.argv[1], "neurons", {"recipe": "plain"})
    for unit in range(1000):
        write_json(run.folder / "state.json", {"unit": unit, "note": "y" * 5_000 * unit})
        run.add({"unit": unit, "note": "x" * 5_000})
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_whole_files(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a small disk")
    try:
        done = subprocess.run([sys.executable, "-c", TO_FOLDER, str(disk / "run")], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(errno.ENOSPC), done.stderr
        rows = read_rows(disk / "run")
        assert [row["unit"] for row in rows] == list(range(len(rows)))
        assert rows
        assert json.loads((disk / "run" / "state.json").read_text())["unit"] in (len(rows), len(rows) - 1)
        assert not list(disk.rglob(".*.tmp")), "the failed write takes no room"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_folder_is_an_os_error_and_stays_as_it_is(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    as_other = ["other"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    if as_other:
        for folder in (tmp_path, *tmp_path.parents):
            if "pytest" in folder.name:
                folder.chmod(0o755)
    for target in (locked, locked / "below"):
        command = [sys.executable, "-c", TO_FOLDER, str(target), *as_other]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == str(errno.EACCES), done.stderr
    assert contents(locked) == {}


def test_a_second_process_is_refused_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    code = (
        "import sys, time; from vizrobust.runs import RunFolder; run = RunFolder(sys.argv[1], 'neurons', {}); "
        "print(1, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match=f"is being written by process {other.pid}"):
            RunFolder(tmp_path / "run", "neurons", {})
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    RunFolder(tmp_path / "run", "neurons", {}).add({"unit": 1})


def test_links_in_place_of_a_runs_files_are_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine\n")
    for name in (".lock", "rows.jsonl"):
        run = tmp_path / name.strip(".")
        RunFolder(run, "neurons", {}).close()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(elsewhere)
        with pytest.raises(ValueError, match="is a link"):
            RunFolder(run, "neurons", {})
    assert elsewhere.read_text() == "mine\n"


def test_a_damaged_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    RunFolder(tmp_path, "neurons", {}).add({"unit": 1})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match=r"rows.jsonl', line 2, is damaged"):
        read_rows(tmp_path)


def test_a_full_disk_is_said_whoever_writes(tmp_path: Path) -> None:
    """torch and Pillow hide why a write failed behind errors of their own."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (tmp_path / "x").write_bytes(b"as before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for write in (
            lambda file: torch.save({"a": torch.rand(100_000)}, file),
            lambda file: Image.effect_noise((400, 400), 50).save(file, format="PNG"),
            lambda file: np.save(file, np.zeros(100_000)),
        ):
            with pytest.raises(OSError) as told:  # noqa: PT011
                write_atomic(tmp_path / "x", write)
            assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "x"))
            assert [path.name for path in tmp_path.iterdir()] == ["x"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "x").read_bytes() == b"as before"


def test_a_folder_that_could_not_be_opened_is_free_while_the_error_is_looked_at(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "neurons", {}).close()
    (tmp_path / "run" / "rows.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="is damaged") as error:
        RunFolder(tmp_path / "run", "neurons", {})
    assert error.tb is not None  # as a notebook keeps it
    assert (tmp_path / "run").resolve() not in runs._Lock.held
