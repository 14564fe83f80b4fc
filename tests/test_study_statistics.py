"""The statistics of the study: contrasts against scipy, coverage by simulation, verdicts by hand, sentences as read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vizrobust.compute import Compute
from vizrobust.data import load
from vizrobust.study.contrasts import (
    accuracy_slope,
    adversarial_against_standard,
    contrasts,
    from_table,
    interval,
    page_trend,
    rank_correlation,
    step_slope,
)
from vizrobust.study.preregistration import sha256
from vizrobust.study.report import StudyReport
from vizrobust.study.report_checks import Check
from vizrobust.study.summary import verdict
from vizrobust.study.verdicts import MetricSeries, contrast_results, decide, dose_response_shape, holm_adjusted
from vizrobust.study.verify import difference, verify

DOSES = (0, 1, 2, 4, 8, 16)
GROWING, LEVEL, HILL = [0, 1, 1.3, 1.6, 1.9, 2.2], [0, 1, 1, 1, 1, 1], [0, 1, 1.5, 1.6, 1.3, 0.9]


def noisy(means: list[float], seeds: int, noise: float, seed: int = 0) -> np.ndarray:
    """(seeds, doses)."""
    return np.array(means) + np.random.default_rng(seed).normal(0, noise, (seeds, len(means)))


# Contrasts


def test_h1_is_the_paired_t_interval_of_scipy() -> None:
    table = noisy(GROWING, 5, 0.5)
    found = adversarial_against_standard(from_table(table, DOSES))
    oracle = stats.ttest_rel(table[:, 1:].mean(1), table[:, 0])
    low, high = oracle.confidence_interval(0.95)
    assert found.per_seed == pytest.approx(table[:, 1:].mean(1) - table[:, 0])
    assert (found.ci_low, found.ci_high, found.p) == pytest.approx((low, high, oracle.pvalue))
    assert found.span == 1


def test_h2_is_scipys_regression_on_doublings_without_k_0() -> None:
    table = noisy(GROWING, 4, 0.5)
    found = step_slope(from_table(table, DOSES))
    assert found.per_seed == pytest.approx([stats.linregress(np.arange(5), row[1:]).slope for row in table])
    table[:, 0] += 100
    assert step_slope(from_table(table, DOSES)).per_seed == pytest.approx(found.per_seed)
    assert found.span == 4


def test_h3_is_scipys_regression_on_accuracy() -> None:
    table, accuracy = noisy(GROWING, 4, 0.5), noisy([0.0, 0.2, 0.3, 0.6, 0.7, 0.75], 4, 0.02, seed=1)
    found = accuracy_slope(from_table(table, DOSES), from_table(accuracy, DOSES))
    oracle = [stats.linregress(x[1:], y[1:]).slope for x, y in zip(accuracy, table, strict=True)]
    assert found.per_seed == pytest.approx(oracle)
    assert found.span == pytest.approx(np.ptp(accuracy[:, 1:], axis=1).mean())
    ranks = [stats.spearmanr(x[1:], y[1:]).statistic for x, y in zip(accuracy, table, strict=True)]
    assert rank_correlation(from_table(table, DOSES), from_table(accuracy, DOSES)) == pytest.approx(np.mean(ranks))


def test_a_seed_that_lacks_a_cell_is_left_out_of_what_needs_it() -> None:
    table = noisy(GROWING, 4, 0.5)
    table[1, 0], table[2, 3] = np.nan, np.nan
    values = from_table(table, DOSES, seeds=(7, 8, 9, 10))
    h1, h2 = contrasts(values)
    assert (h1.seeds, h1.left_out) == ((7, 10), (8, 9))
    assert (h2.seeds, h2.left_out) == ((7, 8, 10), (9,))
    assert h1.ci_low is None  # two seeds are too few
    assert h2.ci_low is not None
    accuracy = {key: 0.1 * key[0] for key in values if key != (2, 7)} | {(k, 8): 0.5 for k in DOSES}
    h3 = accuracy_slope(values, accuracy)
    assert (h3.seeds, h3.left_out) == ((10,), (7, 8, 9))


def test_seeds_that_only_k_0_has_are_compared_without_pairs_by_scipys_test() -> None:
    rng = np.random.default_rng(5)
    attacked, standard = rng.normal(1.0, 0.1, (4, 2)), rng.normal(0.0, 0.4, 7)
    values = {(k, seed): float(attacked[seed, i]) for i, k in enumerate((1, 8)) for seed in range(4)}
    values |= {(0, seed): float(one) for seed, one in enumerate(standard)}
    h1, h2, h6 = contrasts(values)
    welch = stats.ttest_ind(attacked.mean(axis=1), standard, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert (h6.name, h6.seeds, h6.left_out) == ("H6", tuple(range(7)), ())
    assert (h6.estimate, h6.ci_low, h6.ci_high) == pytest.approx((attacked.mean() - standard.mean(), low, high))
    assert h6.p == pytest.approx(welch.pvalue)
    # The pairs are those of the four seeds that have all K, and nothing of them is missing.
    assert h1.seeds == h2.seeds == (0, 1, 2, 3)
    assert h1.left_out == h2.left_out == ()
    values[8, 2] = None
    h1, _, h6 = contrasts(values)
    assert (h1.left_out, h6.left_out, len(h6.seeds)) == ((2,), (2,), 7)
    assert [one.name for one in contrasts({cell: one for cell, one in values.items() if cell[1] < 4})] == ["H1", "H2"]


def test_with_two_seeds_of_each_k_the_many_of_k_0_tell_nothing_but_a_difference() -> None:
    values = {(0, 0): 0.0, (1, 0): 1.0, (0, 1): 0.2, (1, 1): 1.1, (0, 2): 0.1}
    found = contrasts(values)[-1]
    assert (found.name, found.ci_low, found.p) == ("H6", None, None)
    assert found.estimate == pytest.approx(0.95)
    same = contrasts({(k, seed): 0.5 for k, n in ((0, 5), (1, 3)) for seed in range(n)})[-1]
    assert same.constant
    assert (same.ci_low, same.ci_high, same.p) == (0, 0, None)


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_there_is_no_interval(seeds: int) -> None:
    for found in contrasts(from_table(noisy(GROWING, seeds, 0.1), DOSES)):
        assert found.estimate == pytest.approx(np.mean(found.per_seed))
        assert (found.ci_low, found.ci_high, found.p) == (None, None, None)
        assert decide(found, 0.1)[0] == "descriptive"


def test_contrasts_that_the_doses_do_not_allow_are_left_away() -> None:
    assert [one.name for one in contrasts(from_table([[0.1, 0.2]] * 3, (0, 4)))] == ["H1"]
    assert [one.name for one in contrasts(from_table([[0.1, 0.2]] * 3, (1, 4)))] == ["H2"]
    assert contrasts(from_table([[0.1]] * 3, (0,))) == ()


def test_a_constant_contrast_has_no_test() -> None:
    """Slopes of 1e-17 are rounding errors: their p value would be another one on another machine."""
    found = interval("H1", {0: 0.5, 1: 0.5, 2: 0.5}, [], 1.0)
    assert (found.ci_low, found.ci_high, found.p) == (0.5, 0.5, None)
    level = noisy([0.1, *[0.3] * 5], 5, 0.0)
    for wobble in (0.0, 1e-17, 1e-12, 1e-7):
        h2 = step_slope(from_table(level + wobble * np.arange(30).reshape(5, 6) % 7, DOSES))
        assert (h2.constant, h2.p, h2.sign) == (True, None, 0)
        assert decide(h2, 0.01) == ("not supported", "constant: the same in every training run, so there is no test")
        assert decide(h2, None)[0] == "inconclusive"
    assert decide(found, 0.2)[0] == "inconclusive"  # the same in all runs, but no test says so
    assert not step_slope(from_table(noisy([0.1, *[0.3] * 5], 5, 1e-4), DOSES)).constant


def test_page_is_scipys_test_over_adversarial_doses() -> None:
    table = noisy(GROWING, 4, 0.5)
    assert page_trend(from_table(table, DOSES)) == pytest.approx(stats.page_trend_test(table[:, 1:]).pvalue)
    assert page_trend(from_table(table[:1], DOSES)) is None


def simulated(means: list[float], seeds: int, repetitions: int, units: int = 10) -> np.ndarray:
    """(repetitions, seeds, doses) of means over units of deviation 1, with run-to-run noise of half of that."""
    generator = np.random.default_rng(27)
    unit = generator.normal(0, 1, (repetitions, 1, 1, units))
    seed = generator.normal(0, 0.5, (repetitions, seeds, 1, 1))
    run = generator.normal(0, 0.5, (repetitions, seeds, len(means), 1))
    rest = generator.normal(0, 0.5, (repetitions, seeds, len(means), units))
    return np.array(means) + (unit + seed + run + rest).mean(3)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("contrast", "truth"), [(adversarial_against_standard, 1.6), (step_slope, 0.3)])
def test_intervals_cover_the_truth_95_percent_of_the_time(contrast: Any, truth: float, seeds: int) -> None:
    found = [contrast(from_table(table, DOSES)) for table in simulated(GROWING, seeds, 1500)]
    covered = np.mean([one.ci_low <= truth <= one.ci_high for one in found])
    # The standard error of 1,500 repetitions is .6 points.
    assert 0.92 <= covered <= 0.98


def test_one_seed_with_resampled_units_would_be_wrong_a_third_of_the_time() -> None:
    """Why there is no interval over units: a bootstrap of units does not know that another run would differ."""
    generator = np.random.default_rng(3)
    wrong = []
    for _ in range(400):
        run = generator.normal(0, 0.5, (5, 1)) + generator.normal(0, 1, (5, 10))
        resampled = run[:, generator.integers(10, size=(200, 10))].mean(2)
        slopes = np.array([-2, -1, 0, 1, 2]) @ resampled / 10
        low, high = np.quantile(slopes, [0.025, 0.975])
        wrong.append(not low <= 0 <= high)
    assert np.mean(wrong) > 0.25


# Shapes


@pytest.mark.parametrize(
    ("means", "noise", "expected"),
    [
        (GROWING, 0.05, "rising"),
        ([0, 1, 1.5, 1.5, 1.5, 1.5], 0.05, "rising"),
        (GROWING[::-1], 0.05, "falling"),
        (HILL, 0.05, "inverted U"),
        ([9, 1, 0.2, 1, 0.2, 1], 0.05, "irregular"),
        ([9, 1, 0.5, 0.4, 0.9, 1.2], 0.05, "irregular"),
        (LEVEL, 0.02, "plateau"),
        (LEVEL, 0.5, "no clear shape"),
    ],
)
def test_shapes(means: list[float], noise: float, expected: str) -> None:
    assert dose_response_shape(from_table(noisy(means, 5, noise, seed=2), DOSES), smallest_effect=0.2) == expected


def test_the_steps_are_those_of_tukeys_test() -> None:
    """Without differences between seeds the two-way layout is scipy's one-way test with fewer degrees of freedom."""
    table = noisy([0.0, 0.0, 0.75], 8, 0.35, seed=5)
    table -= table.mean(1, keepdims=True)
    alike = from_table(table, (1, 2, 4))
    p = stats.tukey_hsd(*table.T).pvalue
    assert (p[0, 2] < 0.01) == (dose_response_shape(alike) == "rising")
    flat = from_table(noisy([0.0, 0.0, 0.0], 8, 0.35, seed=7), (1, 2, 4))
    assert dose_response_shape(flat) == "no clear shape"


