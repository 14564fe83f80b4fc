"""The three contrasts of the study, fixed in advance, with t intervals over training seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
# With fewer training runs of each kind nothing can be said beyond these checkpoints
# (docs/measuring-clarity.md, "The unit of replication").
FEWEST_SEEDS = 3
CONTRASTS = ("H1", "H2", "H3")

# (K, training seed) -> the value of that checkpoint, None where there is none.
RunValues = Mapping[tuple[int, int], float | None]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """One number per training seed, and what they say together.

    `estimate` is their mean, `ci_low` and `ci_high` its 95 % t interval over training seeds, `p` the two-sided
    probability of so large a mean if there were nothing; interval and p are None below three seeds, all four are
    None without any. `span` is how far the estimate's own axis goes: estimate * span is a difference in units of the
    metric (H1: 1; H2: doublings of K; H3: accuracies, as fractions). `left_out` are seeds that lack a cell.
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

    @property
    def p_greater(self) -> float | None:
        """One-sided: the probability of so large a mean, upwards, if there were nothing."""
        if self.p is None or self.estimate is None:
            return None
        return self.p / 2 if self.estimate > 0 else 1 - self.p / 2


def from_table(table: ArrayLike, doses: Sequence[int], seeds: Sequence[int] | None = None) -> dict[tuple[int, int], float | None]:
    """Cells from an array (seeds, doses); a value that is not a finite number is a missing cell.

    >>> from_table([[0.5, 0.75]], doses=[0, 1])
    {(0, 0): 0.5, (1, 0): 0.75}
    """
    rows = np.asarray(table, dtype=np.float64)
    seeds = range(len(rows)) if seeds is None else seeds
    if rows.shape != (len(seeds), len(doses)):
        raise ValueError(f"a table of {len(seeds)} seeds and {len(doses)} doses has shape {rows.shape}; rows are seeds")
    return {
        (k, seed): float(value) if math.isfinite(value) else None
        for seed, row in zip(seeds, rows, strict=True)
        for k, value in zip(doses, row, strict=True)
    }


def adversarial_against_standard(values: RunValues) -> Contrast:
    """H1: the mean over K >= 1 minus K = 0, seed by seed.

    >>> adversarial_against_standard(from_table([[0.25, 0.5, 1.0]], [0, 1, 4])).per_seed
    (0.5,)
    """
    doses = steps_of(values)
    if 0 not in doses or len(doses) < 2:
        return _nothing("H1", values)
    return _over_seeds("H1", values, doses, lambda row, _seed: (float(row[1:].mean() - row[0]), 1.0))


def step_slope(values: RunValues) -> Contrast:
    """H2: the least-squares slope over log2 K among K >= 1, seed by seed: the change with each doubling of K.

    >>> step_slope(from_table([[9.0, 0.5, 0.75, 1.0]], [0, 1, 2, 4])).per_seed
    (0.25,)
    """
    doses = _positive(values)
    if len(doses) < 2:
        return _nothing("H2", values)
    doublings = np.log2(doses)
    span = float(np.ptp(doublings))
    return _over_seeds("H2", values, doses, lambda row, _seed: (slope(doublings, row), span))


def accuracy_slope(values: RunValues, accuracy: RunValues) -> Contrast:
    """H3: the slope of the value over accuracy under the strongest attack among K >= 1, seed by seed.

    Accuracies are fractions, so a slope is the change over 100 points. A seed without an accuracy, or one whose
    accuracies are all the same, is left out. `span` is the mean over seeds of the range of accuracies.
    """
    doses = _positive(values)
    if len(doses) < 2:
        return _nothing("H3", values)

    def of(row: Values, seed: int) -> tuple[float, float] | None:
        found = [accuracy.get((k, seed)) for k in doses]
        if any(one is None for one in found):
            return None
        x = np.array(found, dtype=np.float64)
        return (slope(x, row), float(np.ptp(x))) if np.ptp(x) else None

    return _over_seeds("H3", values, doses, of)


