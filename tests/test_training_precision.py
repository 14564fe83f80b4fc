"""Training in bfloat16 is measured in float32: accuracies do not depend on the precision of the weight steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vizrobust.attacks import PGD, Linf
from vizrobust.commands.study import resolve
from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.requests.study import StudyRequest
from vizrobust.training import Trainer, TrainingRecipe, train
from vizrobust.training.training_runs import _measured

RECIPE = TrainingRecipe("small_cnn", "digits", PGD(steps=1, ball=Linf(eps=0.1)), epochs=1, precision="bf16")


def dtypes_of(net):
    """(training mode, dtype) of the logits of every forward pass from now on."""
    seen = set()
    net.register_forward_hook(lambda module, _inputs, output: seen.add((module.training, output.dtype)))
    return seen


def test_only_the_weight_steps_and_their_attack_are_bfloat16():
    trainer = Trainer(RECIPE, load("digits"), Compute("cpu", "bf16"))
    seen = dtypes_of(trainer.net)
    trainer._watch()
    assert seen == {(False, torch.float32)}
    for _ in trainer.run_epoch():
        break
    assert (True, torch.bfloat16) in seen


def test_the_accuracies_of_the_checkpoint_are_measured_in_float32():
    trainer = Trainer(RECIPE, load("digits"), Compute("cpu", "bf16"))
    seen = dtypes_of(trainer.net)
    _measured(trainer)
    assert seen == {(False, torch.float32)}


def test_the_recipe_that_is_recorded_names_the_precision(tmp_path: Path) -> None:
    """A study trains by the precision that its plan, and so its preregistration and each network's file, names."""
    assert resolve(StudyRequest(data="digits", precision="bf16"), load("digits")).training.precision == "bf16"
    with pytest.raises(ValueError, match="the recipe says precision 'bf16', compute 'fp32'; give both the same"):
        list(train(RECIPE, load("digits"), Compute("cpu"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
