"""A training run that is killed and taken up again ends with the weights of one that never stopped."""

import os
import signal
import time

import pytest
import torch
from safetensors import safe_open

from tests.forks import forks
from vizrobust.models import load_checkpoint

EPOCHS = 3
CODE = f"""
import io, time
from pathlib import Path
import torch, torch._dynamo
from vizrobust.attacks import FGSM, L2, PGD, Linf
from vizrobust.compute import Compute
from tests.test_training import tiny
from vizrobust.training import MultiAttack, Progress, TrainingRecipe, loop, train, training_runs

# The watch and the closing test are kept short; one thread, since the weights are promised at the same thread count.
loop.MONITOR_STEPS = training_runs.TESTED_IMAGES = training_runs.TESTED_STEPS = 1
mix = MultiAttack((PGD(steps=1, ball=Linf(0.1)), FGSM(L2(0.5))), "random")
recipe = TrainingRecipe(
    "small_cnn", "tiny", mix, clean_weight=0.5, epochs={EPOCHS}, batch_size=3, augment="crop", watch=1, ema=0.9, awp=0.01
)

def run(line):
    pause, folder = line.split(" ", 1)
    folder = Path(folder)
    def hold(name):
        (folder.parent / "here").write_text(name)
        time.sleep(600)

    whole = torch.save
    def in_halves(state, file):
        if (len(state["metrics"]), state["tally"]["batch"]) != (2, 0):
            return whole(state, file)
        content = io.BytesIO()
        whole(state, content)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        hold("writing")
    if pause == "writing":
        torch.save = in_halves
    for item in train(recipe, tiny(), Compute("cpu", threads=1), folder, checkpoint_every=4):
        if pause == "first" and isinstance(item, Progress) and item.batch == 5:
            hold("first")
        if pause == "within" and isinstance(item, Progress) and (item.epoch, item.batch) == (2, 6):
            hold("within")
        if pause == "between" and isinstance(item, dict):
            hold("between")
"""


@pytest.fixture(scope="module")
def launcher():
    with forks(CODE) as started:
        yield started


def kill_at(launcher, pause, folder):
    """Start the run, wait until it says that it is at `pause`, and kill it there."""
    pid, sign = launcher.start(f"{pause} {folder}"), folder.parent / "here"
    for _ in range(1200):
        if sign.is_file() and sign.read_text() == pause:
            break
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert launcher.ended() == -signal.SIGKILL
    assert sign.is_file(), f"the run did not get to {pause!r} in a minute"


@pytest.fixture(scope="module")
def expected(launcher, tmp_path_factory):
    """The weights of a run that is never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    launcher.start(f"never {folder}")
    assert launcher.ended() == 0
    return load_checkpoint(str(folder)).state


def check_no_half_written_file(folder):
    """Whatever has its final name can be read as a whole."""
    for path in folder.iterdir():
        if path.name in ("state.pt", "part.pt"):
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            with safe_open(str(path), "pt") as file:
                assert file.keys()
        elif path.suffix in (".json", ".jsonl"):
            assert path.read_text().endswith("\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    ("pause", "kept"),
    # In the middle of a file is the hardest place; the others are slow.
    [("writing", 1), *(pytest.param(*place, marks=pytest.mark.slow) for place in (("first", 0), ("between", 1), ("within", 1)))],
)
def test_a_killed_run_goes_on_to_the_same_weights(launcher, tmp_path, expected, pause, kept):
    folder = tmp_path / "run"
    kill_at(launcher, pause, folder)
    check_no_half_written_file(folder)
    assert not (folder / "checkpoint.safetensors").exists()
    state = folder / "state.pt"
    assert state.is_file() == bool(kept)
    if kept:
        assert len(torch.load(state, weights_only=True)["metrics"]) == kept
    part = folder / "part.pt"
    assert part.is_file() == (pause != "between")
    if pause == "within":
        assert torch.load(part, weights_only=True)["tally"]["batch"] == 4
    assert any(path.name.startswith(".state.pt") for path in folder.iterdir()) == (pause == "writing")

    launcher.start(f"never {folder}")
    assert launcher.ended() == 0
    check_no_half_written_file(folder)
    found = load_checkpoint(str(folder)).state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    assert not part.exists()
