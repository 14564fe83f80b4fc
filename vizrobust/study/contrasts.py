"""The contrasts of the study, fixed in advance, with t intervals over training seeds, and those of its secondary outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import stdtr, stdtrit

from vizrobust.intervals import CONFIDENCE

# With fewer training runs of each kind nothing can be said beyond these checkpoints
# (docs/measuring-clarity.md, "The unit of replication").
FEWEST_SEEDS = 3
CONTRASTS = ("H1", "H2", "H3", "H4", "H5", "H6")
# Clarity values are recorded with this many decimals, so half of the last one is their error.
DECIMALS = 6
PRECISION = 0.5 * 10**-DECIMALS
# What is nearer together than this differs by the order of additions alone, in means over hundreds of recorded values too.
ROUNDING = 1e-9

# (K, training seed) -> the value of that checkpoint, None where there is none.
RunValues = Mapping[tuple[int, int], float | None]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """One number per training seed, and what these numbers say together.

    `estimate` is their mean, `ci_low` and `ci_high` its 95 % t interval over training seeds, `p` the two-sided p value
    of a mean of 0. Interval and p are None below three seeds, all four are None without any seed. `span` is the length
    of the estimate's own axis: estimate * span is a difference in units of the metric (H1: 1; H2: doublings of K; H3:
    accuracies, as fractions). `left_out` are seeds that lack a value. `precision` says how far the rounding of the
    recorded values may move each number.
    """

    name: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    left_out: tuple[int, ...]
    span: float | None
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    precision: float = 0.0

    @property
    def constant(self) -> bool:
        """Whether all seeds have one number, as far as the recorded values can tell: there is no test of that.

        >>> interval("H1", {0: 0.5, 1: 0.5, 2: 0.5}, [], 1.0).constant
        True
        """
        return len(self.per_seed) >= FEWEST_SEEDS and float(np.ptp(self.per_seed)) <= 2 * self.precision

    @property
    def sign(self) -> int:
        """1, -1, or 0 where the estimate is 0 as far as the recorded values can tell."""
        return self.sign_of(self.estimate or 0.0)

    def sign_of(self, value: float) -> int:
        """The same for another value of this contrast, such as one judge's own."""
        return 0 if abs(value) <= self.precision else (1 if value > 0 else -1)


def from_table(table: ArrayLike, steps: Sequence[int], seeds: Sequence[int] | None = None) -> dict[tuple[int, int], float | None]:
    """Values by (K, training seed) from an array (seeds, steps); what is not a finite number becomes None.

    >>> from_table([[0.5, 0.75]], steps=[0, 1])
    {(0, 0): 0.5, (1, 0): 0.75}
    """
    rows = np.asarray(table, dtype=np.float64)
    seeds = range(len(rows)) if seeds is None else seeds
    if rows.shape != (len(seeds), len(steps)):
        raise ValueError(
            f"expected a table of {len(seeds)} seeds and {len(steps)} numbers of steps, got shape {rows.shape}; rows are seeds"
        )
    return {
        (k, seed): float(value) if math.isfinite(value) else None
        for seed, row in zip(seeds, rows, strict=True)
        for k, value in zip(steps, row, strict=True)
    }


def adversarial_against_standard(values: RunValues) -> Contrast:
    """H1: the mean over K >= 1 minus K = 0, seed by seed.

    >>> adversarial_against_standard(from_table([[0.25, 0.5, 1.0]], [0, 1, 4])).per_seed
    (0.5,)
    """
    steps = steps_of(values)
    if 0 not in steps or len(steps) < 2:
        return _nothing("H1", values)
    weights = np.array([-1.0, *[1 / (len(steps) - 1)] * (len(steps) - 1)])
    return _over_seeds("H1", values, steps, lambda _seed: (weights, 1.0))


def step_slope(values: RunValues) -> Contrast:
    """H2: the least-squares slope over log2 K among K >= 1, seed by seed: the change with each doubling of K.

    >>> step_slope(from_table([[9.0, 0.5, 0.75, 1.0]], [0, 1, 2, 4])).per_seed
    (0.25,)
    """
    steps = _positive(values)
    if len(steps) < 2:
        return _nothing("H2", values)
    doublings = np.log2(steps)
    span = float(np.ptp(doublings))
    return _over_seeds("H2", values, steps, lambda _seed: (_slope_weights(doublings), span))


