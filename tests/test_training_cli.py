"""`vizrobust train` on the command line: several attacks, and one sentence for what cannot be."""

import fcntl
import json

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from vizrobust import trackers
from vizrobust.attacks import L2, PGD, Linf
from vizrobust.cli import main
from vizrobust.models import load_checkpoint
from vizrobust.report import training_report
from vizrobust.requests import training as offered
from vizrobust.runs import LOCK_FILE
from vizrobust.training import BASELINE_ATTACKS, METHODS, MIX_MODES, attacks_seen, training_runs
from vizrobust.training.recipe import ON_COLLAPSE
from vizrobust.training.train_state import SCHEDULES

TRAIN = ["train", "--data", "digits", "--arch", "small_cnn"]
PGD_, FGSM_ = ["--attack", "PGD"], ["--attack", "FGSM"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """What is drawn is tested in test_training_report; here an empty figure stands for it, which is drawn in no time."""
    monkeypatch.setattr(training_report, "curves_figure", lambda rows: Figure((1, 1)))


def run(*args):
    return CliRunner().invoke(main, [*TRAIN, *map(str, args)])


def test_train_against_two_attacks(tmp_path, monkeypatch):
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 50)
    two = ["--attack", "PGD", "--attack", "PGD(ball=L2(eps=0.5))", "--mix", "random"]
    done = run(*two, "--steps", 1, "--epochs", 1, "--out", tmp_path / "t", "--quiet", "--json")
    assert done.exit_code == 0, done.output
    epoch, last = (json.loads(line) for line in done.stdout.splitlines())
    assert len(epoch["val_robust_each"]) == 2
    assert 0 <= last["robust"] <= last["clean"] <= 1
    about = load_checkpoint(str(tmp_path / "t")).info
    linf, l2 = attacks_seen(about.training)
    assert (linf.steps, l2) == (1, PGD(steps=1, ball=L2(0.5)))
    assert isinstance(linf.ball, Linf)
    assert linf.ball.eps is not None  # the data set's


def test_what_is_offered_is_what_there_is():
    assert tuple(MIX_MODES) == offered.MIX_MODES
    assert tuple(BASELINE_ATTACKS) == offered.BASELINE_ATTACKS
    assert tuple(SCHEDULES) == offered.SCHEDULES
    assert offered.ON_COLLAPSE == ON_COLLAPSE
    assert offered.TRACKERS == trackers.NAMES
    text = run("--help").output
    assert all(name in text for name in METHODS)


SAID = [
    (["--method", "trades", "--steps", 2], "method=TRADES()"),
    (["--method", "Free(replays=2)"], "attack=FGSM(ball=Linf(eps=0.3)), epochs=1, method=Free(replays=2)"),
    (["--steps", 1, "--ema", 0.9, "--schedule", "cosine", "--awp", 0.01, "--label-smoothing", 0.1],
     'schedule="cosine", label_smoothing=0.1, awp=0.01, ema=0.9'),
]  # fmt: skip
ALSO_SAID = [
    (["--method", "fast", "--eps", 0.2], "attack=PGD(steps=1, ball=Linf(eps=0.2), alpha=0.25, clip_start=False)"),
    (["--method", "noise"], "attack=Noise(samples=1, ball=Linf(eps=0.3))"),
    (["--method", "Distillation(temperature=20)"], "epochs=1, method=Distillation(temperature=20.0)"),
]


