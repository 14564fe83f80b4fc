"""The checkpoints that come with the package: small, described truly, and showing what the lecture shows."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from vizrobust.attacks import FGSM, PGD, Linf
from vizrobust.clarity.judges import BUILTIN
from vizrobust.data import head, load
from vizrobust.intervals import share
from vizrobust.models import SWEEP, builtin_names, load_checkpoint
from vizrobust.report.training_report import model_card
from vizrobust.robustness import evaluate, merge_results
from vizrobust.spec import parse
from vizrobust.training import NAMES, TrainingRecipe

FOLDER = files("vizrobust.models").joinpath("builtin")
DIGITS = tuple(f"mnist-k{steps}" for steps in (0, 1, 2, 4, 8, 16))
TRAINED = (*DIGITS, "mnist-fgsm")
PHOTOGRAPHS = (*SWEEP, "imagenette-fgsm")


@pytest.mark.parametrize(("sweep", "steps"), [(DIGITS, [0, 1, 2, 4, 8, 16]), (SWEEP, [0, 1, 2, 4, 8])])
def test_the_sweeps_are_there_in_the_order_of_their_steps(sweep, steps):
    assert [name for name in builtin_names() if name in sweep] == list(sweep)
    assert [load_checkpoint(name).info.attack_steps for name in sweep] == steps


def test_the_arms_and_the_judges_are_there():
    assert {"mnist-fgsm", "imagenette-fgsm", *BUILTIN["mnist5k"]} <= set(builtin_names())


@pytest.mark.parametrize("name", [*TRAINED, *PHOTOGRAPHS])
def test_a_file_is_small_and_says_how_it_was_made(name):
    digits = name in TRAINED
    assert len(FOLDER.joinpath(f"{name}.safetensors").read_bytes()) < (350_000 if digits else 1_000_000)
    about = load_checkpoint(name).info
    recipe = parse(about.training, NAMES)
    assert isinstance(recipe, TrainingRecipe)
    assert recipe.attack_steps == about.attack_steps
    expected = ("small_cnn", "mnist5k") if digits else ("resnet_small", "imagenette64")
    assert (recipe.arch, recipe.data) == (about.arch, about.data) == expected


def test_all_of_them_together_are_small():
    assert sum(len(FOLDER.joinpath(f"{name}.safetensors").read_bytes()) for name in builtin_names()) < 16 * 2**20


@pytest.mark.parametrize("name", builtin_names())
def test_a_card_is_that_of_the_shipped_file(name):
    card = FOLDER.joinpath(f"{name}.md").read_text(encoding="utf-8")
    written, _, command = card.partition("\nMade by")
    assert model_card(load_checkpoint(name)).rstrip() == written.rstrip()
    assert re.search(r"^    vizrobust train .*--data (mnist|imagenette)\S+ ", command, re.MULTILINE)


def test_one_step_is_stopped_by_all_and_fifty_only_by_the_many_steps():
    """The lecture's Figure 27.3: against FGSM a few steps look as good as many, against PGD-50 they do not."""
    metrics = {load_checkpoint(name).info.attack_steps: load_checkpoint(name).info.metrics for name in DIGITS}
    assert metrics[0]["fgsm"] < 0.1
    for steps in (1, 2):
        assert metrics[steps]["fgsm"] > 0.8
        assert metrics[steps]["fgsm"] - metrics[steps]["robust"] > 0.5
    for steps in (8, 16):
        assert metrics[steps]["robust"] > 0.7
        assert metrics[steps]["fgsm"] - metrics[steps]["robust"] < 0.15


def test_on_photographs_one_step_is_enough():
    """At 4/255 nothing is masked: the step is from no attack to any, and more steps add nothing that shows."""
    metrics = {load_checkpoint(name).info.attack_steps: load_checkpoint(name).info.metrics for name in SWEEP}
    assert metrics[0]["clean"] > 0.75
    assert metrics[0]["robust"] < 0.1
    robust = [metrics[steps]["robust"] for steps in (1, 2, 4, 8)]
    assert min(robust) > 0.5
    assert max(robust) - min(robust) < 0.03


@pytest.mark.parametrize("name", BUILTIN["mnist5k"])
def test_the_judges_have_not_seen_the_images_and_are_other_networks(name):
    judge = load_checkpoint(name).info
    assert judge.data == "mnist55k"
    assert judge.arch != load_checkpoint(DIGITS[0]).info.arch
    assert judge.metrics["clean"] > 0.98
    assert (judge.metrics["robust"] > 0.8) == (name == "mnist-judge-robust")


@pytest.mark.parametrize("name", ["mnist-k1", "mnist-k8"])
def test_cards_are_true_of_clean_images_and_one_step(name, compute):
    measured(name, FGSM(ball=Linf(eps=0.3)), "fgsm", compute)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_cards_are_true_of_fifty_steps(name, compute):
    measured(name, PGD(steps=50, ball=Linf(eps=0.3)), "robust", compute)


def measured(name, attack, metric, compute):
    checkpoint = load_checkpoint(name)
    images = head(load("mnist5k").test, 1000)
    found = merge_results(attack, list(evaluate(checkpoint.net(), attack, images, compute)))
    # Kernels of another machine or thread count may flip an image or two.
    assert found.clean == pytest.approx(checkpoint.info.metrics["clean"], abs=0.003)
    assert share(found.robust) == pytest.approx(checkpoint.info.metrics[metric], abs=0.006)
