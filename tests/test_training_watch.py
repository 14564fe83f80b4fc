"""What is watched while training goes on: collapse and what follows, early stopping, and files that show it."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.test_training import ATTACK, RECIPE, run_all, same_weights, tiny, trainer
from vizrobust.attacks import Linf, Noise
from vizrobust.cli import main
from vizrobust.compute import Compute
from vizrobust.models import load_checkpoint
from vizrobust.report.style import save_figure
from vizrobust.report.training_report import curves_figure
from vizrobust.rng import Streams
from vizrobust.training import loop, train, training_runs
from vizrobust.training.loop import accuracies, collapse, overfits_attack

ROBUST = replace(RECIPE, attack=ATTACK, eps_ramp=0, epochs=6)


def rows(*pairs):
    return [{"epoch": i + 1, "val_clean": clean, "val_robust": robust} for i, (clean, robust) in enumerate(pairs)]


@pytest.fixture
def told(monkeypatch):
    """What the watch will say, epoch after epoch, whatever the network; the calls after the last repeat it."""

    def tell(*pairs):
        left = list(pairs)
        monkeypatch.setattr(
            loop, "accuracies",
            lambda *_: dict(zip(("val_clean", "val_robust"), left.pop(0) if len(left) > 1 else left[0], strict=True)),
        )  # fmt: skip

    monkeypatch.setattr(training_runs, "TESTED_STEPS", 1)
    return tell


def test_a_collapse_is_a_deep_fall_of_robust_accuracy_alone():
    assert collapse(rows((0.5, 0.3))) is None
    assert collapse(rows((0.5, 0.3), (0.6, 0.11))) is None
    assert collapse(rows((0.5, 0.3), (0.6, 0.1))) == {"epoch": 2, "best_epoch": 1, "before": 0.3, "after": 0.1}
    assert collapse(rows((0.5, 0.3), (0.6, 0.45), (0.6, 0.2))) == {
        "epoch": 3, "best_epoch": 2, "before": 0.45, "after": 0.2,
    }  # fmt: skip
    # Both fell: the rate was too high, the network has not fitted its attack.
    assert collapse(rows((0.6, 0.4), (0.3, 0.1))) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_a_collapse_names_the_best_epoch(pairs):
    found = collapse(rows(*pairs))
    if found is not None:
        assert found["before"] == max(robust for _, robust in pairs[:-1])
        assert found["before"] - found["after"] >= 0.2 - 1e-6


def test_warn_goes_on_and_says_so(told, tmp_path):
    told((0.5, 0.4), (0.6, 0.05), (0.6, 0.05))
    found, _ = run_all(replace(ROBUST, epochs=3), tmp_path / "r", Compute("cpu"))
    assert [("collapse" in row) for row in found] == [False, True, True]
    assert "retreat" not in found[1]


def test_standard_training_has_no_robust_accuracy_to_lose(told, tmp_path):
    told((0.5, 0.4), (0.6, 0.05))
    found, _ = run_all(replace(RECIPE, epochs=2), tmp_path / "r", Compute("cpu"))
    assert not any("collapse" in row for row in found)


def test_stop_ends_with_the_weights_before_the_collapse(told, tmp_path):
    told((0.5, 0.4), (0.6, 0.5), (0.6, 0.05))
    found, state = run_all(replace(ROBUST, on_collapse="stop"), tmp_path / "stop", Compute("cpu"))
    fell = "robust accuracy collapsed in epoch 3, from 50.0% to 5.0%"
    assert found[-1]["retreat"] == f"{fell}; training ends with the weights before it"
    kept = [json.loads(line) for line in (tmp_path / "stop" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in kept] == [1, 2]
    assert kept[-1]["ended"] == fell
    here = trainer(replace(ROBUST, on_collapse="stop"))
    for _ in range(2):
        list(here.run_epoch())
    assert same_weights(state, {key.removeprefix("net."): value for key, value in here.net.state_dict().items() if "net." in key})


def test_rollback_trains_the_epoch_again_otherwise_and_gives_up_after_three(told, tmp_path):
    recipe = replace(ROBUST, on_collapse="rollback", epochs=3)
    told((0.5, 0.4), (0.6, 0.05), (0.6, 0.5), (0.6, 0.5))
    found, _ = run_all(recipe, tmp_path / "once", Compute("cpu"))
    assert [(row["epoch"], row.get("retries")) for row in found] == [(1, None), (2, None), (2, 1), (3, None)]
    assert "the epoch is trained again in another order" in found[1]["retreat"]
    assert found[1]["loss"] != found[2]["loss"]

    told((0.5, 0.4), (0.6, 0.05))
    found, _ = run_all(recipe, tmp_path / "always", Compute("cpu"))
    assert [(row["epoch"], row.get("retries")) for row in found] == [(1, None), (2, None), (2, 1), (2, 2), (2, 3)]
    assert "training ends with the weights before it" in found[-1]["retreat"]
    assert load_checkpoint(str(tmp_path / "always")).info.attack_steps == 2


@pytest.mark.parametrize("stop", [(2, 3), (2, 2)])
def test_a_run_that_is_stopped_while_it_retries_goes_on_bit_for_bit(told, tmp_path, stop):
    recipe = replace(ROBUST, on_collapse="rollback", epochs=3)
    answers = ((0.5, 0.4), (0.6, 0.05), (0.6, 0.5), (0.6, 0.5))
    told(*answers)
    _, expected = run_all(recipe, tmp_path / "whole", Compute("cpu"))
    told(*answers)
    again = 0
    for item in train(recipe, tiny(), Compute("cpu"), tmp_path / "parts", checkpoint_every=1):
        again += isinstance(item, dict) and "retreat" in item
        if again and not isinstance(item, dict) and (item.epoch, item.batch) == stop:
            break
    _, found = run_all(recipe, tmp_path / "parts", Compute("cpu"))
    assert same_weights(found, expected)


def test_early_stopping_keeps_the_best_epoch(told, tmp_path):
    told((0.5, 0.3), (0.6, 0.5), (0.6, 0.4), (0.7, 0.5), (0.7, 0.2))
    found, state = run_all(replace(ROBUST, early_stopping=2), tmp_path / "r", Compute("cpu"))
    assert [row["epoch"] for row in found] == [1, 2, 3, 4]
    assert found[-1]["ended"] == "no better robust accuracy than 50.0% in epoch 2"
    here = trainer(replace(ROBUST, early_stopping=2))
    for _ in range(2):
        list(here.run_epoch())
    assert same_weights(state, {key.removeprefix("net."): value for key, value in here.net.state_dict().items() if "net." in key})


def test_the_watch_disturbs_nothing_and_counts_in_evaluation_mode():
    here = trainer(ROBUST)
    list(here.run_epoch())
    before = {key: value.clone() for key, value in here.net.state_dict().items()}
    flags = [module.training for module in here.net.modules()]
    random = torch.get_rng_state()
    modes = []
    handle = here.net.register_forward_hook(lambda module, _i, _o: modes.append(module.training))
    found = accuracies(here.net, ATTACK, here.data, here.compute, 10)
    handle.remove()
    assert not any(modes)
    assert all(torch.equal(before[key], value) for key, value in here.net.state_dict().items())
    assert [module.training for module in here.net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert accuracies(here.net, ATTACK, here.data, here.compute, 10) == found


def test_a_person_is_told_of_a_collapse_at_once(told, tmp_path):
    told((0.5, 0.4), (0.6, 0.05))
    args = ["train", "--data", "digits", "--arch", "small_cnn", "--steps", "1", "--epochs", "2", "--quiet"]
    done = CliRunner().invoke(main, [*args, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    assert "warning: robust accuracy collapsed in epoch 2, from 40.0 % in epoch 1 to 5.0 %" in done.stderr


def test_what_the_training_attack_leaves_is_watched_too():
    """A plain count on the same images, and the sign of a network that only fools its attack."""
    here = trainer(ROBUST)
    list(here.run_epoch())
    row = accuracies(here.net, ATTACK, here.data, here.compute, 10)
    x, y = here.data.val.take(torch.arange(10)), here.data.val.labels
    found = ATTACK(here.net, x, y, streams=Streams(0, range(10)))
    assert row["val_attack"] == pytest.approx(float(found.correct.all(0).float().mean()), abs=0.11)
    assert "val_attack" not in accuracies(here.net, Noise(samples=1, ball=Linf(0.1)), here.data, here.compute, 10)
    assert not overfits_attack({"val_attack": 0.5, "val_robust": 0.21})
    assert overfits_attack({"val_attack": 0.5, "val_robust": 0.2})


def test_a_network_that_fools_its_attack_from_the_first_epoch_is_told_once(told, tmp_path, monkeypatch):
    told((0.9, 0.0))
    monkeypatch.setattr(loop, "accuracies", lambda *_: {"val_clean": 0.9, "val_robust": 0.0, "val_attack": 0.8})
    args = ["train", "--data", "digits", "--arch", "small_cnn", "--steps", "1", "--epochs", "3", "--quiet"]
    done = CliRunner().invoke(main, [*args, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("the network has learnt to fool its attack") == 1
    assert "leaves 80.0 % of the watched images and 10 steps leave 0.0 %" in done.stderr


def test_the_curves_are_a_picture_and_need_an_epoch(tmp_path):
    some = [{**row, "loss": 1.0} for row in rows((0.5, 0.4), (0.6, 0.05))]
    some[1]["collapse"] = {}
    assert save_figure(curves_figure(some), tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no epoch"):
        curves_figure([])