@pytest.mark.parametrize(("args", "expected"), [*SAID, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALSO_SAID)])
def test_a_checkpoint_says_by_which_method_it_was_made(tmp_path, monkeypatch, args, expected):
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 20)
    monkeypatch.setattr(training_runs, "TESTED_STEPS", 1)
    done = run(*args, "--epochs", 1, "--watch", 20, "--out", tmp_path / "t", "--quiet")
    assert done.exit_code == 0, done.output
    assert expected in load_checkpoint(str(tmp_path / "t")).info.training
    assert (tmp_path / "t" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_comes_next_runs_also_for_a_network_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 20)
    monkeypatch.setattr(training_runs, "TESTED_STEPS", 1)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    done = run(
        "--arch", f"{tmp_path}/mine.py:net", "--steps", 0, "--epochs", 1, "--watch", 20, "--out", tmp_path / "t", "--quiet"
    )
    assert done.exit_code == 0, done.output
    (after,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    words = after.removeprefix("next: vizrobust ").split()
    there = CliRunner().invoke(main, [*words, "--units", "0", "--steps", "1", "--out", str(tmp_path / "n"), "--quiet"])
    assert there.exit_code == 0, there.output


SWEEP = ["--steps", "0,1", "--seeds", 2, "--epochs", 1, "--watch", 20, "--quiet"]


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(training_runs, "TESTED_IMAGES", 20)
    monkeypatch.setattr(training_runs, "TESTED_STEPS", 1)


def test_a_sweep_is_runs_in_one_folder_and_each_can_be_started_alone(tmp_path, brief):
    folder, names = tmp_path / "sweep", ["k0-s0", "k1-s0", "k0-s1", "k1-s1"]
    for cell, name in ((0, "k0-s0"), ("k1-s1", "k1-s1")):
        alone = run(*SWEEP, "--out", folder, "--cell", cell)
        assert alone.exit_code == 0, alone.output
        assert "1 of the sweep's 4 training runs" in alone.stdout
        assert (folder / name / "checkpoint.safetensors").is_file()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("checkpoint.safetensors")}
    assert len(before) == 2
    done = run(*SWEEP, "--out", folder)
    assert done.exit_code == 0, done.output
    assert "4 of the sweep's 4 training runs" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # One that was started alone and one of the whole sweep are those of their seed and steps.
    for name in ("k1-s1", "k1-s0"):
        one = run("--steps", 1, "--seed", name[-1], "--epochs", 1, "--watch", 20, "--quiet", "--out", tmp_path / name)
        assert one.exit_code == 0
        assert load_checkpoint(str(tmp_path / name)).sha256 == load_checkpoint(str(folder / name)).sha256


