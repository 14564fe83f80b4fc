"""Statistics of verdicts: McNemar against published numbers and exact coverage, accuracy per class, forecasts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, mannwhitneyu, multinomial, norm
from torch import Tensor

from vizrobust.intervals import McNemar, auc_interval, mcnemar, needed, per_class, wilson, worst_class


@given(st.integers(1, 100_000), st.floats(0, 1), st.sampled_from([0.9, 0.95]))
@settings(max_examples=50, deadline=None)
def test_a_proportion_s_interval_is_scipy_s_to_the_bit(n: int, share: float, confidence: float) -> None:
    expected = binomtest(hits := round(share * n), n).proportion_ci(confidence, method="wilson")
    assert wilson(hits, n, confidence) == (expected.low, expected.high)
    for hits, n in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"got {hits} of {n}$"):
            wilson(hits, n)


def verdicts(both: int, only_a: int, only_b: int, neither: int) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([both, only_a, only_b, neither])
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    return a.repeat_interleave(sizes), b.repeat_interleave(sizes)


def table(*counts: int, confidence: float = 0.95) -> McNemar:
    return mcnemar(*verdicts(*counts), confidence)


def test_the_interval_is_the_published_one() -> None:
    """Complete response before and after consolidation (Cavo et al. 2012), worked out by Fagerland et al. (2017, ch. 8)."""
    found = table(59, 6, 16, 80)
    assert (found.ci_low, found.ci_high) == pytest.approx((-0.1186, -0.0046), abs=6e-5)


@pytest.mark.parametrize("counts", [(3, 14, 9, 2), (20, 12, 2, 16), (40, 3, 1, 8), (12, 5, 0, 0)])
def test_the_interval_joins_two_wilson_intervals_by_the_correlation_of_the_verdicts(counts: tuple[int, ...]) -> None:
    a, b = verdicts(*counts)  # type: ignore[arg-type]
    n = len(a)
    (low_a, high_a), (low_b, high_b) = (wilson(int(side.sum()), n) for side in (a, b))
    of_a, of_b = float(a.double().mean()), float(b.double().mean())
    spread = n * np.sqrt(of_a * (1 - of_a) * of_b * (1 - of_b))
    phi = 0.0 if spread == 0 else float(np.corrcoef(a, b)[0, 1])
    if phi > 0:
        phi = max(0.0, phi - 1 / (2 * spread))  # Newcombe's correction of a positive correlation
    found = mcnemar(a, b)
    below = np.hypot(of_a - low_a - phi * (high_b - of_b), np.sqrt(1 - phi**2) * (high_b - of_b))
    above = np.hypot(high_a - of_a - phi * (of_b - low_b), np.sqrt(1 - phi**2) * (of_b - low_b))
    assert (found.ci_low, found.ci_high) == pytest.approx((of_a - of_b - below, of_a - of_b + above))


def test_the_test_is_the_binomial_of_the_disagreements() -> None:
    found = table(5, 9, 2, 7)
    assert (found.n, found.only_a, found.only_b) == (23, 9, 2)
    assert found.difference == pytest.approx(7 / 23)
    assert found.p == pytest.approx(2 * binom.cdf(2, 11, 0.5))


def test_without_disagreement_there_is_no_evidence_but_still_an_interval() -> None:
    for counts in ((12, 0, 0, 0), (0, 0, 0, 12), (7, 0, 0, 5)):
        found = table(*counts)
        assert (found.difference, found.p) == (0, 1)
        assert -0.5 < found.ci_low < 0 < found.ci_high < 0.5


@settings(max_examples=30)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_swapping_the_sides_swaps_the_interval(counts: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = counts
    one, other = table(*counts), table(both, only_b, only_a, neither)
    assert -1 <= one.ci_low <= one.difference <= one.ci_high <= 1
    assert (other.difference, other.ci_low, other.ci_high) == pytest.approx((-one.difference, -one.ci_high, -one.ci_low))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("shares", [(0.6, 0.15, 0.05, 0.2), (0.4, 0.1, 0.1, 0.4), (0.05, 0.55, 0.05, 0.35)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    """Exactly, over all tables of n images, with each table's probability."""
    n, covered, truth = 14, 0.0, shares[1] - shares[2]
    for both, only_a, only_b in itertools.product(range(n + 1), repeat=3):
        neither = n - both - only_a - only_b
        probability = multinomial.pmf([both, only_a, only_b, neither], n, shares) if neither >= 0 else 0
        if probability > 1e-5:
            found = table(both, only_a, only_b, neither)
            covered += probability * (found.ci_low <= truth <= found.ci_high)
    assert 0.93 < covered < 0.985


def test_a_gap_that_is_decided_needs_no_more_images() -> None:
    a, b = verdicts(500, 300, 10, 190)
    assert needed(a, b, margin=0.15) == 1000
    assert needed(a, b, margin=0.5) == 1000  # decided the other way: it is certainly below


