"""The training recipe: what it refuses, and what its fields make the trainer do."""

from dataclasses import replace

import pytest
import torch

from tests.test_training import ATTACK, RECIPE, trainer
from vizrobust.attacks import BIM, FGSM, PGD, Linf
from vizrobust.data import load
from vizrobust.training.recipe import first_network


@pytest.mark.parametrize(
    ("epochs", "ramp", "expected"),
    [
        (20, None, [0.2 / 5, 0.4 / 5, 0.6 / 5, 0.8 / 5, 0.2, 0.2]),
        (100, None, [1 / 30, 2 / 30, 3 / 30, 4 / 30, 5 / 30, 0.2]),
        (4, None, [0.2, 0.2]),
        (4, 1, [0.1, 0.2]),
        (4, 0, [0.2]),
    ],
)
def test_eps_rises_linearly_and_stays(epochs, ramp, expected):
    here = trainer(replace(RECIPE, attack=PGD(steps=2, ball=Linf(0.2)), epochs=epochs, eps_ramp=ramp))
    found = []
    for epoch in range(len(expected)):
        here.metrics = [{}] * epoch
        found.append(here.attack_now().ball.eps)
    assert found == pytest.approx(expected)
    assert found[0] > 0


def test_a_fixed_step_size_rises_with_eps():
    for attack in (PGD(steps=2, ball=Linf(0.2), alpha=0.05), BIM(steps=2, ball=Linf(0.2), alpha=0.05)):
        here = trainer(replace(RECIPE, attack=attack, epochs=4, eps_ramp=3))
        assert here.attack_now().alpha == pytest.approx(0.05 / 4)
    here = trainer(replace(RECIPE, attack=PGD(steps=2, ball=Linf(0.2)), epochs=4, eps_ramp=3))
    assert here.attack_now().alpha is None


def test_an_attack_without_eps_is_refused_at_once():
    here = trainer(replace(RECIPE, attack=PGD(steps=2), epochs=20))
    with pytest.raises(ValueError, match=r"PGD\(steps=2\) has no eps: write eps="):
        next(here.run_epoch())


def test_the_optimizer_is_the_one_named():
    adam = trainer(RECIPE).train_state.optimizer
    sgd = trainer(replace(RECIPE, optimizer="sgd", weight_decay=1e-4)).train_state.optimizer
    assert isinstance(adam, torch.optim.Adam)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["nesterov"]
    assert sgd.param_groups[0]["weight_decay"] == 1e-4


def test_the_rate_follows_one_cycle_over_all_epochs():
    here = trainer(replace(RECIPE, lr=0.01, epochs=4))
    rates = [here.train_state.schedule.get_last_lr()[0]]
    for _ in range(4):
        rates.extend(here.train_state.schedule.get_last_lr()[0] for _ in here.run_epoch())
    assert max(rates) == pytest.approx(0.01, rel=0.02)
    assert rates.index(max(rates)) == pytest.approx(0.3 * 12, abs=1)
    assert rates[-1] < rates[0] < 0.001


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": "adamw"}, r"no optimizer 'adamw'; did you mean adam"),
        ({"augment": "flip"}, r"no augment 'flip'"),
        ({"precision": "fp16"}, r"no precision 'fp16'"),
        ({"epochs": 0}, r"TrainingRecipe: epochs must be at least 1, got 0"),
        ({"batch_size": 0}, r"TrainingRecipe: batch_size must be at least 1, got 0"),
        ({"clean_weight": 1.5}, r"TrainingRecipe: clean_weight must be between 0 and 1, got 1.5"),
        ({"lr": 0.0}, r"TrainingRecipe: lr must be positive"),
        ({"eps_ramp": -1}, r"TrainingRecipe: eps_ramp must not be negative, got -1"),
        ({"epochs": 2.5}, r"TrainingRecipe: epochs must be a whole number, got 2.5"),
    ],
)
def test_a_bad_recipe_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(RECIPE, **changes)


def test_attack_steps_are_k():
    assert RECIPE.attack_steps == 0
    assert replace(RECIPE, attack=FGSM(Linf(0.1))).attack_steps == 1
    assert replace(RECIPE, attack=ATTACK).attack_steps == 2


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.body = nn.Linear(shape[0] * shape[1] * shape[2], 8).requires_grad_({body})
        self.head = nn.Linear(8, classes).requires_grad_({head})
        self.places = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))
"""


def test_weights_that_a_networks_own_code_has_frozen_do_not_learn(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(OWN.format(body=False, head=True))
    net = first_network(replace(RECIPE, arch=f"{path}:Net"), load("digits"), 0)
    assert [name for name, weight in net.named_parameters() if weight.requires_grad] == ["net.head.weight", "net.head.bias"]
    path.write_text(OWN.format(body=False, head=False))
    with pytest.raises(ValueError, match="has frozen all its weights"):
        first_network(replace(RECIPE, arch=f"{path}:Net"), load("digits"), 0)
