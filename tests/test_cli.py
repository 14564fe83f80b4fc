"""The command line as a newcomer meets it: help, every command once, and one clear sentence for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from vizrobust.cli import COMMANDS, main
from vizrobust.compute import DEVICES, PRECISIONS
from vizrobust.models import CheckpointInfo, architecture, save_checkpoint
from vizrobust.requests import request


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vizrobust")


def checkpoint(path: Path, seed: int = 0, arch: str = "small_cnn", classes: int = 10, data: str = "digits") -> Path:
    """An untrained network for `digits`, 8 x 8 grey."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = architecture(arch, (1, 8, 8), classes)()
    about = CheckpointInfo(
        arch=arch, input_shape=(1, 8, 8), classes=tuple(map(str, range(classes))), mean=(0.3,), std=(0.4,),
        data=data, attack_steps=seed, metrics={"clean": 0.5, "robust": 0.25, "attack": "PGD(steps=50)", "n": 100},
    )  # fmt: skip
    save_checkpoint(path, net.state_dict(), about)
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return checkpoint(tmp_path / "a.safetensors", 0), checkpoint(tmp_path / "b.safetensors", 1)


def test_the_spelled_out_choices_are_those_of_compute():
    assert request.DEVICES == DEVICES
    assert request.PRECISIONS == PRECISIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"vizrobust {command}" in result.output.split("Options:")[0].split("\n", 1)[1]


def test_help_lists_every_command():
    listed = run("--help").output
    assert all(f"  {command} " in listed for command in COMMANDS)


def test_neurons_renders_resumes_and_says_where(two, tmp_path):
    out = tmp_path / "run"
    first = run("neurons", two[0], "--units", "0:3", "--steps", 4, "--out", out, "--quiet")
    assert first.exit_code == 0, first.output
    assert f"gallery: {out / 'index.html'}" in first.output
    rows = (out / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 3
    pictures = {path: path.stat().st_mtime_ns for path in out.rglob("images/**/*.png")}
    assert len(pictures) == 3
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (8, 8)
            assert json.loads(picture.text["vizrobust"])["unit"] in (0, 1, 2)
    second = run("neurons", *two, "--units", "0:4", "--steps", 4, "--out", out, "--quiet")
    assert second.exit_code == 0, second.output
    assert (out / "rows.jsonl").read_text().splitlines()[:3] == rows
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    assert len((out / "rows.jsonl").read_text().splitlines()) == 8
    assert (out / "contact-sheet.png").is_file()


def test_neurons_of_hidden_units_and_positions(two, tmp_path):
    out = tmp_path / "run"
    listed = run("neurons", two[0], "--layer", "conv1", "--neuron", "1,2", "--units", "3,7", "--negative",
                 "--steps", 2, "--out", out, "--json")  # fmt: skip
    assert listed.exit_code == 0, listed.output
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(row["unit"], row["position"], row["sign"], row["layer"]) for row in rows] == [
        (3, [1, 2], -1, "conv1"),
        (7, [1, 2], -1, "conv1"),
    ]
    assert all((out / row["image"]).is_file() and "conv1/" in row["image"] and "-neg" in row["image"] for row in rows)


def test_an_early_layer_takes_any_size(two, tmp_path):
    args = (
        "neurons",
        two[0],
        "--layer",
        "conv2",
        "--units",
        "0",
        "--steps",
        1,
        "--size",
        20,
        "--out",
        tmp_path / "run",
        "--quiet",
    )
    assert run(*args).exit_code == 0
    with Image.open(next((tmp_path / "run").rglob("images/**/*.png"))) as picture:
        assert picture.size == (20, 20)


def test_neurons_from_an_image(two, tmp_path):
    Image.new("L", (20, 20), 200).save(tmp_path / "start.png")
    args = ("neurons", two[0], "--units", "0", "--steps", 1, "--start", tmp_path / "start.png", "--quiet")
    result = run(*args, "--out", tmp_path / "run", "--recipe", "plain(rate=0.0)")
    assert result.exit_code == 0, result.output
    with Image.open(next((tmp_path / "run").rglob("images/**/*.png"))) as picture:
        assert picture.getextrema() == (200, 200)


