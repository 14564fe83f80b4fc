"""Calibration: the assignment and ATA against plain versions, and a run that goes on where it stopped."""

import itertools
import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from click.testing import CliRunner

from tests.test_training import RECIPE, tiny
from vizrobust.attacks import JPEG, L1, L2, PGD, Elastic, Linf, parse_attack
from vizrobust.cli import main
from vizrobust.commands import experiments as command
from vizrobust.compute import Compute
from vizrobust.experiments.uar_calibration import Plan, Table, _Work, calibrate, eps_grid, equally_hard
from vizrobust.models import load_checkpoint
from vizrobust.results import Progress
from vizrobust.robustness.suites import calibration_for
from vizrobust.runs import read_rows
from vizrobust.spec import parse
from vizrobust.training import NAMES, Trainer

L2_TYPE = PGD(steps=1, ball=L2(eps=4.0))
SMALL = Plan(replace(RECIPE, epochs=1), (L2_TYPE,), anchor=PGD(steps=1), candidates=6, steps=2, images=9)


@pytest.fixture(autouse=True, scope="module")
def short():
    """What training measures for its own sake is kept short."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (import_module("vizrobust.training.loop"), "MONITOR_STEPS"),
            (import_module("vizrobust.training.training_runs"), "TESTED_STEPS"),
            (import_module("vizrobust.training.training_runs"), "TESTED_IMAGES"),
        ):
            patch.setattr(module, name, 1)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short):
    """The folder of a finished calibration, and its events."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    return folder, list(calibrate(SMALL, tiny(), Compute("cpu"), folder, "the command"))


def without_date(row):
    return {key: value for key, value in row.items() if key != "date"}


def test_the_sizes_double_up_to_the_largest():
    assert eps_grid(8.0, 4) == (1.0, 2.0, 4.0, 8.0)


def test_the_match_is_the_best_of_all_choices():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        anchors, candidates = torch.rand(3, generator=generator).tolist(), torch.rand(6, generator=generator).tolist()
        cost = {
            chosen: sum(abs(a - candidates[j]) for a, j in zip(anchors, chosen, strict=True))
            for chosen in itertools.permutations(range(6), 3)
        }
        assert equally_hard(anchors, candidates) == sorted(min(cost, key=cost.get))


def test_ata_is_the_best_network_at_each_eps():
    table = Table(PGD(), (0.1, 0.2, 0.4), ((0.9, 0.5, 0.1), (0.8, 0.7, 0.2), (0.3, 0.3, 0.3)), (), ())
    assert table.ata == (0.9, 0.7, 0.3)


def test_a_calibration_is_what_its_networks_do(finished):
    folder, events = finished
    stages, (anchor, result) = [e for e in events if isinstance(e, Progress)], [e for e in events if isinstance(e, dict)]
    assert [stage.done for stage in stages] == list(range(1, 2 * (6 + 36) + 1))
    assert {stage.total for stage in stages} == {len(stages)}
    assert json.loads((folder / "calibrations" / "L2.json").read_text()) == json.loads(json.dumps(result))

    assert result["name"] == "L2"
    assert parse_attack(result["attack"]) == PGD(steps=2, ball=L2())
    assert parse(result["plan"], {**NAMES, "Plan": Plan}) == SMALL
    assert (result["data"], result["arch"], result["images"], result["command"]) == ("tiny", "small_cnn", 9, "the command")
    candidates = result["candidates"]
    assert list(candidates["eps"]) == list(eps_grid(4.0, 6))
    assert result["eps"] == list(candidates["eps"])  # six of six
    assert result["ata"] == [max(column) for column in zip(*candidates["accuracy"], strict=True)]
    assert (anchor["name"], max(anchor["eps"])) == ("Linf", 0.4)  # four times tiny's 0.1
    assert anchor["anchors"] == result["anchors"] == anchor["candidates"]
    read = calibration_for("tiny", "L2", folder)
    assert (read.eps, read.ata) == (tuple(result["eps"]), tuple(result["ata"]))
    assert [attack.ball.eps for attack in read.attacks()] == result["eps"]

    assert {parse_attack(row["attack"]).steps for row in read_rows(folder)} == {2}

    # Every network is one trained against the attack at that eps, and its accuracy is what the attack leaves.
    images, labels = tiny().test.take(torch.arange(9)), tiny().test.labels[:9]
    nets = {load_checkpoint(str(path)).sha256: load_checkpoint(str(path)) for path in (folder / "networks").iterdir()}
    assert len(nets) == 12
    columns = (candidates[key] for key in ("eps", "trainings", "weights_sha256", "accuracy"))
    for eps, text, sha, row in zip(*columns, strict=True):
        recipe = parse(text, NAMES)
        assert recipe == replace(SMALL.recipe, attack=PGD(steps=1, ball=L2(eps)))
        assert nets[sha].info.training == text
        with torch.no_grad():
            clean = float((nets[sha].net()(images).argmax(1) == labels).double().mean())
        assert all(accuracy <= clean for accuracy in row)


