"""The verdict on masked gradients, from hand-made verdicts of attacks."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from vizrobust.intervals import mcnemar
from vizrobust.robustness.masking import (
    GAP,
    HIDDEN,
    HIDING,
    NOT_ROBUST,
    OVERFITTED,
    SOUND,
    UNDECIDED,
    hiding,
    overfitting,
    unbounded,
    verdict_of,
)
from vizrobust.robustness.masking.verdict import more_images

N = 1000


def first(k: int, n: int = N) -> Tensor:
    """The first k of n images survive."""
    return torch.arange(n) < k


def verdict(training: int = 760, gradients: int = 750, missed: int = 0, left: int = 0, n: int = N, classes: int = 10):
    """Of n images so many survive the training attack and PGD; another attack breaks `missed` of the latter."""
    survivors = first(gradients, n)
    other = survivors & ~first(missed, n)
    criteria = [overfitting(first(training, n), survivors, other), hiding(survivors, other), unbounded(first(left, n), classes)]
    return verdict_of(criteria, other)


def test_the_limits_are_those_of_the_issue() -> None:
    assert (GAP, HIDING) == (0.15, 0.02)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({}, SOUND),
        ({"training": 824, "gradients": 160}, OVERFITTED),  # the trial's K = 1
        ({"training": 795, "gradients": 732}, SOUND),  # and K = 8
        ({"training": 9, "gradients": 0}, NOT_ROBUST),  # and K = 0
        ({"missed": 100}, HIDDEN),
        ({"left": 300}, HIDDEN),
        ({"left": 300, "classes": 2}, SOUND),
        # The gap is what gradients hide, unless PGD shows it too.
        ({"training": 760, "gradients": 750, "missed": 700}, HIDDEN),
        ({"training": 900, "gradients": 300, "missed": 100}, OVERFITTED),
        ({"training": 900, "gradients": 744}, UNDECIDED),
        ({"missed": 20}, UNDECIDED),
        ({"left": 100}, UNDECIDED),
    ],
    ids=str,
)
def test_verdicts(numbers: dict[str, int], name: str) -> None:
    found = verdict(**numbers)
    assert found.name == name
    assert found.masked == (name in (OVERFITTED, HIDDEN))
    assert found.undecided == (name == UNDECIDED)
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
    criterion = overfitting(a, b, b)
    interval = mcnemar(a, b, confidence=0.9)
    assert (criterion.low, criterion.high) == (interval.ci_low, interval.ci_high)
    expected = OVERFITTED if interval.ci_low > 0.15 else SOUND if interval.ci_high < 0.15 else UNDECIDED
    assert verdict_of([criterion], b).name == expected
    # 150 of 1000 is at the limit itself, and no number of images would do.
    assert (criterion.images is None) == (fall == 150)


def test_what_an_attack_misses_itself_does_not_count_against_what_it_finds() -> None:
    gradients, other = torch.ones(N, dtype=torch.bool), first(900)
    gradients[950:] = False  # broken by PGD and not by the other
    other[950:] = True
    found = hiding(gradients, other)
    assert found.value == pytest.approx(50 / N)


@pytest.mark.parametrize("left", [0, 60, 80, 120, 200])
def test_an_unbounded_attack_is_held_against_guessing(left: int) -> None:
    found = unbounded(first(left), 10)
    wilson = binomtest(left, N).proportion_ci(0.9, method="wilson")
    assert (found.value, found.threshold) == (left / N, 0.1)
    assert (found.low, found.high) == (wilson.low, wilson.high)


def test_the_number_of_images_is_enough() -> None:
    undecided = verdict(missed=4, n=300, training=240, gradients=225)
    assert undecided.name == UNDECIDED
    assert undecided.images is not None
    assert str(undecided.images) in undecided.sentence
    times = undecided.images / 300
    more = verdict(
        missed=round(4 * times), n=undecided.images, training=round(240 * times), gradients=round(225 * times)
    )  # fmt: skip
    assert more.name == SOUND


def test_four_of_two_hundred_are_no_reason_to_give_up() -> None:
    found = verdict(missed=4, n=200, training=155, gradients=150)
    assert (found.name, found.images) == (UNDECIDED, None)
    assert "200 images cannot tell it from the limit; 800 images would halve the interval" in found.sentence
    gradients = first(150, 200)
    open_ = [hiding(gradients, gradients & ~first(missed, 200)) for missed in (3, 4)]
    assert [more_images([one]) for one in open_] == [open_[0].images, 800]
    assert more_images(open_) == max(open_[0].images, 800)
    assert more_images([hiding(gradients, gradients)]) is None
    assert more_images([*open_, hiding(gradients, first(0, 200))]) is None, "masked at once"


@pytest.mark.parametrize("share", [0.05, 0.08, 0.13, 0.3])
def test_the_number_of_images_tells_a_share_from_guessing(share: float) -> None:
    few = unbounded(first(round(40 * share), 40), 10)
    if few.side == "open":
        assert few.images is not None
        assert unbounded(first(round(few.images * few.value), few.images), 10).side != "open"
    assert unbounded(first(4, 40), 10).images is None


def test_near_zero_is_said_to_be_not_robust() -> None:
    criteria = [hiding(first(49), first(49))]
    assert verdict_of(criteria, first(49)).name == NOT_ROBUST
    assert verdict_of(criteria, first(50)).name == SOUND


def test_a_caveat_follows_the_sentence() -> None:
    assert verdict_of([], first(50), "its answers are random").sentence.endswith("little. Its answers are random.")