def test_seeds_that_differ_as_a_whole_do_not_hide_a_shape() -> None:
    table = noisy(GROWING, 5, 0.05) + 10 * np.arange(5)[:, None]
    assert dose_response_shape(from_table(table, DOSES)) == "rising"


def test_shapes_are_found_by_chance_one_time_in_twenty() -> None:
    found = [dose_response_shape(from_table(table, DOSES)) for table in simulated([0.0] * 6, 5, 400)]
    assert np.mean([one != "no clear shape" for one in found]) < 0.05 + 3 * 0.011


def test_fewer_than_three_seeds_have_no_shape() -> None:
    assert dose_response_shape(from_table(noisy(GROWING, 2, 0.01), DOSES), smallest_effect=0.1) is None


# Verdicts


@pytest.mark.parametrize(
    ("per_seed", "smallest_effect", "p", "agree", "expected"),
    [
        ((1.0, 1.1, 1.2), 0.2, None, True, ("supported", "")),
        ((1.0, 1.1, 1.2), 0.2, 0.06, True, ("inconclusive", "not after Holm's correction")),
        ((1.0, 1.1, 1.2), 0.2, None, False, ("inconclusive", "the judges disagree in sign")),
        ((0.10, 0.11, 0.12), 0.2, None, True, ("not supported", "smaller than the smallest effect of interest")),
        ((-0.01, 0.01, 0.02), 0.2, None, True, ("not supported", "smaller than the smallest effect of interest")),
        ((-1.0, -1.1, -1.2), 0.2, None, True, ("not supported", "it goes the other way")),
        ((-1.0, -1.1, -1.2), None, None, True, ("not supported", "it goes the other way")),
        ((-0.01, 0.01, 0.02), None, None, True, ("inconclusive", "the interval holds 0 and effects of interest")),
        ((-1.0, 1.0, 2.0), 0.2, None, True, ("inconclusive", "the interval holds 0 and effects of interest")),
        ((1.0, 1.1), 0.2, None, True, ("descriptive", "these checkpoints only")),
    ],
)
def test_the_rule(
    per_seed: tuple[float, ...], smallest_effect: float | None, p: float | None, agree: bool, expected: Any
) -> None:
    assert decide(interval("H1", dict(enumerate(per_seed)), [], 1.0), smallest_effect, p, agree) == expected


