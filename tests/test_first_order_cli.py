"""`vizrobust first-order` and `vizrobust dimension` on the command line: tables, pictures, one sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tests.digits import digits_net
from vizrobust import requests
from vizrobust.attacks import Linf
from vizrobust.cli import main
from vizrobust.compute import Compute
from vizrobust.data import head, load
from vizrobust.experiments.input_dimension import fit_growth
from vizrobust.models import CheckpointInfo, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.robustness.first_order import first_order
from vizrobust.training import training_runs

SMALL = ("--data", "digits", "--epochs", 1, "--seeds", 1, "--images", 20, "--quiet")


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vizrobust")


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A checkpoint that reads digits."""
    data, path = load("digits"), tmp_path / "reader.safetensors"
    about = CheckpointInfo("small_cnn", data.shape, data.classes, data.mean, data.std, data="digits")
    save_checkpoint(path, body_state(digits_net()), about)
    return path


@pytest.fixture
def few_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 10)
    monkeypatch.setattr(training_runs, "TESTED_STEPS", 2)


def test_first_order_prints_a_row_for_each_loss_and_how_to_read_it(reader, tmp_path):
    plot = tmp_path / "drops.png"
    done = run("first-order", reader, "--images", 30, "--steps", 3, "--plot", plot, "--quiet")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert sum("  margin  " in line for line in lines) == sum("  ce  " in line for line in lines) == 2
    for words in (
        f"Linf(eps={load('digits').eps:g})",
        "PGD with 3 steps",
        "overfitting",
        "hides the attack",
        "cross entropy is flat",
    ):
        assert words in done.stdout.replace("\n", " "), words
    assert f"drawn: {plot} (margin" in done.stderr
    with Image.open(plot) as picture:
        assert picture.text["Command"].startswith("vizrobust")


def test_first_order_rows_are_those_of_the_library(reader):
    data = load("digits")
    done = run("first-order", reader, "--images", 30, "--steps", 3, "--eps", "1/8", "--loss", "ce", "--seed", 4, "--json")
    (row,) = map(json.loads, done.stdout.splitlines())
    found = first_order(digits_net(), head(data.test, 30), Linf(0.125), Compute("auto", "fp32"), "ce", 3, seed=4)
    drops, summary = row.pop("drops"), found.summary()
    assert {name: row[name] for name in summary} == pytest.approx(summary)
    assert (row["checkpoint"], row["data"], row["split"]) == (str(reader), "digits", "test")
    assert [drop["image"] for drop in drops] == found.image.tolist()
    assert [drop["pgd"] for drop in drops] == pytest.approx(found.pgd.tolist())


def test_first_order_takes_other_norms(reader):
    done = run("first-order", reader, "--images", 10, "--steps", 2, "--norm", "L2", "--eps", 0.5, "--loss", "margin", "--quiet")
    assert done.exit_code == 0, done.output
    assert "L2(eps=0.5)" in done.stdout


def test_dimension_trains_prints_slopes_and_draws(few_tested, tmp_path):
    out, plot = tmp_path / "run", tmp_path / "growth.svg"
    done = run("dimension", *SMALL, "--sides", "8,4, 6,4", "--out", out, "--plot", plot)
    assert done.exit_code == 0, done.output
    slopes = [line for line in done.stdout.splitlines() if line.rstrip().endswith("0.50")]
    assert [line.split()[:2] for line in slopes] == [[a, b] for a in ("margin", "ce") for b in ("initial", "trained")]
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.split()[1:2] in (["16"], ["36"], ["64"])] == [
        ["4", "16"], ["6", "36"], ["8", "64"],
    ]  # fmt: skip
    assert "<svg" in plot.read_text()
    rows = (out / "rows.jsonl").read_text()

    last = json.loads(rows.splitlines()[-1])
    columns = ("l1_margin_untrained", "l1_margin", "l1_ce_untrained", "l1_ce")
    (line,) = (line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["8", "64"])
    assert [float(cell) for cell in line[-4:]] == pytest.approx([last[name] for name in columns], rel=0.01)

    # The same command trains nothing twice, and one with more seeds keeps what is there.
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.safetensors")}
    again = run("dimension", *SMALL, "--sides", "4,6,8", "--out", out, "--json", "--loss", "ce")
    *networks, initial, own = map(json.loads, again.stdout.splitlines())
    assert networks == [json.loads(line) for line in rows.splitlines()]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert (initial["weights"], own["weights"], own["lecture"]) == ("initial", "trained", 0.5)
    by_hand = fit_growth([row["d"] for row in networks], [row["l1_ce_untrained"] for row in networks])
    assert (initial["slope"], initial["ci_low"]) == pytest.approx((by_hand.slope, by_hand.ci_low))
    assert own["slope"] != initial["slope"]