def test_compare_has_recipes_scores_and_references(two, tmp_path):
    judge = checkpoint(tmp_path / "judge.safetensors", 7, "resnet_small", data="elsewhere")
    args = ("compare", *two, "--seeds", 1, "--recipe", "plain(steps=2)", "--judge", judge, "--quiet")
    result = run(*args, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for words in ("natural images", "random network", "transfer, log-odds", "two-alternative AUC", "25.0 %", "paired"):
        assert words in result.output, words
    assert (tmp_path / "run" / "index.html").is_file()
    rows = [json.loads(line) for line in run(*args, "--out", tmp_path / "run", "--json").stdout.splitlines()]
    scores = {row["pictures"]: row for row in rows if "pictures" in row}
    assert set(scores) == {*map(str, two), "natural images", "random network"}
    (difference,) = (row for row in rows if "difference" in row)
    assert difference["difference"] == [str(two[1]), str(two[0])]
    by_hand = [b - a for a, b in zip(scores[str(two[0])]["transfer"], scores[str(two[1])]["transfer"], strict=True)]
    assert difference["transfer"]["mean"] == pytest.approx(sum(by_hand) / 10)
    assert difference["transfer"]["low"] < difference["transfer"]["mean"] < difference["transfer"]["high"]


def test_gallery_joins_runs(two, tmp_path):
    for layer in ("conv1", "conv2"):
        done = run("neurons", two[0], "--layer", layer, "--units", "0:2", "--steps", 1, "--out", tmp_path / layer, "--quiet")
        assert done.exit_code == 0, done.output
    joined = run("gallery", tmp_path / "conv1", tmp_path / "conv2", "--out", tmp_path / "both")
    assert joined.exit_code == 0, joined.output
    page = (tmp_path / "both" / "index.html").read_text()
    assert "conv1" in page
    assert "conv2" in page


def test_attack_prints_a_table_rows_and_figures(two, tmp_path):
    args = ("attack", *two, "--attack", "fgsm", "--attack", "ism", "--attack", "pgd", "--steps", 3, "--eps", "8/255")
    table = run(*args, "--images", 20, "--quiet")
    assert table.exit_code == 0, table.output
    assert "95 % interval" in table.output
    assert "PGD(steps=3, ball=Linf(eps=8/255))" in table.output
    rows = [json.loads(line) for line in run(*args, "--images", 20, "--json").stdout.splitlines()]
    assert len(rows) == 6
    assert {"checkpoint", "data", "n", "attack", "norm", "eps", "steps", "clean", "accuracy", "ci_low", "ci_high",
            "max_norm", "forward_passes", "gradient_passes", "seconds"} <= set(rows[0])  # fmt: skip
    assert all(row["ci_low"] <= row["accuracy"] <= row["ci_high"] and row["n"] == 20 for row in rows)
    drawn = run("attack", *two, "--steps", 2, "--images", 10, "--quiet", "--curve", "steps", "--plot", tmp_path / "c.png",
                "--show", tmp_path / "e.png")  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    over_k = run(
        "attack", *two, "--steps", 2, "--images", 10, "--quiet", "--curve", "training-steps", "--plot", tmp_path / "k.svg"
    )
    assert over_k.exit_code == 0, over_k.output
    for name in ("c.png", "e.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
    assert "<svg" in (tmp_path / "k.svg").read_text()


def test_train_trains_and_layers_lists(tmp_path):
    args = (
        "train",
        "--data",
        "digits",
        "--arch",
        "small_cnn",
        "--steps",
        1,
        "--eps",
        0.1,
        "--epochs",
        1,
        "--out",
        tmp_path / "t",
    )
    done = run(*args, "--quiet")
    assert done.exit_code == 0, done.output
    assert "clean" in done.output
    assert (tmp_path / "t" / "card.md").read_text().startswith("# t\n")
    again = run(*args, "--quiet")
    assert again.exit_code == 0, again.output
    listed = run("layers", tmp_path / "t", "--json")
    assert [json.loads(line)["layer"] for line in listed.stdout.splitlines()][:2] == ["conv1", "relu1"]


@pytest.mark.parametrize("kind", ["attacks", "data", "models", "objectives", "recipes", "archs", "losses", "transforms"])
def test_list_describes_every_entry(kind):
    rows = [json.loads(line) for line in run("list", kind, "--json").stdout.splitlines()]
    assert rows
    assert all(row["name"] and row["what"] for row in rows)


# A command, its exit code and the words of its sentence.
BAD = {
    "neuron": (2, "no command 'neuron'; did you mean neurons"),
    "neurons A --layer conv9": (1, "no layer 'conv9'; did you mean conv"),
    "neurons A --layer conv1 --units 16": (1, "no unit 16 in layer conv1 of A, which has"),
    "neurons A --units a:b": (1, "--units 'a:b' is not all, a range"),
    "neurons A --layer conv1 --neuron 9,0": (1, "position 9,0 is outside layer 'conv1'"),
    "neurons A --neuron 0,0": (1, "has no positions"),
    "neurons A --layer conv1 --neuron 3": (2, "--neuron '3' is not a row and a column"),
    "neurons A --recipe plane": (1, "no recipe 'plane'; did you mean plain?"),
    "neurons A --recipe plain(stesp=3)": (1, "stesp"),
    "neurons A --start nowhere.png": (1, "no image file 'nowhere.png'"),
    "neurons A --start A": (1, "cannot read image 'A'"),
    "neurons A --size 32": (1, "cannot take images of 32 x 32 as far as 'logits'"),
    "neurons A --seeds 0": (2, "--seeds must be at least 1, got 0"),
    "neurons A --steps 0": (1, "steps must be at least 1, got 0"),
    "neurons mnist-k3": (1, "no model 'mnist-k3'"),
    "neurons nowhere/x.safetensors": (1, "no file or folder 'nowhere/x.safetensors'"),
    "attack A --attack pgdd": (1, "no attack 'pgdd'; did you mean PGD"),
    "attack A --attack PGD(stesp=3)": (1, "did you mean steps?"),
    "attack A --eps -0.1": (1, "eps must not be negative, got -0.1"),
    "attack A --eps 8": (1, "8/255"),
    "attack A --eps 8/0": (2, "'8/0' is not a number such as 0.3 or 8/255"),
    "attack A --steps 2.5": (2, "'2.5' is not a valid integer"),
    "attack A --attack PGD(steps=2.5)": (1, "steps must be a whole number, got 2.5"),
    "attack A --steps -1": (1, "steps must not be negative"),
    "attack A --norm L2": (1, "give --eps"),
    "attack A --norm L3 --eps 1": (1, "no norm 'L3'"),
    "attack A --curve steps --plot x.txt --images 3 --steps 1": (1, "x.txt"),
    "attack A --images 0": (2, "--images must be at least 1, got 0"),
    "attack A --split tset": (2, "'tset' is not one of"),
    "attack A --data mnist5k": (1, "takes images of (1, 8, 8), mnist5k has (1, 28, 28)"),
    "attack SEVEN": (1, "has 7 classes, digits has 10"),
    "train --data digits --arch small_cnn": (2, "say how to train"),
    "train --data digits --arch small_cnn --steps -1": (2, "--steps must not be negative"),
    "train --data digits --arch small_cn --steps 0": (1, "did you mean small_cnn"),
    "train --data digit --arch small_cnn --steps 0": (1, "did you mean digits?"),
    "train --data digits --arch small_cnn --steps 0 --clean-weight 2": (1, "between 0 and 1"),
    "compare A": (2, "two or more different checkpoints"),
    "gallery nowhere --out g": (1, "nowhere"),
    "list atacks": (1, "did you mean attacks"),
    "attack A --device cuda": (1, "device 'cuda' is not available here"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_loses_nothing(case, tmp_path, monkeypatch):
    code, words = BAD[case]
    if "cuda" in case and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "A")
    checkpoint(tmp_path / "SEVEN", classes=7)
    result = run(*case.split())
    assert result.exit_code == code, result.output
    last = result.output.strip().splitlines()[-1]
    assert words in result.output.replace("\n", " "), result.output
    assert "Traceback" not in result.output
    assert last.startswith("Error: ")
    assert not list(tmp_path.glob("**/*.png"))


def test_truncated_pickled_and_foreign_files(tmp_path):
    whole = checkpoint(tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"net": torch.nn.Linear(2, 2)}, tmp_path / "pickle.pt")
    assert "is truncated or not a safetensors file" in run("layers", tmp_path / "cut.safetensors").output
    assert "vizrobust import" in run("layers", tmp_path / "pickle.pt").output


def test_a_folder_with_another_run_is_refused_and_left_alone(two, tmp_path):
    out = tmp_path / "run"
    assert run("neurons", two[0], "--units", "0", "--steps", 1, "--out", out, "--quiet").exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = run("neurons", two[0], "--units", "0", "--steps", 2, "--out", out, "--quiet")
    assert other.exit_code == 1
    assert "holds another run: recipe was" in other.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_unwritable_place_is_one_sentence(two, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    result = run("neurons", two[0], "--units", "0", "--steps", 1, "--out", tmp_path / "file" / "run", "--quiet")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "is a file, not a folder" in result.output or "cannot open or write" in result.output


def test_a_full_disk_keeps_what_is_there(two, tmp_path, monkeypatch):
    import errno

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run"))

    out = tmp_path / "run"
    assert run("neurons", two[0], "--units", "0", "--steps", 1, "--out", out, "--quiet").exit_code == 0
    rows = (out / "rows.jsonl").read_text()
    monkeypatch.setattr("vizrobust.runs.write_png", full)
    result = run("neurons", two[0], "--units", "0:3", "--steps", 1, "--out", out, "--quiet")
    assert result.exit_code == 1
    assert "No space left on device; make room and start the same command again" in result.output.replace("\n", " ")
    assert (out / "rows.jsonl").read_text() == rows


def test_ctrl_c_says_how_to_go_on(two, tmp_path, monkeypatch):
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vizrobust.features.picture_runs.to_uint8", stop)
    result = run("neurons", two[0], "--units", "0", "--steps", 1, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 130
    assert "stopped; go on with: vizrobust" in result.output


@pytest.mark.slow
def test_a_killed_render_goes_on_and_recomputes_nothing(two, tmp_path):
    """SIGKILL in the middle, then the same command: the rows of before are untouched, no half-written file is left."""
    out = tmp_path / "run"
    args = [sys.executable, "-m", "vizrobust", "neurons", str(two[0]), "--layer", "conv2", "--units", "0:24", "--steps", "40",
            "--batch-size", "4", "--out", str(out), "--quiet", "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(args, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    rows = out / "rows.jsonl"
    while child.poll() is None and not (rows.is_file() and rows.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = rows.read_bytes().rpartition(b"\n")[0].splitlines()
    assert 5 <= len(kept) < 24
    stamps = {json.loads(row)["image"]: (out / json.loads(row)["image"]).stat().st_mtime_ns for row in kept}
    done = subprocess.run(args, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = rows.read_bytes().splitlines()
    assert lines[: len(kept)] == kept
    assert sorted(json.loads(line)["unit"] for line in lines) == list(range(24))
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for path in out.rglob("images/**/*.png"):
        with Image.open(path) as picture:
            picture.load()


def test_sigterm_says_what_ctrl_c_says(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it

    def told(number: int) -> Result:
        monkeypatch.setattr("vizrobust.commands.catalogues.entries", lambda: os.kill(os.getpid(), number))
        return run("list")

    try:
        term, ctrl_c = told(signal.SIGTERM), told(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (term.exit_code, ctrl_c.exit_code) == (143, 130)
    assert term.stderr.startswith("\nstopped")
    assert term.output == ctrl_c.output
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (0, signal.SIGINT)])
def test_of_several_processes_the_main_one_says_so_and_each_tells_the_others(rank, number, monkeypatch):
    told = []

    class Line:
        def end(self, code, text):
            told.append((code, text))
            return code

    monkeypatch.setattr("vizrobust.cli.show._silenced", lambda: 2)
    monkeypatch.setattr("vizrobust.cli.show.Lifeline.joined", lambda *_: Line())
    monkeypatch.setattr("vizrobust.cli.show.show", lambda *_: os.kill(os.getpid(), number))
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run("attack", "mnist-k8")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 128 + number, result.output
    assert told == [(128 + number, result.stderr.strip())]
    assert told[0][1].startswith("stopped; go on with: vizrobust")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_processes_that_wait_for_each_other_are_stopped_without_a_traceback(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vizrobust.cli.show.Lifeline.joined", stop)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    result = run("attack", "mnist-k8")
    assert (result.exit_code, type(result.exception)) == (130, SystemExit)
    assert result.stderr.startswith("\nstopped; go on with: vizrobust")


@pytest.mark.slow
def test_a_terminated_training_names_the_command_that_goes_on(tmp_path):
    how = ["--steps", "1", "--epochs", "500", "--out", str(tmp_path / "t")]
    command = ["train", "--data", "digits", "--arch", "small_cnn", *how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    start = [sys.executable, "-m", "vizrobust", *command]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (tmp_path / "t" / "state.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + 15
    assert f"stopped; go on with: vizrobust {' '.join(command)}" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_terminal_of_any_width_breaks_no_number_name_or_command(width, monkeypatch, capsys):
    from vizrobust.cli import show

    monkeypatch.setattr(show, "PIPE_WIDTH", width)
    header = ["checkpoint", "attack", "clean", "accuracy", "95 % interval", "images", "forward", "gradient", "seconds"]
    rows = [
        ["mnist-k0", "PGD(ball=Linf(eps=0.3))", "99.5 %", "0.0 %", "0.0 to 1.9", "200", "6.04", "5.04", "0.3"],
        ["mnist-k8", "PGD(ball=Linf(eps=0.3))", "97.0 %", "-75.5 %", "0.41 [0.27, 0.51]", "200", "35.9", "34.15", "7e-46"],
    ]
    command = "vizrobust neurons 'a network with a long name in a folder.safetensors' --layer layer4.2.relu --units 0:16"
    show.table("accuracy under attack", header, rows, f"passes per image\nrendered by: {command}")
    lines = capsys.readouterr().out.splitlines()
    assert [text for text in [*header, *rows[0], *rows[1], command] if not any(text in line for line in lines)] == []
    assert max(len(line.rstrip()) for line in lines if command not in line) <= width


def test_help_begins_with_the_options_of_its_examples_and_a_missing_argument_is_explained():
    shown = run("neurons", "--help").stdout
    options = [line.split()[0] for line in shown.partition("Options:")[2].splitlines() if line.startswith("  --")]
    assert options[:3] == ["--layer", "--units", "--out"]
    missing = run("attack")
    assert missing.exit_code == 2
    assert "Missing argument 'REF...'. Checkpoints: names, files, run folders; vizrobust list models names" in missing.output


def test_control_characters_of_foreign_names_are_written_out(tmp_path):
    import torch

    from vizrobust.cli.show import visible

    assert visible("a\x1b[31m\x9b\u202eb\nc\td") == "a\\x1b[31m\\x9b\\u202eb\nc\td"
    torch.save({"\x1b[2Jfake.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}, tmp_path / "x.pt")
    args = ["import", str(tmp_path / "x.pt"), "--arch", "small_cnn", "--normalize", "mnist", "--data", "digits"]
    result = CliRunner().invoke(main, [*args, "--out", str(tmp_path / "o.safetensors")])
    assert result.exit_code == 1
    assert "fake" in result.stderr
    assert "\x1b" not in result.stderr


def test_help_is_that_of_the_command_and_a_shell_gets_its_script():
    assert run("help", "attack").output.replace("help attack", "attack") == run("attack", "--help").output
    assert run("help").output == run("--help").output
    wrong = run("help", "atack")
    assert wrong.exit_code == 2
    assert "did you mean attack" in wrong.output
    assert "_VIZROBUST_COMPLETE=zsh_complete" in run("completion", "zsh").output
    assert run("completion", "csh").exit_code == 2