def test_holm_against_the_definition() -> None:
    p = [0.011, 0.02, 0.04, 0.013]
    plainly = {}
    for rank, index in enumerate(np.argsort(p)):
        plainly[index] = max([*plainly.values(), min(1, (4 - rank) * p[index])])
    assert holm_adjusted(p) == pytest.approx([plainly[i] for i in range(4)])
    assert holm_adjusted([0.4, 0.9]) == [0.8, 0.9]
    assert holm_adjusted([None, 0.04]) == [None, 0.04]


def studied(
    effect: Any, seeds: int = 5, judges: tuple[str, ...] = ("a", "b", "c"), noise: float = 0.1, **fields: Any
) -> list[MetricSeries]:
    """Both primary metrics under both recipes; the references are 2 apart, so the smallest effect is .2."""
    return [
        MetricSeries(
            metric, "primary", 1, recipe, judge, "logits",
            from_table(noisy(effect(metric, recipe), seeds, noise, seed=100 * m + 10 * r + j), DOSES), 1.5, -0.5, **fields,
        )
        for m, metric in enumerate(("transfer", "forced_choice"))
        for r, recipe in enumerate(("plain", "fourier"))
        for j, judge in enumerate(judges)
    ]  # fmt: skip


ACCURACY = from_table(noisy([0.0, 0.2, 0.3, 0.6, 0.7, 0.75], 5, 0.02, seed=1), DOSES)


