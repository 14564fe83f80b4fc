"""`vizrobust attack` in all its modes, on trained networks: what it prints is what the library says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.digits import digits_net
from tests.test_cli import run
from vizrobust.attacks import PGD, Linf
from vizrobust.commands.attack import attack
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, head, load
from vizrobust.intervals import mcnemar
from vizrobust.models import CheckpointInfo, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.models.importing import import_file, task
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.robustness import RobustAccuracy, evaluate, merge_results
from vizrobust.robustness.suites import corrupted
from vizrobust.session import Session

EPS = 0.15
SEEN = 'Training(arch="small_cnn", data="digits", attack=PGD(steps=2, ball=Linf(eps=0.1)))'


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint file that reads digits, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    data = load("digits")
    about = CheckpointInfo(
        arch="small_cnn", input_shape=data.shape, classes=data.classes, mean=data.mean, std=data.std, data="digits",
        training=SEEN, attack_steps=2,
    )  # fmt: skip
    save_checkpoint("trained.safetensors", body_state(digits_net()), about)
    return "trained.safetensors"


def rows(*args: object) -> list[dict[str, Any]]:
    result = run("attack", *args, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def printed(*args: object) -> str:
    result = run("attack", *args, "--quiet")
    assert result.exit_code == 0, result.output
    return result.output


def test_a_row_is_what_the_library_says(trained: str, compute: Compute) -> None:
    (row,) = rows(trained, "--attack", "PGD(steps=5)", "--eps", EPS, "--images", 60)
    attack = PGD(steps=5, ball=Linf(EPS))
    expected = merge_results(attack, evaluate(digits_net(), attack, head(load("digits").test, 60), compute)).row()
    del expected["seconds"]
    assert {key: row[key] for key in expected} == expected
    assert 0 < row["accuracy"] < row["clean"]


def test_a_second_time_nothing_is_computed(trained: str) -> None:
    args = (trained, "--attack", "PGD(steps=5)", "--eps", EPS, "--images", 60)
    once = rows(*args)
    (folder,) = Path("runs").iterdir()
    before = (folder / "rows.jsonl").read_bytes()
    assert rows(*args) == once, "the seconds too: they are read"
    assert (folder / "rows.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_ensemble_says_who_broke_what(trained: str) -> None:
    args = (trained, "--attack", "standard", "--eps", 0.12, "--images", 8, "--batch-size", 8)
    lines = printed(*args).splitlines()
    header = next(line for line in lines if "APGD-CE" in line)
    assert header.split() == ["checkpoint", "clean", "errors", "APGD-CE", "APGD-T", "FAB-T", "Square", "robust"]
    counts = next(line for line in lines if trained in line and "AutoAttack" not in line).split()
    wrong, *broken, left = map(int, counts[1:])
    (row,) = rows(*args)
    assert broken == list(row["broken_by"].values())
    assert wrong + sum(broken) + left == 8
    assert left == round(row["accuracy"] * 8)
    assert 0 < left < 8 - wrong, "so that every member has something to do"
    for member in ("APGD(steps=100)", "PGD(steps=40)"):
        (alone,) = rows(trained, "--attack", member, *args[3:])
        assert row["accuracy"] <= alone["accuracy"]


def test_classes_add_up(trained: str) -> None:
    args = (trained, "--attack", "fgsm", "--eps", EPS, "--images", 80, "--per-class")
    whole, *classes = rows(*args)
    assert sum(row["n"] for row in classes) == 80
    assert sum(round(row["accuracy"] * row["n"]) for row in classes if row["n"]) == round(whole["accuracy"] * 80)
    assert "worst class: " in printed(*args)


class TestSmallestEps:
    def test_an_image_breaks_at_its_radius_and_not_well_below(self, trained: str) -> None:
        (row,) = rows(trained, "--minimal", "--attack", "PGD(steps=5)", "--images", 30, "--eps", 0.63)
        assert row["median"] == sorted(row["smallest_eps"])[14]
        radii = sorted({eps for eps in row["smallest_eps"] if eps})
        assert len(radii) > 5
        for eps in radii[::4]:
            (at,) = rows(trained, "--attack", "PGD(steps=5)", "--images", 30, "--eps", round(eps, 6))
            assert round(at["accuracy"] * 30) <= sum(one > eps for one in row["smallest_eps"]) + 1

    def test_the_smaller_of_several_attacks_and_the_picture(self, trained: str) -> None:
        args = (trained, "--minimal", "--attack", "fab(steps=10)", "--attack", "PGD(steps=5)", "--images", 20, "--eps", 0.6)
        assert "the smallest of them" in printed(*args, "--plot", "smallest.png")
        with Image.open("smallest.png") as picture:
            assert picture.width > 500

    def test_a_curve_over_eps_falls_and_is_drawn(self, trained: str) -> None:
        args = (trained, "--curve", "eps", "--attack", "PGD(steps=5)", "--images", 30, "--eps", 0.3)
        points = rows(*args, "--plot", "curve.svg")
        accuracies = [point["accuracy"] for point in points]
        assert [point["eps"] for point in points] == pytest.approx([0.02 * k for k in range(16)])
        assert accuracies == sorted(accuracies, reverse=True)
        assert accuracies[0] > 0.8 > 0.3 > accuracies[-1]
        assert "<svg" in Path("curve.svg").read_text()


def test_foreseen_beside_unforeseen(trained: str) -> None:
    attacks = [part for name in ("pgd", "elastic", "fog") for part in ("--attack", name)]
    args = (trained, "--suite", "unforeseen", *attacks, "--steps", 3, "--eps", 0.1, "--images", 20)
    *attacked, summary = rows(*args)
    assert [(row["kind"], row["foreseen"]) for row in attacked] == [("Linf", True), ("Elastic", False), ("Fog", False)]
    assert summary["foreseen"] == attacked[0]["accuracy"]
    assert summary["unforeseen"] == pytest.approx((attacked[1]["accuracy"] + attacked[2]["accuracy"]) / 2)
    assert summary["ratio"] == pytest.approx(summary["unforeseen"] / summary["foreseen"])
    assert summary["gap"] == pytest.approx(summary["foreseen"] - summary["unforeseen"])
    assert attacked[0]["published_protocol"]["accuracy"] >= attacked[0]["accuracy"]
    assert "no UAR without a calibration" in printed(*args, "--plot", "u.png")
    assert Path("u.png").is_file()


def test_corruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("mnist-k0", "--batch-size", 3, "--suite", "corruptions", "--images", 3)
    first_time = rows(*args)
    *cells, summary = first_time
    assert len(cells) == 1 + 15 * 5
    assert summary["mean"] == pytest.approx(sum(1 - row["accuracy"] for row in cells if row["severity"]) / 75)
    assert summary["mce"] is None, "one checkpoint has no baseline"
    assert rows(*args) == first_time, "read, not computed again"


BAD = {
    "two modes": (("--minimal", "--curve", "eps"), 2, "--minimal and --curve eps answer different questions"),
    "attacks on corruptions": (("--suite", "corruptions", "--attack", "pgd"), 2, "has no attack"),
    "nothing to draw": (("--plot", "x.png"), 2, "--plot needs something to draw"),
    "classes of a curve": (("--minimal", "--per-class"), 2, "--per-class and --show go with plain accuracies"),
    "no radius": (("--minimal", "--attack", "PGD(ball=L2())"), 1, "needs --eps, the largest radius to try"),
    "no calibration": (("--suite", "unforeseen", "--calibration", "nowhere"), 1, "no calibration in nowhere"),
    "steps of an ensemble": (
        ("--curve", "steps", "--attack", "AutoAttack(steps=2, queries=5)", "--plot", "x.png", "--eps", 0.9),
        1,
        "components of different steps",
    ),
    "images too small": (("--suite", "corruptions"), 1, "need images of at least 28 px"),
    "no such class": (("--attack", "PGD(targeted=True, target=10)", "--eps", 0.1), 1, "target class 10 does not exist"),
    "norms without a common axis": (
        ("--minimal", "--attack", "fab(steps=1)", "--attack", "deepfool", "--plot", "x.png"), 1, "have no common axis",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, trained: str) -> None:
    args, code, words = BAD[case]
    result = run("attack", trained, *args, "--images", 2, "--batch-size", 2, "--quiet")
    assert result.exit_code == code, result.output
    assert words in result.output.replace("\n", " "), result.output


@pytest.mark.parametrize(
    "mode", [(), ("--minimal", "--attack", "fab"), ("--curve", "eps"), ("--suite", "unforeseen", "--attack", "pgd")], ids=str
)
def test_a_table_says_that_its_network_predicts_one_class(mode: tuple[str, ...], trained: str) -> None:
    checkpoint = load_checkpoint(trained)
    state = {name: torch.zeros_like(value) for name, value in checkpoint.state.items()}
    state["linear2.bias"][7] = 1.0
    save_checkpoint("constant.safetensors", state, checkpoint.info)
    result = run("attack", "constant.safetensors", *mode, "--images", 30, "--steps", 2)
    assert result.exit_code == 0, result.output
    words = "constant.safetensors predicts class '7' for all 30 unchanged images"
    assert words in " ".join(result.stdout.split())
    assert "predicts class" in result.stderr
    assert "predicts class" not in run("attack", trained, *mode, "--images", 30, "--steps", 2).output


@pytest.mark.parametrize(
    "command",
    [
        ("masking", "--trained-with", "none", "--images", 12, "--effort", "AttackBudget(steps=4, queries=9)"),
        ("certify", "--method", "ibp", "--attack", "none"), ("explain", "--method", "Saliency"),
        ("intervene", "--layer", "linear1", "--units", "0"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_every_table_on_a_network_that_predicts_one_class_says_so(command: tuple[object, ...], trained: str) -> None:
    checkpoint = load_checkpoint(trained)
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    state["linear2.bias"][7] += 1000.0
    save_checkpoint("constant.safetensors", state, checkpoint.info)
    name, *options = command
    images = () if "--images" in options else ("--images", 12)
    result = run(name, "constant.safetensors", *options, *images)
    assert result.exit_code in (0, 3, 4), result.output
    assert "constant.safetensors predicts class '7' for all" in " ".join(result.stdout.split())


def test_corruptions_of_a_network_that_predicts_one_class_say_so() -> None:
    split = ArraySplit(torch.rand(6, 1, 28, 28), torch.tensor([3, 3, 3, 4, 4, 5]))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.arange(10.0) % 5)
    clean, blurred = corrupted(net, split, Compute("cpu"), ["contrast"], [5])
    assert (clean["constant_prediction"], "constant_prediction" in blurred) == (4, False)


def test_labels_that_mean_other_things(trained: str) -> None:
    """Class names in another order than the checkpoint's."""
    data = load("digits")
    x = (data.test.take(torch.arange(20)) * 255).round().to(torch.uint8)[:, 0].numpy()
    arrays = {
        f"{kind}_{split}": value
        for split in ("train", "test")
        for kind, value in (("x", x), ("y", data.test.labels[:20].numpy()))
    }
    turned = [*data.classes[1:], data.classes[0]]
    np.savez("turned.npz", **arrays, classes=np.array(turned))
    result = run("attack", trained, "--data", "npz:turned.npz", "--images", 4, "--eps", 0.1)
    assert result.exit_code == 0, result.output
    assert "10 classes of npz:turned.npz are those of" in result.stderr.replace("\n", " ")
    np.savez("turned.npz", **arrays, classes=np.array([*turned[:-1], "another"]))
    result = run("attack", trained, "--data", "npz:turned.npz", "--images", 4, "--eps", 0.1)
    assert result.exit_code == 1
    assert "the labels mean other things" in result.output.replace("\n", " "), result.output