def test_the_forecast_decides_as_often_as_it_promises() -> None:
    a, b = verdicts(60, 22, 5, 13)
    margin, shares = 0.1, (0.60, 0.22, 0.05, 0.13)
    n = needed(a, b, margin)
    assert n is not None
    assert n > 100
    drawn = np.random.default_rng(0).multinomial(n, shares, size=300)
    decided = np.mean([table(*counts, confidence=0.9).ci_low > margin for counts in drawn.tolist()])
    assert 0.74 < decided < 0.9


def test_the_nearer_the_margin_the_more_images_and_at_it_no_number_will_do() -> None:
    a, b = verdicts(60, 22, 2, 16)
    forecasts = [needed(a, b, margin) for margin in (0.12, 0.15, 0.18, 0.19)]
    assert forecasts == sorted(forecasts)  # type: ignore[type-var]
    assert needed(a, b, margin=0.2) is None


def test_a_gap_below_the_margin_is_decided_by_its_upper_bound() -> None:
    a, b = verdicts(90, 1, 1, 8)
    n = needed(a, b, margin=0.02)
    assert n is not None
    assert n > 100
    found = table(*(n * count // 100 for count in (90, 1, 1, 8)), confidence=0.9)
    assert found.ci_high < 0.02


def test_each_class_has_its_wilson_interval() -> None:
    labels = torch.tensor([0] * 20 + [1] * 5 + [3] * 8)
    robust = torch.arange(33) % 3 > 0
    rows = per_class(robust, labels, ["ant", "bee", "cat", "dog"])
    assert [row.name for row in rows] == ["ant", "bee", "cat", "dog"]
    for c, row in enumerate(rows):
        own = robust[labels == c]
        assert row.n == len(own)
        if len(own):
            assert row.accuracy == pytest.approx(float(own.float().mean()))
            assert (row.ci_low, row.ci_high) == pytest.approx(wilson(int(own.sum()), len(own)))
    assert rows[2].row() == {"class": "cat", "n": 0, "accuracy": None, "ci_low": None, "ci_high": None}


def test_classes_that_are_all_right_or_all_wrong_keep_their_end() -> None:
    right, wrong = per_class(torch.tensor([True] * 9 + [False] * 4), torch.tensor([0] * 9 + [1] * 4), ["a", "b"])
    assert (right.ci_high, wrong.ci_low) == (1, 0)
    assert right.ci_low is not None
    assert 0 < right.ci_low < 1


def test_the_worst_classs_interval_covers_the_true_minimum() -> None:
    """Ten equally hard classes: the smallest accuracy is far below the truth, its interval still holds it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    names = [str(c) for c in range(10)]
    tried = [worst_class(torch.rand(300, generator=generator) < 0.7, labels, names) for _ in range(60)]
    assert np.mean([worst.accuracy for worst in tried]) < 0.6  # type: ignore[arg-type]
    covered = [worst.ci_low <= 0.7 <= worst.ci_high for worst in tried]  # type: ignore[operator]
    assert np.mean(covered) >= 0.95


@pytest.mark.parametrize(("auc", "positive", "negative"), [(0.5, 30, 30), (0.8, 10, 90), (0.97, 20, 60)])
def test_the_interval_of_an_area_covers_the_truth_about_as_often_as_it_says(auc: float, positive: int, negative: int) -> None:
    rng, shift, tries = np.random.default_rng(0), math.sqrt(2) * norm.ppf(auc), 600
    a, b = rng.normal(shift, 1, (tries, positive)), rng.normal(0, 1, (tries, negative))
    areas = mannwhitneyu(a, b, axis=1, method="asymptotic").statistic / (positive * negative)
    bounds = [auc_interval(float(area), positive, negative) for area in areas]
    covered = float(np.mean([low <= auc <= high for low, high in bounds]))
    assert 0.92 <= covered <= 0.985
    assert all(0 <= low <= area <= high <= 1 for area, (low, high) in zip(areas, bounds, strict=True))


def test_the_worst_class_of_two() -> None:
    robust = torch.tensor([True] * 30 + [True] * 10 + [False] * 30)
    worst = worst_class(robust, torch.tensor([0] * 30 + [1] * 40), ["easy", "hard", "absent"])
    assert (worst.name, worst.n, worst.accuracy) == ("hard", 40, 0.25)
    z = 2.2414  # 1 - 0.05 / 2 two-sided: the class without images does not count
    middle, half = (10 + z**2 / 2) / (40 + z**2), z / (40 + z**2) * math.sqrt(10 * 30 / 40 + z**2 / 4)
    assert (worst.ci_low, worst.ci_high) == pytest.approx((middle - half, middle + half), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar(torch.ones(3), torch.ones(3)), "a must be .* bool"),
        (lambda: mcnemar(torch.ones(3).bool(), torch.ones(2).bool()), "same images"),
        (lambda: mcnemar(torch.ones(0).bool(), torch.ones(0).bool()), "no verdicts"),
        (lambda: per_class(torch.ones(3).bool(), torch.tensor([0, 1, 2]), ["a", "b"]), "label 2 has no name"),
        (lambda: per_class(torch.ones(3).bool(), torch.tensor([0, 1]), ["a", "b"]), "3 verdicts and 2 labels"),
    ],
)
def test_verdicts_that_do_not_fit_are_refused_in_a_sentence(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