def test_the_smallest_effect_is_a_tenth_of_the_references_over_the_range() -> None:
    found = {(t.series.judge, t.contrast.name): t for t in contrast_results(studied(lambda *_: GROWING), ACCURACY)}
    assert found["a", "H1"].smallest_effect == pytest.approx(0.2)
    assert found["a", "H2"].smallest_effect == pytest.approx(0.2 / 4)
    span = np.mean([np.ptp([ACCURACY[k, seed] for k in DOSES[1:]]) for seed in range(5)])  # type: ignore[arg-type]
    assert found[None, "H3"].smallest_effect == pytest.approx(0.2 / span)


def test_references_in_the_wrong_order_set_no_smallest_effect() -> None:
    one = MetricSeries("m", "primary", 1, "plain", None, "logits", {}, natural=0.1, random=0.3)
    assert one.smallest_effect is None
    assert MetricSeries(
        "m", "primary", -1, "plain", None, "logits", {}, natural=0.1, random=0.3
    ).smallest_effect == pytest.approx(0.02)


def test_a_metric_that_falls_as_pictures_clear_up_is_turned_round() -> None:
    table = noisy(GROWING, 5, 0.1)
    up = contrast_results([MetricSeries("m", "primary", 1, "plain", None, "logits", from_table(table, DOSES), 1.5, -0.5)])
    down = contrast_results([MetricSeries("m", "primary", -1, "plain", None, "logits", from_table(-table, DOSES), -1.5, 0.5)])
    assert [t.row() for t in up] == [t.row() for t in down]
    assert up[0].verdict == "supported"