def accuracy_slope(values: RunValues, accuracy: RunValues) -> Contrast:
    """H3: the slope of the value over accuracy under the strongest attack among K >= 1, seed by seed.

    Accuracies are fractions, so a slope is the change over 100 points. A seed without an accuracy, or one whose
    accuracies are all the same, is left out. `span` is the mean over seeds of the range of accuracies.

    >>> clarity, accuracy = from_table([[9.0, 1.0, 2.0]], [0, 1, 8]), from_table([[0.0, 0.25, 0.75]], [0, 1, 8])
    >>> accuracy_slope(clarity, accuracy).per_seed
    (2.0,)
    """
    steps = _positive(values)
    if len(steps) < 2:
        return _nothing("H3", values)

    def weights(seed: int) -> tuple[Values, float] | None:
        x = _row(accuracy, steps, seed)
        return None if x is None or np.ptp(x) <= ROUNDING else (_slope_weights(x), float(np.ptp(x)))

    return _over_seeds("H3", values, steps, weights)


# Radii are keys of a table as whole millionths, so that they can stand in the place of K: a slope per doubling is the same.
RADIUS_UNIT = 1e-6


def radius_slope(values: RunValues) -> Contrast:
    """H4: the slope over log2 eps at a fixed K, seed by seed; the first key of `values` is eps in millionths.

    >>> radius_slope(from_table([[0.5, 0.75, 1.0]], [4000, 8000, 16000])).per_seed
    (0.25,)
    """
    return replace(step_slope(values), name="H4")


def masked_against_standard(values: RunValues) -> Contrast:
    """H5: the networks with masked gradients, whose key is 1, minus K = 0, seed by seed.

    >>> masked_against_standard(from_table([[0.25, 0.5]], [0, 1])).per_seed
    (0.25,)
    """
    return replace(adversarial_against_standard(values), name="H5")


def against_every_standard(values: RunValues) -> Contrast:
    """H6: the mean over K >= 1 minus the mean of K = 0, each over all its seeds and without pairs (Welch 1947).

    `per_seed` has the difference of a seed that has all K, and the mean over K >= 1 minus its own value for a seed that
    only K = 0 has; `estimate` is not their mean.

    >>> found = against_every_standard({(0, 0): 0.25, (1, 0): 1.0, (0, 1): 0.75})
    >>> found.per_seed, found.estimate
    ((0.75, 0.25), 0.5)
    """
    steps = _positive(values)
    rows = {seed: float(row.mean()) for seed in _seeds(values, steps) if (row := _row(values, steps, seed)) is not None}
    standard = {seed: value for (k, seed), value in values.items() if k == 0 and value is not None}
    if not rows or not standard:
        return _nothing("H6", values)
    attacked = fmean(rows.values())
    per_seed = {seed: rows.get(seed, attacked) - value for seed, value in sorted(standard.items())}
    left_out = [seed for seed in _seeds(values, steps) if seed not in rows]
    found = replace(interval("H6", per_seed, left_out, 1.0, 2 * PRECISION), estimate=attacked - fmean(standard.values()))
    if found.constant:
        return found
    if min(len(rows), len(standard)) < FEWEST_SEEDS:
        return replace(found, ci_low=None, ci_high=None, p=None)
    welch = stats.ttest_ind(list(rows.values()), list(standard.values()), equal_var=False)
    low, high = welch.confidence_interval(CONFIDENCE)
    return replace(found, ci_low=float(low), ci_high=float(high), p=float(welch.pvalue))


def contrasts(values: RunValues, accuracy: RunValues | None = None) -> tuple[Contrast, ...]:
    """H1, H2 and, with accuracies, H3 of one table, without those that no training seed has values for.

    H6 too, where some seeds have only K = 0.

    >>> [one.name for one in contrasts(from_table([[0.25, 0.5, 1.0]], [0, 1, 4]))]
    ['H1', 'H2']
    """
    found = [adversarial_against_standard(values), step_slope(values)]
    if accuracy:
        found.append(accuracy_slope(values, accuracy))
    if len(_seeds(values)) > len(_seeds(values, _positive(values))):
        found.append(against_every_standard(values))
    return tuple(contrast for contrast in found if contrast.per_seed)