def test_an_interrupted_calibration_goes_on_to_the_same_result(finished, tmp_path, monkeypatch):
    def results(events):
        return [without_date(event) for event in events if isinstance(event, dict)]

    def whole(folder):
        return results(calibrate(SMALL, tiny(), Compute("cpu"), folder, "the command"))

    expected = results(finished[1])
    for stop in (3, 20, 44, 50):  # while anchors train, are tested; while candidates train, are tested
        running = calibrate(SMALL, tiny(), Compute("cpu"), tmp_path / "parts")
        for event in running:
            if isinstance(event, Progress) and event.done >= stop:
                break
        running.close()
    rows = read_rows(tmp_path / "parts")
    assert 0 < len(rows) < 72
    assert whole(tmp_path / "parts") == expected
    again = read_rows(tmp_path / "parts")
    assert again[: len(rows)] == rows
    assert len({(row["weights_sha256"], row["attack"]) for row in again}) == len(again) == 72

    monkeypatch.setattr("vizrobust.experiments.uar_calibration.evaluate", None, raising=False)
    monkeypatch.setattr(Trainer, "run_epoch", None)
    assert whole(tmp_path / "parts") == expected  # nothing is computed again

    with pytest.raises(ValueError, match="holds another run: plan was"):
        list(calibrate(replace(SMALL, images=8), tiny(), Compute("cpu"), tmp_path / "parts"))


@pytest.mark.parametrize(("half_at", "expected"), [(3.0, 16.0), (1.0, 4.0), (0.2, 1.0)])
def test_the_largest_eps_is_twice_where_the_best_anchor_falls_to_chance(half_at, expected):
    asked = []

    class Work(_Work):
        def __init__(self):
            self.plan, self.data = SMALL, tiny()

        def _accuracy(self, recipe, attack, n):
            asked.append((recipe.attack.ball.eps, attack))
            return 0.9 if attack.eps < half_at else 0.5 if attack.eps < 2 * half_at else 0.25  # chance, of four classes

    table = Table(PGD(steps=1), (0.1, 0.2), ((0.9, 0.2), (0.8, 0.5)), (), ())
    assert Work().largest_eps(Elastic(steps=1), table) == expected
    assert {eps for eps, _ in asked} == {0.2}
    assert {attack.steps for _, attack in asked} == {2}


def test_an_attack_that_breaks_nothing_needs_its_largest_eps_named():
    class Work(_Work):
        def __init__(self):
            self.plan, self.data = SMALL, tiny()

        def _accuracy(self, recipe, attack, n):
            return 1.0

    with pytest.raises(ValueError, match="name the largest eps in it"):
        Work().largest_eps(JPEG(steps=1), Table(PGD(steps=1), (0.1,), ((0.9,),), (), ()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"candidates": 5}, "candidates must be at least 6, of which 6 are chosen, got 5"),
        ({"attacks": ()}, "give at least one attack"),
        ({"attacks": (L2(1.0),)}, r"Plan: L2\(eps=1.0\) is not an attack"),
        ({"attacks": (PGD(ball=L1(1.0)), PGD(steps=3, ball=L1(2.0)))}, "L1 is given twice"),
        ({"attacks": (PGD(ball=L1(0.0)),)}, "largest eps of .* must be above 0"),
        ({"attacks": (PGD(ball=Linf(0.1)),)}, "Linf is given twice"),
        ({"images": 0}, "images and steps must be at least 1, got 0"),
        ({"recipe": replace(RECIPE, attack=PGD())}, "recipe must be without an attack"),
    ],
)
def test_a_bad_plan_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **changes)


CALIBRATE = ["calibrate", "--data", "digits"]


def test_the_command_plans_runs_and_prints(tmp_path, monkeypatch):
    planned = []

    def fake(plan, data, compute, folder, argv, wait):
        planned.append(plan)
        yield Progress("epochs", 1, 2)
        yield {"name": "L2", "eps": [0.5, 1.0], "ata": [0.9, 0.4]}

    monkeypatch.setattr(command, "calibrated", fake)
    args = [*CALIBRATE, "--attack", "l2", "--attack", "Elastic(eps=2)", "--steps", "3", "--out", str(tmp_path / "c"), "--quiet"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert "0.5: 90.0 %" in done.output
    (axes,) = command.CalibrationReport(None, None, "", ({"name": "L2", "eps": [0.5, 1.0], "ata": [0.9, 0.4]},)).figure().axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([90, 40])
    assert [text.get_text() for text in axes.texts] == ["0.5", "1"]
    assert planned[0].attacks == (PGD(steps=3, ball=L2()), Elastic(eps=2.0, steps=3))
    assert planned[0].recipe.eps_ramp == 4
    assert planned[0].anchor == PGD(steps=3, ball=Linf())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "Missing option '--attack'"),
        (["--attack", "L3"], 1, "no attack 'L3'; did you mean"),
        (["--attack", "L2", "--attack", "L2(eps=3)"], 1, "L2 is given twice"),
        (["--attack", "L2", "--steps", "0"], 2, "--steps must be at least 1, got 0"),
        (["--attack", "L2", "--candidates", "3"], 1, "candidates must be at least 6"),
        (["--attack", "L2(eps=-3)"], 1, "eps must not be negative, got -3"),
        (["--attack", "L2", "--arch", "small_cn"], 1, "did you mean small_cnn"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(args, code, words, tmp_path):
    done = CliRunner().invoke(main, [*CALIBRATE, *args, "--out", str(tmp_path / "c"), "--quiet"])
    assert done.exit_code == code
    assert words in done.output
    assert list(tmp_path.iterdir()) == []