def test_the_mean_over_judges_decides_and_all_must_agree_in_sign() -> None:
    def table(effect: float, seed: int) -> Any:
        return from_table(noisy([0.0] + [effect] * 5, 5, 0.05, seed), DOSES)

    def verdict_of(*effects: float) -> str:
        views = [
            MetricSeries("m", "primary", 1, "plain", str(j), "logits", table(effect, j), 1.5, -0.5)
            for j, effect in enumerate(effects)
        ]
        (found,) = [t for t in contrast_results(views) if t.series.judge is None and t.contrast.name == "H1"]
        assert found.contrast.estimate == pytest.approx(np.mean(list(found.judges.values())))
        assert len(found.judges) == len(effects)
        return found.verdict

    assert verdict_of(1.0, 2.0, 0.5) == "supported"
    assert verdict_of(1.0, 2.0, -0.5) == "inconclusive"


def test_holm_goes_over_the_primary_metrics_of_one_recipe_and_judge() -> None:
    series = studied(lambda *_: [0, *[0.07] * 5])
    series.append(MetricSeries("other", "secondary", 1, "plain", None, "logits", series[0].values, 1.5, -0.5))
    series.append(MetricSeries("shine", "diagnostic", 1, "plain", None, "logits", series[0].values, 1.5, -0.5))
    found = contrast_results(series)
    for recipe in ("plain", "fourier"):
        for judge in ("a", "b", "c", None):
            same = [t for t in found if (t.series.recipe, t.series.judge, t.contrast.name) == (recipe, judge, "H1")]
            primary = [t for t in same if t.series.role == "primary"]
            assert [t.p_holm for t in primary] == pytest.approx(holm_adjusted([t.contrast.p for t in primary]))
            assert len(primary) == 2
            assert all(t.p_holm is None for t in same if t.series.role != "primary")
    assert "shine" not in {t.series.metric for t in found}


# Sentences


def said(series: list[MetricSeries], **out: str) -> Any:
    return verdict(contrast_results(series, ACCURACY), out)


def test_the_sentences_of_a_study_in_which_all_agrees() -> None:
    found = said(studied(lambda *_: GROWING))
    everywhere = "supported under plain and fourier, both primary metrics, all three judges."
    assert found.sentences == (
        f"Adversarially trained networks' pictures are clearer than the standard network's (H1): {everywhere}",
        f"Clarity grows with the number of attack steps among K ≥ 1 (H2): {everywhere}",
        "Shape over K ≥ 1: rising under plain and fourier, both primary metrics.",
        f"Clarity goes with accuracy under the strongest attack among K ≥ 1 (H3): {everywhere}",
        "Inference is over 5 training seeds: t intervals of 95 %, of the mean over three judges, Holm over two primary metrics.",
    )
    assert found.overall == "H1 supported, H2 supported, H3 supported"


@pytest.mark.parametrize(("means", "form"), [(LEVEL, "plateau"), (HILL, "inverted U")])
def test_growth_is_never_claimed_without_h2_and_the_form_is_named(means: list[float], form: str) -> None:
    found = said(studied(lambda *_: means, noise=0.05))
    assert found.by_contrast["logits", "H1"] == "supported"
    assert found.by_contrast["logits", "H2"] == "not supported"
    assert f"Shape over K ≥ 1: {form} under plain and fourier, both primary metrics." in found.sentences
    assert not any(sentence.startswith("Clarity grows") for sentence in found.sentences)
    assert any("(H2) is not supported" in sentence for sentence in found.sentences)


