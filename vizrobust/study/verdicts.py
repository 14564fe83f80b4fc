"""The verdict on each metric, recipe, judge and contrast: supported, not supported, inconclusive or descriptive."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from vizrobust.intervals import CONFIDENCE
from vizrobust.study.contrasts import (
    FEWEST_SEEDS,
    PRECISION,
    ROUNDING,
    Contrast,
    RunValues,
    complete,
    contrasts,
    page_trend,
    rank_correlation,
    step_slope,
    steps_of,
)

RISING, FALLING, PLATEAU, INVERTED_U, IRREGULAR, UNCLEAR = (
    "rising", "falling", "plateau", "inverted U", "irregular", "no clear shape",
)  # fmt: skip


def dose_response_shape(values: RunValues, smallest_effect: float | None = None) -> str | None:
    """The shape of the values over K >= 1; None below three complete seeds or two K.

    `values` are larger for clearer pictures, `smallest_effect` is the smallest difference of interest in their units. The
    group means of all pairs of K are compared at once (Tukey's honest significant difference in the two-way layout of
    seeds and K, 95 % for all pairs together). A pair whose interval excludes 0 is a *step*:

    - ``rising``: there are steps, all of them up; ``falling``: all of them down;
    - ``inverted U``: steps up to the highest group and down from it, none down before it and none up after it;
    - ``irregular``: any other mixture of steps;
    - ``plateau``: no steps, and the interval of H2's slope over the whole range of K is within +-`smallest_effect`;
    - ``no clear dose_response_shape``: no steps, and that interval is wider (or `smallest_effect` is not known).

    >>> from vizrobust.study.contrasts import from_table
    >>> dose_response_shape(from_table([[1, 5, 1.1], [2, 6.1, 2], [3, 7, 3.1]], steps=[1, 4, 16]))
    'inverted U'
    """
    table = complete(values, [k for k in steps_of(values) if k >= 1])
    seeds, count = table.shape
    if seeds < FEWEST_SEEDS or count < 2:
        return None
    means = table.mean(0)
    residual = table - means - table.mean(1, keepdims=True) + table.mean()
    freedom = (seeds - 1) * (count - 1)
    half = _studentized(count, freedom) * math.sqrt(float((residual**2).sum()) / freedom / seeds)
    half = max(half, 2 * PRECISION)  # two rounded values that differ by less may be the same
    steps = {(i, j): means[j] - means[i] for i, j in combinations(range(count), 2)}
    up = [pair for pair, step in steps.items() if step > half]
    down = [pair for pair, step in steps.items() if step < -half]
    if up and down:
        return INVERTED_U if _one_hill(up, down, int(np.argmax(means > means.max() - ROUNDING))) else IRREGULAR
    if up or down:
        return RISING if up else FALLING
    slope = step_slope(values)
    if smallest_effect is None or slope.ci_low is None or slope.ci_high is None or slope.span is None:
        return UNCLEAR
    return PLATEAU if max(-slope.ci_low, slope.ci_high) * slope.span <= smallest_effect else UNCLEAR


def _one_hill(up: list[tuple[int, int]], down: list[tuple[int, int]], peak: int) -> bool:
    """Whether there are steps up to the highest group and down from it, none up after it and none down before it."""
    both_sides = any(j == peak for _, j in up) and any(i == peak for i, _ in down)
    return both_sides and all(i < peak for i, _ in up) and all(j > peak for _, j in down)


@lru_cache(maxsize=64)
def _studentized(groups: int, freedom: int) -> float:
    return float(stats.studentized_range.ppf(CONFIDENCE, groups, freedom))


SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, DESCRIPTIVE = "supported", "not supported", "inconclusive", "descriptive"
CONSTANT = "constant: the same in every training run, so there is no test"
PRIMARY, DIAGNOSTIC = "primary", "diagnostic"
# Share of (natural reference - random network) that a difference over the range of K must reach
# (docs/measuring-clarity.md, "Smallest effect of interest").
SMALLEST_EFFECT_SHARE = 0.1

Item = TypeVar("Item")


@dataclass(frozen=True)
class MetricSeries:
    """The values of one metric under one recipe, judge, control and layer: one for each (K, training seed).

    `direction` is 1 where larger is clearer, else -1. `natural` and `random` are the references: natural images and
    the randomly initialised network. `judge` is None where the metric needs none, and for the mean over judges, which is
    a mean over the judges' families.
    """

    metric: str
    role: str
    direction: int
    recipe: str
    judge: str | None
    layer: str
    values: RunValues
    natural: float | None = None
    random: float | None = None
    control: str | None = None
    family: str = ""

    def oriented(self) -> MetricSeries:
        """The same series with larger = clearer.

        >>> MetricSeries("kid", "secondary", -1, "plain", None, "logits", {(0, 0): 0.5}, 0.1, 0.9).oriented().values
        {(0, 0): -0.5}
        """
        if self.direction > 0:
            return self
        values = {cell: None if value is None else -value for cell, value in self.values.items()}
        natural, random = (None if one is None else -one for one in (self.natural, self.random))
        return replace(self, direction=1, values=values, natural=natural, random=random)

    @property
    def smallest_effect(self) -> float | None:
        """The smallest difference of interest over the range of K; None without both references in the right order."""
        if self.natural is None or self.random is None:
            return None
        found = SMALLEST_EFFECT_SHARE * self.direction * (self.natural - self.random)
        return found if found > ROUNDING else None


@dataclass(frozen=True)
class ContrastResult:
    """What one contrast says about one series; positive numbers mean clearer pictures.

    `judges` holds each judge's own estimate where the series is the mean over several. `p_holm` is None for metrics
    that are not primary. `shape` is the dose-response shape over K >= 1, for H2 alone. `page_p` (Page's test) and
    `spearman` (the mean rank correlation over seeds, with K or with accuracy) are descriptions.
    """

    series: MetricSeries
    contrast: Contrast
    smallest_effect: float | None
    judges: Mapping[str, float]
    p_holm: float | None = None
    verdict: str = ""
    why: str = ""
    dose_response_shape: str | None = None
    page_p: float | None = None
    spearman: float | None = None

    @property
    def judges_agree(self) -> bool:
        """Whether all judges have the same sign as the estimate."""
        return all((self.contrast.sign_of(estimate) > 0) == (self.contrast.sign > 0) for estimate in self.judges.values())

    def row(self) -> dict[str, Any]:
        """A row of ``trends`` in report.json."""
        series, found = self.series, self.contrast
        return {
            "metric": series.metric, "role": series.role, "recipe": series.recipe, "judge": series.judge,
            "layer": series.layer, "contrast": found.name, "per_seed": list(found.per_seed), "estimate": found.estimate,
            "ci_low": found.ci_low, "ci_high": found.ci_high, "p": found.p, "p_holm": self.p_holm, "constant": found.constant,
            "smallest_effect": self.smallest_effect, "verdict": self.verdict, "shape": self.dose_response_shape, "why": self.why,
            "training_seeds": len(found.per_seed), "seeds": list(found.seeds), "left_out_seeds": list(found.left_out),
            "judges": dict(self.judges), "spearman": self.spearman, "page_p": self.page_p,
        }  # fmt: skip


def contrast_results(
    series: Iterable[MetricSeries], accuracy: RunValues | None = None, describe: bool = True,
    contrasts: Callable[[RunValues, RunValues | None], Sequence[Contrast]] = contrasts,
) -> list[ContrastResult]:  # fmt: skip
    """H1, H2 and, with `accuracy` (fractions by K and seed), H3 for every series and for the mean over judges.

    The mean over judges has ``judge=None``. The verdict on a metric rests on it, and is *supported* only where all judges
    agree in sign. Pass eligible judges only. Holm's correction goes over the primary metrics of one recipe, judge, layer,
    control and contrast. Diagnostics get no result: they do not measure clarity. `describe=False` skips the descriptions,
    which take most of the time. Other `contrasts` may be asked, such as that over the radius.

    >>> from vizrobust.study.contrasts import from_table
    >>> values = from_table([[0, 1, 2], [0, 1, 2.1], [0, 1, 2.2]], steps=[0, 1, 8])
    >>> series = MetricSeries("transfer", "primary", 1, "plain", None, "logits", values, natural=4.0, random=-1.0)
    >>> [(one.contrast.name, one.verdict, one.dose_response_shape) for one in contrast_results([series])]
    [('H1', 'supported', None), ('H2', 'supported', 'rising')]
    """
    oriented = [one.oriented() for one in series if one.role != DIAGNOSTIC]
    measured = [(one, contrasts(one.values, accuracy)) for one in oriented]
    found = [result for one, own in measured for result in _undecided(one, own, {}, accuracy, describe)]
    for views in _grouped(measured, lambda view: (view[0].metric, view[0].recipe, view[0].layer, view[0].control)):
        judged = {one.judge: own for one, own in views if one.judge is not None}
        if judged:
            mean = _mean([one for one, _ in views if one.judge is not None])
            found += _undecided(mean, contrasts(mean.values, accuracy), judged, accuracy, describe)
    decided: list[ContrastResult] = []
    for same in _grouped(found, _family):
        family = [result for result in same if result.series.role == PRIMARY]
        # A constant contrast has no test, but it is one of those that the correction counts.
        corrected = holm_adjusted([1.0 if result.contrast.constant else result.contrast.p for result in family])
        by_metric = {result.series.metric: p for result, p in zip(family, corrected, strict=True)}
        for result in same:
            tested = result.series.role == PRIMARY and not result.contrast.constant
            decided.append(_decided(replace(result, p_holm=by_metric[result.series.metric] if tested else None)))
    return decided


def decide(contrast: Contrast, smallest_effect: float | None, p: float | None = None, agree: bool = True) -> tuple[str, str]:
    """The verdict on a contrast whose positive values speak for the claim, and why.

    `smallest_effect` is the smallest effect size of interest in units of the estimate, `p` the two-sided p after Holm's
    correction (default: the contrast's own). *Not supported* is decided first: an interval below the smallest effect
    decides, also where it lies above 0. A constant contrast has no test, so it is never *supported*.

    >>> from vizrobust.study.contrasts import interval
    >>> decide(interval("H1", {0: 1.0, 1: 1.2, 2: 1.1}, [], 1.0), smallest_effect=0.3)[0]
    'supported'
    """
    low, high = contrast.ci_low, contrast.ci_high
    if low is None or high is None:
        return DESCRIPTIVE, "these checkpoints only"
    if contrast.constant:
        too_small = contrast.sign < 0 or (smallest_effect is not None and high < smallest_effect)
        return NOT_SUPPORTED if too_small else INCONCLUSIVE, CONSTANT
    if high < (0.0 if smallest_effect is None else smallest_effect):
        if high < 0:
            return NOT_SUPPORTED, "it goes the other way"
        return NOT_SUPPORTED, "smaller than the smallest effect of interest"
    p = contrast.p if p is None else p
    if low > 0 and p is not None and p < 1 - CONFIDENCE:
        return (SUPPORTED, "") if agree else (INCONCLUSIVE, "the judges disagree in sign")
    return INCONCLUSIVE, "not after Holm's correction" if low > 0 else "the interval holds 0 and effects of interest"


def holm_adjusted(p: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979); None stays None and is not counted.

    >>> holm_adjusted([0.03, None, 0.01])
    [0.03, None, 0.02]
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        corrected[i] = largest
    return corrected


def _undecided(
    series: MetricSeries,
    own: Sequence[Contrast],
    judged: Mapping[str, Sequence[Contrast]],
    accuracy: RunValues | None,
    describe: bool,
) -> list[ContrastResult]:
    found = []
    for contrast in own:
        name, smallest_effect = contrast.name, series.smallest_effect
        judges = {judge: one.estimate for judge, seen in judged.items() for one in seen if one.name == name}
        result = ContrastResult(
            series,
            contrast,
            smallest_effect / contrast.span if smallest_effect is not None and contrast.span else None,
            {judge: estimate for judge, estimate in judges.items() if estimate is not None},
        )
        if describe and name == "H2":
            result = replace(
                result, dose_response_shape=dose_response_shape(series.values, smallest_effect), page_p=page_trend(series.values)
            )
        if describe and name != "H1":
            result = replace(result, spearman=rank_correlation(series.values, accuracy if name == "H3" else None))
        found.append(result)
    return found


def _decided(result: ContrastResult) -> ContrastResult:
    verdict, why = decide(result.contrast, result.smallest_effect, result.p_holm, result.judges_agree)
    return replace(result, verdict=verdict, why=why)


def _mean(judged: Sequence[MetricSeries]) -> MetricSeries:
    """The mean over families of the mean over their judges."""
    families = _grouped(judged, lambda one: one.family or one.judge)
    return _cellwise_mean([_cellwise_mean(one) for one in families] if len(families) < len(judged) else judged)


def _cellwise_mean(judged: Sequence[MetricSeries]) -> MetricSeries:
    """The mean, cell by cell; None where one of them has no value."""
    keys = sorted({cell for one in judged for cell in one.values})
    values = {cell: _average([one.values.get(cell) for one in judged]) for cell in keys}
    natural, random = _average([one.natural for one in judged]), _average([one.random for one in judged])
    return replace(judged[0], judge=None, values=values, natural=natural, random=random)


def _average(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def _family(result: ContrastResult) -> Hashable:
    series = result.series
    # Metrics without a judge stand beside the mean over judges of those that have one.
    return series.recipe, series.judge, series.layer, series.control, result.contrast.name


def _grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
