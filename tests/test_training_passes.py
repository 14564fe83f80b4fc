"""Each epoch's row says how many gradient passes an image cost: what else grows with K beside K."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.test_training import ATTACK, RECIPE, passes, tiny, trainer
from vizrobust.attacks import FGSM, L2, PGD, Elastic, Linf, Noise
from vizrobust.training import MultiAttack

BOTH = (PGD(steps=2, ball=Linf(eps=0.05)), PGD(steps=3, ball=L2(eps=0.8)))
COSTS = {
    "standard": (RECIPE, 1),
    "FGSM": (replace(RECIPE, attack=FGSM(Linf(0.1))), 2),
    "PGD-1": (replace(RECIPE, attack=replace(ATTACK, steps=1)), 2),
    "PGD-5": (replace(RECIPE, attack=replace(ATTACK, steps=5)), 6),
    "clean loss too": (replace(RECIPE, attack=ATTACK, clean_weight=0.5), 2 + 2),
    "noise": (replace(RECIPE, attack=Noise(samples=1, ball=Linf(0.1))), 1),
    "unforeseen": (replace(RECIPE, attack=Elastic(eps=0.5, steps=3)), 4),
    "avg": (replace(RECIPE, attack=MultiAttack(BOTH, "avg")), 2 + 3 + 2),
    "max": (replace(RECIPE, attack=MultiAttack(BOTH, "max")), 2 + 3 + 1),
}


@pytest.mark.parametrize("case", COSTS)
def test_the_passes_of_an_image_in_an_epoch(case):
    recipe, cost = COSTS[case]
    here = trainer(recipe)
    for _ in range(2):  # the last of three batches is smaller, and eps differs between epochs
        list(here.run_epoch())
    assert [row["gradient_passes"] for row in here.metrics] == [cost, cost]


def test_random_costs_what_the_drawn_attacks_cost():
    here = trainer(replace(RECIPE, attack=MultiAttack(BOTH, "random")))
    seen = passes(here.net)
    here._watch = dict  # what is measured after the epoch is not training
    list(here.run_epoch())
    expected = sum(size for training, size, gradient in seen if training or gradient) / len(tiny().train)
    assert here.metrics[0]["gradient_passes"] == pytest.approx(expected)
    assert 3 < expected < 4
    assert not here.net._forward_pre_hooks