def test_recipes_that_disagree_depend_on_the_prior() -> None:
    found = said(studied(lambda metric, recipe: GROWING if recipe == "plain" else LEVEL, noise=0.05))
    assert found.by_contrast["logits", "H2"] == "depends on the prior"
    assert (
        "Whether clarity grows with the number of attack steps among K ≥ 1 (H2) depends on the prior: supported for both "
        "metrics under plain; not supported (smaller than the smallest effect of interest) for both metrics under fourier."
    ) in found.sentences
    found = said(studied(lambda metric, recipe: GROWING if metric == "transfer" else LEVEL, noise=0.05))
    assert found.by_contrast["logits", "H2"] == "depends on the metric"


def test_a_verdict_that_is_open_somewhere_is_not_claimed() -> None:
    def effect(metric: str, recipe: str) -> list[float]:
        return GROWING if (metric, recipe) != ("transfer", "fourier") else [0.0] * 6

    open_ = [
        one if (one.metric, one.recipe) != ("transfer", "fourier")
        else MetricSeries(**{**one.__dict__, "values": from_table(noisy([0.0] * 6, 5, 3.0, seed=4), DOSES)})
        for one in studied(effect)
    ]  # fmt: skip
    found = said(open_)
    assert found.by_contrast["logits", "H2"] == "inconclusive"
    (sentence,) = [one for one in found.sentences if "(H2)" in one]
    assert sentence.startswith("That clarity grows with the number of attack steps among K ≥ 1 (H2) is not shown: supported for ")
    assert "inconclusive (the interval holds 0 and effects of interest) for judge log-odds under fourier" in sentence


def test_one_seed_is_descriptive() -> None:
    found = said(studied(lambda *_: GROWING, seeds=1))
    assert found.sentences[:2] == (
        "Descriptive: these checkpoints only (1 training seed); the next sentences give signs alone.",
        "Adversarial against standard training (H1): clearer under plain and fourier, both primary metrics, all three judges.",
    )
    assert found.overall == "descriptive: these checkpoints only"
    assert set(found.by_contrast.values()) == {"descriptive"}


def test_one_recipe_one_judge_missing_cells_and_a_judge_left_out_are_said() -> None:
    series = [one for one in studied(lambda *_: GROWING, judges=("a",)) if one.recipe == "plain"]
    for one in series:
        one.values[4, 3] = None  # type: ignore[index]
    found = said(series, heavy="it ranks the random network above natural images")
    assert "supported under plain alone, both primary metrics, one judge." in found.sentences[0]
    assert "The judge heavy is excluded: it ranks the random network above natural images." in found.sentences
    assert "H1, H2 and H3 leave out training seed 3, for which a value is missing." in found.sentences


def test_controls_that_change_a_verdict_are_said() -> None:
    same = studied(lambda *_: GROWING)
    gone = studied(lambda *_: [0.0] * 6, noise=0.02, control="contrast")
    kept = studied(lambda *_: GROWING, control="blur")
    found = said([*same, *gone, *kept])
    assert "The verdicts are the same after a blur of 1 pixel." in found.sentences
    assert "With contrast matched H1 is not supported, H2 is not supported and H3 is not supported." in found.sentences
    assert found.by_contrast == said(same).by_contrast
    split = studied(lambda metric, recipe: GROWING if recipe == "plain" else LEVEL, noise=0.05, control="blur")
    (sentence,) = [one for one in said([*same, *split]).sentences if one.startswith("After a blur")]
    assert "H2 depends on the prior" in sentence


def test_a_study_without_primary_values_has_no_verdict() -> None:
    assert verdict([]).overall == "no verdict"


# Rows