def interval(
    name: str, per_seed: Mapping[int, float], left_out: Sequence[int], span: float | None, precision: float = 0.0
) -> Contrast:
    """The t interval over training seeds of one number per seed.

    Where all numbers are the same within `precision`, the interval is their mean and there is no p value: it would be
    that of rounding errors.

    >>> found = interval("H1", {0: 1.0, 1: 1.2, 2: 1.1}, [], 1.0)
    >>> round(found.ci_low, 3), round(found.ci_high, 3), round(found.p, 4)
    (0.852, 1.348, 0.0027)
    """
    x = np.array(list(per_seed.values()), dtype=np.float64)
    start = Contrast(name, tuple(per_seed), tuple(x.tolist()), tuple(left_out), span, None, None, None, None, precision)
    if not len(x):
        return start
    mean = float(x.mean())
    if len(x) < FEWEST_SEEDS:
        return replace(start, estimate=mean)
    if start.constant:
        return replace(start, estimate=mean, ci_low=mean, ci_high=mean)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    half = float(stdtrit(len(x) - 1, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(len(x) - 1, -abs(mean) / error))
    return replace(start, estimate=mean, ci_low=mean - half, ci_high=mean + half, p=p)


def page_trend(values: RunValues) -> float | None:
    """One-sided p of Page's test for a rise over K >= 1; None where it is not defined. A description only.

    Page 1963, *Ordered Hypotheses for Multiple Treatments*. With run-to-run noise it finds a trend far too often (17 % of
    the time: docs/measuring-clarity.md, "Descriptions that decide nothing"), so no verdict uses it.

    >>> page_trend(from_table([[1, 2, 3], [1, 3, 4]], steps=[1, 2, 4])) < 0.05
    True
    """
    steps = _positive(values)
    rows = [_tied(row) for seed in _seeds(values) if (row := _row(values, steps, seed)) is not None]
    if len(rows) < 2 or len(steps) < 3:
        return None
    return float(stats.page_trend_test(np.array(rows)).pvalue)


def rank_correlation(values: RunValues, accuracy: RunValues | None = None) -> float | None:
    """Spearman's correlation with K, or with `accuracy`, among K >= 1: the mean over seeds. A description only.

    None where no seed is complete, or where nothing varies.

    >>> rank_correlation(from_table([[9, 1, 2, 3], [9, 1, 3, 2]], steps=[0, 1, 2, 4]))
    0.75
    """
    steps = _positive(values)
    found = []
    for seed in _seeds(values):
        y = _row(values, steps, seed)
        x = np.array(steps, dtype=np.float64) if accuracy is None else _row(accuracy, steps, seed)
        if x is None or y is None:
            continue
        x, y = _tied(x), _tied(y)
        if np.ptp(x) and np.ptp(y):
            found.append(float(stats.spearmanr(x, y).statistic))
    return float(np.mean(found)) if found else None


def steps_of(values: RunValues) -> tuple[int, ...]:
    """The K of a table, ascending."""
    return tuple(sorted({k for k, _ in values}))


def complete(values: RunValues, steps: Sequence[int]) -> Values:
    """(seeds, steps): the rows of those seeds that have a value at each of the K."""
    rows = [row for seed in _seeds(values) if (row := _row(values, steps, seed)) is not None]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(steps))


def _slope_weights(x: Values) -> Values:
    """(n,): weights whose product with y (n,) is the least-squares slope of y over x, which must vary."""
    centred = x - x.mean()
    return centred / (centred @ centred)


def _tied(x: Values) -> Values:
    """(n,): the places of the values in ascending order, the same for values that differ by rounding alone."""
    order = np.argsort(x, kind="stable")
    places = np.empty(len(x))
    places[order] = np.cumsum(np.concatenate(([0], np.diff(x[order]) > ROUNDING)))
    return places


