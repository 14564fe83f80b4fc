"""`judge`: three judges for a person's own data, from images that the judged networks did not see, which then judge."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_cli import checkpoint, run
from vizrobust.data import load
from vizrobust.data.sources import held_out


def test_held_out_images_are_the_validation_images_and_nothing_else():
    data = load("digits")
    view = held_out(data)
    own = torch.cat([part.take(torch.arange(len(part))) for part in (view.train, view.val)])
    known = {image.numpy().tobytes() for image in data.val.take(torch.arange(len(data.val)))}
    assert {image.numpy().tobytes() for image in own} == known
    assert len(own) == len(data.val)
    assert view.test is data.test
    assert load("held-out:digits").name == "held-out:digits"


def test_a_data_set_without_images_left_for_judges_is_refused(tmp_path):
    x, y = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
    x += y[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    result = run("judge", "--data", f"npz:{tmp_path / 'few.npz'}", "--out", tmp_path / "judges")
    assert result.exit_code == 1
    assert "validation image" in result.output
    assert "a judge needs 10 that the judged networks did not train on" in result.output


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "judges"
    args = ("judge", "--data", "digits", "--epochs", 3, "--steps", 1, "--out", folder)
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert "calibration error" in result.output
    # The same command again trains nothing.
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint.safetensors")}
    assert run(*args).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint.safetensors")} == weights
    assert len(weights) == 3
    return folder


@pytest.mark.slow
def test_the_card_says_what_the_judges_can_see(judges):
    card = (judges / "README.md").read_text()
    for words in ("standard", "heavy", "robust", "calibration error", "mean log-odds by share of phases kept"):
        assert words in card


@pytest.mark.slow
def test_own_judges_score_own_networks(judges, tmp_path):
    net = checkpoint(tmp_path / "net.safetensors")
    names = [judges / kind for kind in ("standard", "robust")]
    result = run(
        "neurons", net, "--units", "0:10", "--steps", 1, "--out", tmp_path / "run", "--json",
        *(part for name in names for part in ("--judge", name)),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert {row["judge"] for row in rows if "judge" in row} == set(map(str, names))
    assert len((tmp_path / "run" / "scales.jsonl").read_text().splitlines()) == 2