def report(seeds: int = 4, doses: tuple[int, ...] = (0, 1, 4, 16)) -> dict[str, Any]:
    """A report.json of three judges, one of them disqualified, a metric that falls, an arm and a hidden layer."""
    generator = np.random.default_rng(0)
    cells = [(k, seed) for k in doses for seed in range(seeds)]
    names = {(k, seed): f"k{k}-s{seed}" for k, seed in cells}
    checkpoints = [
        {"name": names[k, s], "label": "", "role": "dose", "group": f"k{k}", "k": k, "seed": s} for k, s in cells
    ] + [
        {"name": "fgsm-s0", "label": "", "role": "arm", "group": "fgsm", "k": None, "seed": 0},
        {"name": "k1-long-s0", "label": "", "role": "control", "group": "k1-long", "k": 1, "seed": 0},
    ]  # fmt: skip
    clarity = []
    for one in checkpoints:
        level = np.log2(1 + (one["k"] or 0)) if one["role"] == "dose" else -99.0
        for judge in ("a", "b", "mad"):
            for layer in ("logits", "conv2"):
                values = (level + generator.normal(0, 0.2, 3)).tolist()
                row = {"checkpoint": one["name"], "recipe": "plain", "judge": judge, "control": None, "layer": layer}
                clarity.append({**row, "metric": "forced_choice", "units": [0, 1, 2], "values": values})
                falling = [None, *(-value for value in values[1:])]
                clarity.append({**row, "metric": "nearest_natural", "units": [0, 1, 2], "values": falling})
    references = [
        {"reference": name, "recipe": recipe, "metric": metric, "judge": judge, "control": None, "layer": layer, "value": value}
        for metric, sign in (("forced_choice", 1), ("nearest_natural", -1))
        for judge in ("a", "b", "mad")
        for layer in ("logits", "conv2")
        for name, recipe, value in (
            ("natural", None, 4.0 * sign), ("random network", "plain", -1.0 * sign), ("random network", "fourier", 77.0),
        )
    ]  # fmt: skip
    return {
        "checkpoints": checkpoints,
        "metrics": [
            {"name": "forced_choice", "title": "", "role": "primary", "direction": 1, "chance": 0.5},
            {"name": "nearest_natural", "title": "", "role": "secondary", "direction": -1, "chance": None},
        ],
        "accuracy": [
            {"checkpoint": one["name"], "kind": kind, "accuracy": accuracy}
            for one in checkpoints
            for kind, accuracy in (("clean", 0.9), ("strongest", 0.1 + 0.04 * (one["k"] or 0)), ("strongest", 0.99))
        ],
        "clarity": clarity,
        "references": references,
        "judges": [
            {"name": name, "disqualified": "it is mad" if name == "mad" else None, "natural_identification": 0.5}
            for name in ("a", "b", "mad")
        ],
    }


def test_rows_become_tables_of_qualified_judges_and_doses() -> None:
    told = report()
    found = {(s.metric, s.judge, s.layer): s for s in StudyReport(told).series}
    assert {judge for _, judge, _ in found} == {"a", "b"}
    one = found["nearest_natural", "b", "conv2"]
    assert set(one.values) == {(k, seed) for k in (0, 1, 4, 16) for seed in range(4)}
    (row,) = [
        r for r in told["clarity"]
        if (r["checkpoint"], r["judge"], r["layer"], r["metric"]) == ("k4-s2", "b", "conv2", "nearest_natural")
    ]  # fmt: skip
    assert one.values[4, 2] == pytest.approx(np.mean(row["values"][1:]))
    assert (one.natural, one.random) == (-4.0, 1.0)


def test_a_report_is_judged_from_its_rows_and_its_rows_are_json() -> None:
    told = report()
    found, summary = StudyReport(told).results, StudyReport(told).verdict
    rows = [trend.row() for trend in found if trend.series.control is None]
    assert json.loads(json.dumps([rows, summary.row()], allow_nan=False)) == [rows, summary.row()]
    keys, wanted = ("metric", "judge", "layer", "contrast"), ["forced_choice", None, "logits", "H2"]
    (h2,) = [row for row in rows if [row[key] for key in keys] == wanted]
    assert h2["verdict"] == "supported"
    assert h2["shape"] == "rising"
    assert h2["training_seeds"] == 4
    assert h2["smallest_effect"] == pytest.approx(0.1 * 5 / 4)
    assert set(h2["judges"]) == {"a", "b"}
    assert [row["contrast"] for row in rows] == sorted(row["contrast"] for row in rows)
    assert {(one["layer"], one["contrast"]): one["verdict"] for one in summary.row()["by_contrast"]} == summary.by_contrast
    assert "The judge mad is excluded: it is mad." in summary.sentences
    assert any(sentence.startswith("Units of conv2: ") for sentence in summary.sentences)
    # The falling metric is turned round: it is as much for the claim as the other.
    assert all(one["verdict"] == "supported" for one in summary.row()["by_metric"] if one["contrast"] != "H3")
    assert {one["role"] for one in summary.row()["by_metric"]} == {"primary", "secondary"}


