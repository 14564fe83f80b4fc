"""The verdict on masked gradients, from hand-made verdicts of attacks."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from vizrobust.intervals import mcnemar
from vizrobust.robustness import masking
from vizrobust.robustness.masking.findings import more_images

N = 1000


def first(k: int, n: int = N) -> Tensor:
    """The first k of n images survive."""
    return torch.arange(n) < k


def verdict(training: int = 760, gradients: int = 750, missed: int = 0, left: int = 0, n: int = N, classes: int = 10):
    """Of n images so many survive the training attack and PGD; another attack breaks `missed` of the latter."""
    survivors = first(gradients, n)
    other = survivors & ~first(missed, n)
    criteria = [
        masking.overfitting(first(training, n), survivors, other),
        masking.hiding(survivors, other),
        masking.unbounded(first(left, n), classes),
    ]
    return masking.verdict_of(criteria, other)


def test_the_limits_are_those_of_the_issue() -> None:
    assert (masking.GAP, masking.HIDING) == (0.15, 0.02)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({}, masking.SOUND),
        ({"training": 824, "gradients": 160}, masking.OVERFITTED),  # the trial's K = 1
        ({"training": 795, "gradients": 732}, masking.SOUND),  # and K = 8
        ({"training": 9, "gradients": 0}, masking.NOT_ROBUST),  # and K = 0
        ({"missed": 100}, masking.HIDDEN),
        ({"left": 300}, masking.HIDDEN),
        ({"left": 300, "classes": 2}, masking.SOUND),
        # The gap is what gradients hide, unless PGD shows it too.
        ({"training": 760, "gradients": 750, "missed": 700}, masking.HIDDEN),
        ({"training": 900, "gradients": 300, "missed": 100}, masking.OVERFITTED),
        ({"training": 900, "gradients": 744}, masking.UNDECIDED),
        ({"missed": 20}, masking.UNDECIDED),
        ({"left": 100}, masking.UNDECIDED),
    ],
    ids=str,
)
def test_verdicts(numbers: dict[str, int], name: str) -> None:
    found = verdict(**numbers)
    assert found.name == name
    assert found.masked == (name in (masking.OVERFITTED, masking.HIDDEN))
    assert found.undecided == (name == masking.UNDECIDED)
    assert found.sentence.startswith(name)
    assert found.sentence.endswith(".")


def test_a_masked_network_says_all_that_masks_it() -> None:
    sentence = verdict(training=900, gradients=300, missed=100, left=500).sentence
    assert "70.0 points" in sentence
    assert "10.0 points" in sentence
    assert "50.0 points" in sentence


@pytest.mark.parametrize("fall", [130, 140, 150, 160, 170, 180, 190])
def test_masked_takes_the_lower_bound_and_sound_the_upper(fall: int) -> None:
    a, b = first(900), first(900 - fall)
    criterion = masking.overfitting(a, b, b)
    interval = mcnemar(a, b, confidence=0.9)
    assert (criterion.low, criterion.high) == (interval.ci_low, interval.ci_high)
    expected = masking.OVERFITTED if interval.ci_low > 0.15 else masking.SOUND if interval.ci_high < 0.15 else masking.UNDECIDED
    assert masking.verdict_of([criterion], b).name == expected
    # 150 of 1000 is at the limit itself, and no number of images would do.
    assert (criterion.images is None) == (fall == 150)


def test_what_an_attack_misses_itself_does_not_count_against_what_it_finds() -> None:
    gradients, other = torch.ones(N, dtype=torch.bool), first(900)
    gradients[950:] = False  # broken by PGD and not by the other
    other[950:] = True
    found = masking.hiding(gradients, other)
    assert found.value == pytest.approx(50 / N)


@pytest.mark.parametrize("left", [0, 60, 80, 120, 200])
def test_an_unbounded_attack_is_held_against_guessing(left: int) -> None:
    found = masking.unbounded(first(left), 10)
    wilson = binomtest(left, N).proportion_ci(0.9, method="wilson")
    assert (found.value, found.threshold) == (left / N, 0.1)
    assert (found.low, found.high) == (wilson.low, wilson.high)


def test_the_number_of_images_is_enough() -> None:
    undecided = verdict(missed=4, n=300, training=240, gradients=225)
    assert undecided.name == masking.UNDECIDED
    assert undecided.images is not None
    assert str(undecided.images) in undecided.sentence
    times = undecided.images / 300
    more = verdict(
        missed=round(4 * times), n=undecided.images, training=round(240 * times), gradients=round(225 * times)
    )  # fmt: skip
    assert more.name == masking.SOUND


def test_four_of_two_hundred_are_no_reason_to_give_up() -> None:
    found = verdict(missed=4, n=200, training=155, gradients=150)
    assert (found.name, found.images) == (masking.UNDECIDED, None)
    assert "200 images cannot tell it from the limit; 800 images would halve the interval" in found.sentence
    gradients = first(150, 200)
    open_ = [masking.hiding(gradients, gradients & ~first(missed, 200)) for missed in (3, 4)]
    assert [more_images([one]) for one in open_] == [open_[0].images, 800]
    assert more_images(open_) == max(open_[0].images, 800)
    assert more_images([masking.hiding(gradients, gradients)]) is None
    assert more_images([*open_, masking.hiding(gradients, first(0, 200))]) is None, "masked at once"


@pytest.mark.parametrize("share", [0.05, 0.08, 0.13, 0.3])
def test_the_number_of_images_tells_a_share_from_guessing(share: float) -> None:
    few = masking.unbounded(first(round(40 * share), 40), 10)
    if few.side == "open":
        assert few.images is not None
        assert masking.unbounded(first(round(few.images * few.value), few.images), 10).side != "open"
    assert masking.unbounded(first(4, 40), 10).images is None


def test_near_zero_is_said_to_be_not_robust() -> None:
    criteria = [masking.hiding(first(49), first(49))]
    assert masking.verdict_of(criteria, first(49)).name == masking.NOT_ROBUST
    assert masking.verdict_of(criteria, first(50)).name == masking.SOUND


def test_a_caveat_follows_the_sentence() -> None:
    assert masking.verdict_of([], first(50), "its answers are random").sentence.endswith("little. Its answers are random.")