def contrasts(values: RunValues, accuracy: RunValues | None = None) -> tuple[Contrast, ...]:
    """H1, H2 and, with accuracies, H3 of one table; those for which the table has no seed at all are left away."""
    found = [adversarial_against_standard(values), step_slope(values)]
    if accuracy:
        found.append(accuracy_slope(values, accuracy))
    return tuple(contrast for contrast in found if contrast.per_seed)


def interval(name: str, per_seed: Mapping[int, float], left_out: Sequence[int], span: float | None) -> Contrast:
    """The t interval over training seeds of one number per seed."""
    x = np.array(list(per_seed.values()), dtype=np.float64)
    start = (name, tuple(per_seed), tuple(x.tolist()), tuple(left_out), span)
    if not len(x):
        return Contrast(*start, None, None, None, None)
    mean = float(x.mean())
    if len(x) < FEWEST_SEEDS:
        return Contrast(*start, mean, None, None, None)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    if error == 0:
        return Contrast(*start, mean, mean, mean, 0.0 if mean else 1.0)
    half = float(stdtrit(len(x) - 1, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(len(x) - 1, -abs(mean) / error))
    return Contrast(*start, mean, mean - half, mean + half, p)


def page_trend(values: RunValues) -> float | None:
    """One-sided p of Page's test for a rise over K >= 1; None where it is not defined. A description only.

    With run-to-run noise it finds a trend far too often (17 % of the time: docs/measuring-clarity.md, "Descriptions that
    decide nothing"), so no verdict uses it.
    """
    doses = _positive(values)
    rows = [row for seed in _seeds(values) if (row := _row(values, doses, seed)) is not None]
    if len(rows) < 2 or len(doses) < 3:
        return None
    return float(stats.page_trend_test(np.array(rows)).pvalue)


def rank_correlation(values: RunValues, accuracy: RunValues | None = None) -> float | None:
    """Spearman's correlation with K, or with `accuracy`, among K >= 1: the mean over seeds. A description only.

    None where no seed is complete, or where nothing varies.
    """
    doses = _positive(values)
    found = []
    for seed in _seeds(values):
        y = _row(values, doses, seed)
        x = np.array(doses) if accuracy is None else _row(accuracy, doses, seed)
        if x is not None and y is not None and len(y) > 1 and np.ptp(x) and np.ptp(y):
            found.append(float(stats.spearmanr(x, y).statistic))
    return float(np.mean(found)) if found else None


def steps_of(values: RunValues) -> tuple[int, ...]:
    """The K of a table, ascending."""
    return tuple(sorted({k for k, _ in values}))


def complete(values: RunValues, doses: Sequence[int]) -> Values:
    """(seeds, doses): the rows of those seeds that have a value at each of the doses."""
    rows = [row for seed in _seeds(values) if (row := _row(values, doses, seed)) is not None]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(doses))


def slope(x: Values, y: Values) -> float:
    """The least-squares slope of y (n,) over x (n,), which must vary."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def _over_seeds(
    name: str,
    values: RunValues,
    doses: Sequence[int],
    of: Callable[[Values, int], tuple[float, float] | None],
) -> Contrast:
    """`of` gives (value, span) from one seed's complete row, or None."""
    found, left_out = {}, []
    for seed in _seeds(values):
        row = _row(values, doses, seed)
        one = None if row is None else of(row, seed)
        if one is None:
            left_out.append(seed)
        else:
            found[seed] = one
    span = float(np.mean([one[1] for one in found.values()])) if found else None
    return interval(name, {seed: one[0] for seed, one in found.items()}, left_out, span)


def _nothing(name: str, values: RunValues) -> Contrast:
    return interval(name, {}, _seeds(values), None)


def _seeds(values: RunValues) -> list[int]:
    return sorted({seed for _, seed in values})


def _positive(values: RunValues) -> tuple[int, ...]:
    return tuple(k for k in steps_of(values) if k >= 1)


def _row(values: RunValues, doses: Sequence[int], seed: int) -> Values | None:
    found = [values.get((k, seed)) for k in doses]
    return None if any(one is None for one in found) else np.array(found, dtype=np.float64)