def test_a_quick_report_with_empty_fields_is_judged_too() -> None:
    told = report(seeds=1) | {"references": [], "accuracy": [], "judges": []}
    found, summary = StudyReport(told).results, StudyReport(told).verdict
    assert {trend.verdict for trend in found} == {"descriptive"}
    assert {trend.contrast.name for trend in found} == {"H1", "H2"}
    assert summary.overall == "descriptive: these checkpoints only"
    nothing = {"checkpoints": [], "metrics": [], "accuracy": [], "clarity": [], "references": [], "judges": []}
    assert StudyReport(nothing).verdict.overall == "no verdict"


def moved(told: dict[str, Any], by: float) -> dict[str, Any]:
    """The same report with all its numbers moved by at most so much."""
    generator = np.random.default_rng(4)

    def move(value: float | None) -> float | None:
        return None if value is None else value + by * generator.uniform(-1, 1)

    clarity = [{**row, "values": [move(value) for value in row["values"]]} for row in told["clarity"]]
    accuracy = [{**row, "accuracy": move(row["accuracy"])} for row in told["accuracy"]]
    references = [{**row, "value": move(row["value"])} for row in told["references"]]
    return {**told, "clarity": clarity, "accuracy": accuracy, "references": references}


def saturated() -> dict[str, Any]:
    """A report in which a metric is the same everywhere, another one above K = 0, and accuracies repeat."""
    told = report()
    for row in told["clarity"]:
        k = int(row["checkpoint"].split("-")[0][1:]) if row["checkpoint"].startswith("k") else 0
        if row["metric"] == "nearest_natural":
            row["values"] = [0.1, 0.2, 0.3]
        elif row["layer"] == "conv2":
            row["values"] = [0.5, 0.5, 0.6] if k == 0 else [1.0, 1.0, 1 / 3]
    return told


@pytest.mark.parametrize("made", [report, saturated])
def test_rounding_errors_change_nothing_that_is_stated(made: Any) -> None:
    told = json.loads(json.dumps(dict(StudyReport.conclude({**made(), "rows_sha256": ""}))))
    for by in (1e-16, 1e-12):
        again = json.loads(json.dumps(dict(StudyReport.conclude(moved(made(), by)))))
        assert again["verdict"]["sentences"] == told["verdict"]["sentences"]
        assert difference(told["trends"], again["trends"]) is None
        assert difference(told["verdict"], again["verdict"]) is None
    assert any(row["constant"] for row in told["trends"]) == (made is saturated)


def test_a_report_of_format_1_is_compared_by_numbers_and_labels() -> None:
    """Its sentences had other words, and a p value stood beside what is constant; numbers and labels must still follow."""
    told = json.loads(json.dumps(dict(StudyReport.conclude(saturated()))))
    old = told | {"format": 1, "prereg": {"content": {}, "sha256": sha256({})}}
    for row in old["trends"]:
        if row.pop("constant"):
            row["p"] = 0.46
        row["why"] = "in other words"
    old["verdict"] = {**old["verdict"], "sentences": ["In other words."], "overall": "other words"}

    def wrong(content: dict[str, Any]) -> list[str]:
        checks = verify(StudyReport(content), Path(), lambda: load("digits"), Compute("cpu"))
        found: list[Check] = []
        while not found or found[-1].what != "verdict":  # what follows asks for networks
            found.append(next(checks))
        return [one.what for one in found if one.ok is False and one.what in ("trends", "verdict")]

    assert wrong(old) == []
    assert wrong(old | {"format": 2}) == ["trends", "verdict"]
    h1 = next(row for row in old["trends"] if row["p"] not in (None, 0.46))
    changed = [{**row, "p": row["p"] * 1.01} if row is h1 else row for row in old["trends"]]
    assert wrong(old | {"trends": changed}) == ["trends"]
    label = {**old["verdict"], "by_contrast": [{**row, "verdict": "supported"} for row in old["verdict"]["by_contrast"]]}
    assert wrong(old | {"verdict": label}) == ["verdict"]