def _over_seeds(
    name: str, values: RunValues, steps: Sequence[int], weights: Callable[[int], tuple[Values, float] | None]
) -> Contrast:
    """The weighted sum of each seed's complete row; `weights` gives (weights, span) for a seed, or None."""
    found, spans, errors, left_out = {}, [], [], []
    for seed in _seeds(values, [k for k in steps if k]):
        row, own = _row(values, steps, seed), weights(seed)
        if row is None or own is None:
            left_out.append(seed)
            continue
        found[seed] = float(own[0] @ row)
        spans.append(own[1])
        errors.append(PRECISION * float(np.abs(own[0]).sum()))
    return interval(name, found, left_out, float(np.mean(spans)) if spans else None, max(errors, default=0.0))


def _nothing(name: str, values: RunValues) -> Contrast:
    return interval(name, {}, _seeds(values), None)


def _seeds(values: RunValues, steps: Sequence[int] | None = None) -> list[int]:
    """The seeds of a table, or of those of its networks that have one of these K."""
    return sorted({seed for k, seed in values if steps is None or k in steps})


def _positive(values: RunValues) -> tuple[int, ...]:
    return tuple(k for k in steps_of(values) if k >= 1)


def _row(values: RunValues, steps: Sequence[int], seed: int) -> Values | None:
    found = [values.get((k, seed)) for k in steps]
    return None if any(one is None for one in found) else np.array(found, dtype=np.float64)


ATTRIBUTION, FEATURES, SECONDARY = "attribution", "effective_features", "secondary"
RATIO = "participation ratio"


@dataclass(frozen=True)
class Outcome:
    """What was measured of each network: `measure` of the maps of a method, or of a layer; `of` names the method or layer."""

    kind: str
    measure: str
    of: str


@dataclass(frozen=True)
class SecondaryContrast:
    """What one contrast over training seeds says of one outcome; it has no direction and no verdict."""

    outcome: Outcome
    contrast: Contrast

    def row(self) -> dict[str, Any]:
        """A row of ``secondary`` in report.json."""
        found = self.contrast
        return {
            "outcome": self.outcome.kind, "measure": self.outcome.measure, "of": self.outcome.of, "role": SECONDARY,
            "contrast": found.name, "per_seed": list(found.per_seed), "estimate": found.estimate, "ci_low": found.ci_low,
            "ci_high": found.ci_high, "training_seeds": len(found.per_seed), "seeds": list(found.seeds),
            "left_out_seeds": list(found.left_out),
        }  # fmt: skip


def outcomes(
    attribution: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]]
) -> dict[Outcome, dict[str, float | None]]:
    """Outcome -> checkpoint -> its value, from a report's rows: the mean over those images that have one.

    >>> rows = [{"checkpoint": "k0-s0", "method": "Saliency()", "measure": "gini", "values": [0.25, None, 0.75]}]
    >>> outcomes(rows, [])
    {Outcome(kind='attribution', measure='gini', of='Saliency()'): {'k0-s0': 0.5}}
    """
    found: dict[Outcome, dict[str, float | None]] = {}
    for row in attribution:
        there = [float(value) for value in row["values"] if value is not None and math.isfinite(value)]
        mean = fmean(there) if there else None
        found.setdefault(Outcome(ATTRIBUTION, row["measure"], row["method"]), {})[row["checkpoint"]] = mean
    for row in features:
        found.setdefault(Outcome(FEATURES, RATIO, row["layer"]), {})[row["checkpoint"]] = row["value"]
    return found


# Which networks are compared, by their places in a table, and how.
Arm = tuple[Mapping[str, tuple[int, int]], Callable[[RunValues], Sequence[Contrast]]]


def secondary_contrasts(
    measured: Mapping[Outcome, Mapping[str, float | None]], arms: Sequence[Arm]
) -> Iterator[SecondaryContrast]:
    """Every contrast of every outcome, without those that no training seed has values for."""
    for outcome, values in measured.items():
        for places, contrasts in arms:
            table = {place: values.get(name) for name, place in places.items()}
            yield from (SecondaryContrast(outcome, one) for one in contrasts(table) if one.per_seed)