def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path, brief):
    (tmp_path / "s" / "k1-s0").mkdir(parents=True)
    with (tmp_path / "s" / "k1-s0" / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on another machine")
        lock.flush()
        done = run(*SWEEP, "--out", tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert "k1-s0' is being written by process" in done.stderr
    assert "1 training runs are being trained elsewhere: k1-s0" in done.stderr
    assert "3 of the sweep's 4 training runs" in done.stdout
    assert not (tmp_path / "s" / "k1-s0" / "checkpoint.safetensors").exists()
    again = run(*SWEEP, "--out", tmp_path / "s")
    assert "4 of the sweep's 4 training runs" in again.stdout


def test_the_numbers_also_go_to_tensorboard(tmp_path, brief):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: test)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run("--steps", 0, "--epochs", 2, "--watch", 20, "--quiet", "--track", "tensorboard", "--out", tmp_path / "t")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    logged = EventAccumulator(str(tmp_path / "t" / "tensorboard"))
    logged.Reload()
    assert [event.value for event in logged.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [event.step for event in logged.Scalars("val_robust")] == [1, 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
def test_the_numbers_also_go_to_mlflow(tmp_path, brief, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install mlflow)")
    where = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    done = run("--steps", 0, "--epochs", 2, "--watch", 20, "--quiet", "--track", "mlflow", "--out", tmp_path / "t")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    client = mlflow.MlflowClient(where)
    (logged,) = client.search_runs([client.get_experiment_by_name("vizrobust").experiment_id])
    assert [(point.step, point.value) for point in client.get_metric_history(logged.info.run_id, "loss")] == [
        (row["epoch"], pytest.approx(row["loss"])) for row in rows
    ]
    assert logged.data.params["training"].startswith("TrainingRecipe(")


def test_the_numbers_also_go_to_weights_and_biases(tmp_path, brief, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = run("--steps", 0, "--epochs", 2, "--watch", 20, "--quiet", "--track", "wandb", "--out", tmp_path / "t")
    assert done.exit_code == 0, done.output
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"val_robust" in kept.read_bytes()


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    done = run("--steps", 1, "--track", "wandb", "--out", tmp_path / "t", "--quiet")
    assert done.exit_code == 1
    assert "Error: tracker 'wandb' is not installed; pip install wandb, or leave --track out" in done.output
    assert list(tmp_path.iterdir()) == []


BAD = {
    "two without mix": ([*PGD_, *FGSM_], 2, "2 attacks need --mix avg, max or random"),
    "mix of one": ([*PGD_, "--mix", "max"], 2, "--mix max needs two --attack or more, got 1"),
    "mix of none": (["--steps", 3, "--mix", "avg"], 2, "--mix avg needs two --attack or more, got 0"),
    "unknown mix": ([*PGD_, *FGSM_, "--mix", "mean"], 2, "'mean' is not one of 'avg', 'max', 'random'"),
    "one eps for two": ([*PGD_, *FGSM_, "--mix", "avg", "--eps", 0.1], 2, "write each one's norm and radius in its SPEC"),
    "one norm for two": ([*PGD_, *FGSM_, "--mix", "avg", "--norm", "L2"], 2, "write each one's norm and radius in its SPEC"),
    "one of two without eps": ([*PGD_, "--attack", "PGD(ball=L2())", "--mix", "avg"], 1, "PGD with L2 has no eps"),
    "standard with attack": ([*PGD_, "--steps", 0], 2, "--steps 0 is standard training, which has no attack"),
    "unknown attack": (["--attack", "pgdd"], 1, "no attack 'pgdd'; did you mean PGD"),
    "a ball": (["--attack", "Linf(eps=0.3)"], 1, "'Linf(eps=0.3)' is not an attack"),
    "negative eps": (["--steps", 1, "--eps", -0.1], 1, "eps must not be negative, got -0.1"),
    "negative steps": (["--attack", "PGD(steps=-1)"], 1, "PGD: steps must not be negative, got -1"),
    "eps above 1": (["--steps", 1, "--eps", 8], 1, "eps 8 is above 1"),
    "no such class": (["--attack", "PGD(targeted=True, target=12)"], 1, "the network has classes 0 to 9"),
    "unknown norm": (["--steps", 1, "--norm", "L7"], 1, "no norm 'L7'"),
    "norm without eps": (["--steps", 1, "--norm", "L2"], 1, "give --eps"),
    "unknown optimizer": (["--steps", 1, "--optimizer", "adamw"], 1, "no optimizer 'adamw'; did you mean adam?"),
    "unknown augment": (["--steps", 1, "--augment", "flip"], 1, "no augment 'flip'"),
    "negative ramp": (["--steps", 1, "--eps-ramp", -1], 1, "eps_ramp must not be negative, got -1"),
    "no epochs": (["--steps", 1, "--epochs", 0], 1, "epochs must be at least 1, got 0"),
    "unknown method": (["--method", "trade"], 1, "no method 'trade'; did you mean TRADES"),
    "method without its attack": (["--method", "Free", "--steps", 2], 1, "Free needs a recipe whose attack is FGSM(), got PGD"),
    "distillation of an attack": (["--method", "Distillation", "--steps", 2], 1, "Distillation and attack=PGD"),
    "fast of an attack": (["--method", "fast", "--steps", 2], 2, "--method fast is an attack already"),
    "trades of none": (["--method", "TRADES", "--steps", 0], 1, "TRADES needs a recipe whose attack is PGD"),
    "steps that are no number": (["--steps", "1,x"], 2, "'1,x' is not a list of numbers such as 0,1,2,4,8, nor one such as 8"),
    "the same steps twice": (["--steps", "1,1"], 2, "'1,1' has a number twice"),
    "a cell of no sweep": (["--steps", 1, "--cell", 0], 2, "--cell 0 is a part of a sweep"),
    "no such cell": (["--steps", "0,1", "--cell", "k2-s0"], 1, "no training run 'k2-s0'"),
    "no such number": (["--steps", "0,1", "--cell", "2"], 1, "no training run 2; there are 2, from 0 (k0-s0) to 1 (k1-s0)"),
    "no seeds": (["--steps", 1, "--seeds", 0], 2, "--seeds must be at least 1, got 0"),
    "no batches": (["--steps", 1, "--checkpoint-every", 0], 2, "--checkpoint-every must be at least 1 batch"),
    "smoothing": (["--steps", 1, "--label-smoothing", 1], 1, "label_smoothing must be from 0 to below 1, got 1"),
    "average": (["--steps", 1, "--ema", 2], 1, "ema must be between 0 and 1, as .999, got 2"),
    "unknown tracker": (["--steps", 1, "--track", "wandbb"], 2, "'wandbb' is not one of 'tensorboard', 'wandb', 'mlflow'"),
    "compiled": (["--steps", 1, "--compile", "--device", "cpu"], 1, "--compile makes training slower on a CPU"),
    "zero rate": (["--steps", 1, "--lr", 0], 1, "lr must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_no_folder(case, tmp_path):
    args, code, words = BAD[case]
    done = run(*args, "--out", tmp_path / "t", "--quiet")
    assert done.exit_code == code
    assert words in done.output
    sentences = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1
    assert done.output.rstrip().endswith(sentences[0])
    assert list(tmp_path.iterdir()) == []