def test_dimension_can_train_against_an_attack(few_tested, tmp_path):
    options = ("--sides", "4,5,6", "--steps", 1, "--eps", 0.1, "--batch-size", 500, "--json")
    done = run("dimension", *SMALL, *options, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert "PGD(steps=1, ball=Linf(eps=0.1))" in identity["training"]
    assert requests.COMMANDS["dimension"].resumable


FIRST_ORDER_BAD = {
    "no images": (["--images", 0], "--images must be at least 1, got 0"),
    "no steps": (["--steps", 0], "--steps must be at least 1, got 0"),
    "no batch": (["--batch-size", 0], "--batch-size must be at least 1, got 0"),
    "plot": (["--plot", "drops.gif"], "a figure ends in .png, .svg, .pdf"),
    "norm": (["--norm", "L7"], "no norm 'L7'"),
    "norm without eps": (["--norm", "L2"], "--norm L2 needs --eps"),
    "zero eps": (["--eps", 0], "--eps 0 leaves nothing to attack"),
    "negative eps": (["--eps", -0.1], "eps must not be negative"),
    "split": (["--split", "tests"], "'tests' is not one of 'train', 'val', 'test'"),
    "loss": (["--loss", "dlr"], "'dlr' is not one of 'margin', 'ce', 'both'"),
}
DIMENSION_BAD = {
    "word": (["--sides", "4,big,8"], "'big' is not a number of pixels"),
    "fraction": (["--sides", "4,6.5,8"], "'6.5' is not a number of pixels"),
    "zero": (["--sides", "0,4,8"], "'0' is not a number of pixels"),
    "two": (["--sides", "4,8,4"], "has 2 different sides"),
    "none": (["--sides", ","], "has 0 different sides"),
    "too small for the network": (["--sides", "2,4,8"], "small_cnn cannot take images of 2 x 2 px"),
    "unknown network": (["--sides", "4,6,8", "--arch", "small_cn"], "did you mean small_cnn"),
    "grey": (["--sides", "4,6,8", "--arch", "torchvision:resnet18"], "takes 3 channels, these images have 1"),
    "images": (["--sides", "4,6,8", "--images", 0], "--images must be at least 1, got 0"),
    "seeds": (["--sides", "4,6,8", "--seeds", 0], "--seeds must be at least 1, got 0"),
    "epochs": (["--sides", "4,6,8", "--epochs", 0], "epochs must be at least 1, got 0"),
    "plot": (["--sides", "4,6,8", "--plot", "growth.txt"], "a figure ends in .png, .svg, .pdf"),
    "eps without steps": (["--sides", "4,6,8", "--eps", 0.1], "training against an attack needs --steps of at least 1"),
    "negative steps": (["--sides", "4,6,8", "--steps", -1], "needs --steps of at least 1"),
}


@pytest.mark.parametrize("case", FIRST_ORDER_BAD)
def test_bad_input_of_first_order_is_one_sentence(case, reader):
    args, words = FIRST_ORDER_BAD[case]
    assert_one_sentence(run("first-order", reader, *args), words)


@pytest.mark.parametrize("case", DIMENSION_BAD)
def test_bad_input_of_dimension_is_one_sentence_and_trains_nothing(case, tmp_path):
    args, words = DIMENSION_BAD[case]
    assert_one_sentence(run("dimension", *SMALL, *args, "--out", tmp_path / "run"), words)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_reads_nothing_is_named(reader, tmp_path):
    data, blind = load("digits"), tmp_path / "blind.safetensors"
    with torch.no_grad():
        state = {name: torch.zeros_like(value) for name, value in body_state(digits_net()).items()}
        state["linear2.bias"][int(next(c for c in range(10) if c not in data.test.labels[:5]))] = 1.0
    save_checkpoint(blind, state, CheckpointInfo("small_cnn", data.shape, data.classes, data.mean, data.std, data="digits"))
    done = run("first-order", blind, "--images", 5, "--quiet")
    assert_one_sentence(done, f"{blind}: the network classifies none of the 5 images correctly")


def test_an_architecture_that_changes_with_the_size_is_noted(few_tested, tmp_path):
    code = tmp_path / "own.py"
    code.write_text(
        "from torch import nn\n"
        "def net(shape, classes):\n"
        "    one = [nn.Flatten(), nn.Linear(shape[1] * shape[2], classes)]\n"
        "    return nn.Sequential(*one, nn.Linear(classes, classes)) if shape[1] > 5 else nn.Sequential(*one)\n"
    )
    done = run("dimension", *SMALL, "--sides", "4,5,6", "--arch", f"{code}:net", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "has different layers from 4 px and 6 px on" in done.stderr


def assert_one_sentence(done: Result, words: str) -> None:
    assert done.exit_code in (1, 2), done.output
    assert words in done.output
    sentences = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1
    assert done.output.rstrip().endswith(sentences[0])


def test_help_does_not_wait_for_torch():
    ask = (
        "import sys; from click.testing import CliRunner; from vizrobust.cli import main;"
        "[CliRunner().invoke(main, [c, '--help']) for c in ('first-order', 'dimension')]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout == "False\n"