def test_compare_tests_the_difference_on_the_same_images(trained: str, compute: Compute) -> None:
    """Against the same network untrained: McNemar on the verdicts of the two evaluations."""
    one = load_checkpoint(trained)
    save_checkpoint("other.safetensors", one.untrained("x").state, one.info)
    result = run("compare", trained, "other.safetensors", "--units", "0:2", "--seeds", 1, "--recipe", "plain(steps=2)",
                 "--attack", "PGD(steps=3)", "--eps", 0.05, "--images", 40, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    row = next(row for row in map(json.loads, result.stdout.splitlines()) if "accuracy_difference" in row)
    attack, images = PGD(steps=3, ball=Linf(0.05)), head(load("digits").test, 40)
    other, base = (
        merge_results(attack, evaluate(load_checkpoint(name).net(), attack, images, compute))
        for name in ("other.safetensors", trained)
    )
    assert row["accuracy_difference"] == asdict(mcnemar(other.robust, base.robust))
    assert row["accuracy_difference"]["difference"] < -0.3
    assert row["minus"] == trained


def test_two_networks_of_different_code_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs its own code, also where the other's would take its weights."""
    monkeypatch.chdir(tmp_path)
    data, files = load("digits"), []
    x, y = data.train.take(torch.arange(len(data.train))).flatten(1), data.train.labels
    weight = torch.stack([x[y == kind].mean(0) - x.mean(0) for kind in range(10)])
    for name, sign in (("right", ""), ("wrong", "-")):
        code = Path(f"{name}.py")
        code.write_text(
            "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"        self.net = nn.Linear(64, 10)\n\n    def forward(self, x):\n        return {sign}self.net(x.flatten(1))\n"
        )
        torch.save({"net.weight": weight, "net.bias": torch.zeros(10)}, f"{name}.pt")
        files.append(f"{name}.safetensors")
        import_file(f"{name}.pt", files[-1], f"{code}:Net", task("digits"), "none")
    how = ["--attack", "fgsm", "--eps", 1e-6, "--images", 40, "--json"]
    for order in (("right", "wrong"), ("wrong", "right")):
        codes = [word for name in order for word in ("--arch", f"{name}.py:Net")]
        result = run("attack", *files, *codes, *how)
        assert result.exit_code == 0, result.output
        assert "has changed" not in result.stderr
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        accuracies = {row["checkpoint"]: row["clean"] for row in rows}
        assert accuracies["right.safetensors"] > 0.5 > accuracies["wrong.safetensors"]
    Path("another.py").write_text(Path("wrong.py").read_text())
    result = run("attack", files[0], "--arch", "wrong.py:Net", "--arch", "another.py:Net", *how)
    assert result.exit_code == 1
    assert "needs the code right.py:Net" in result.stderr.replace("\n", " ")


def test_it_stops_when_the_interval_is_narrow_enough() -> None:
    def asked(images: int, **more: Any) -> tuple[list[str], RobustAccuracy]:
        session, said = Session(memory=True, device="cpu"), []
        request = AttackRequest(models=("mnist-fgsm",), attacks=("fgsm",), images=images, batch_size=20, **more)
        events = attack(request, session)
        while True:
            try:
                said.append(str(next(events)))
            except StopIteration as end:
                return [one for one in said if "±" in one], end.value.results[0]

    notes, found = asked(200, until_width=9)
    counts = [int(note.rpartition(" after ")[2].split()[0]) for note in notes]
    assert counts == list(range(20, len(found.indices) + 1, 20))
    assert [float(note.rpartition("± ")[2].split()[0]) <= 9 for note in notes] == [False] * (len(notes) - 1) + [True]
    whole = asked(len(found.indices))[1]
    assert torch.equal(whole.robust, found.robust)
    notes, found = asked(40, until_width=0.5)
    assert len(found.indices) == 40
    assert "give more" in notes[-1]
    with pytest.raises(ValueError, match="until_width goes with plain accuracies"):
        AttackRequest(models=("mnist-k0",), minimal=True, until_width=2)
