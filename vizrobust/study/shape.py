"""The form that clarity takes over K among the adversarially trained networks."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import stats

from vizrobust.study.contrasts import CONFIDENCE, FEWEST_SEEDS, Cells, complete, dose_slope, doses_of

RISING, FALLING, PLATEAU, INVERTED_U, IRREGULAR, UNCLEAR = (
    "rising", "falling", "plateau", "inverted U", "irregular", "no clear shape",
)  # fmt: skip


def shape(values: Cells, smallest: float | None = None) -> str | None:
    """What form the values have over K >= 1; None below three complete seeds or two doses.

    `values` are larger for clearer pictures, `smallest` is the smallest difference of interest in their units. The
    group means of any two K are compared at once (Tukey's honest significant difference in the two-way layout of
    seeds and K, 95 % for all pairs together). With a *step* for a pair whose interval leaves out 0:

    - ``rising``: there are steps, all of them up; ``falling``: all of them down;
    - ``inverted U``: steps up to the highest group and down from it, none down before it and none up behind it;
    - ``irregular``: any other mixture of steps;
    - ``plateau``: no steps, and the interval of H2's slope over the whole range of K is within +-`smallest`;
    - ``no clear shape``: no steps, and that interval is wider (or `smallest` is not known).

    >>> from vizrobust.study.contrasts import tabulated
    >>> shape(tabulated([[1, 5, 1.1], [2, 6.1, 2], [3, 7, 3.1]], doses=[1, 4, 16]))
    'inverted U'
    """
    doses = [k for k in doses_of(values) if k >= 1]
    table = complete(values, doses)
    seeds, count = table.shape
    if seeds < FEWEST_SEEDS or count < 2:
        return None
    means = table.mean(0)
    residual = table - means - table.mean(1, keepdims=True) + table.mean()
    freedom = (seeds - 1) * (count - 1)
    half = _studentized(count, freedom) * math.sqrt(float((residual**2).sum()) / freedom / seeds)
    steps = {(i, j): means[j] - means[i] for i, j in combinations(range(count), 2)}
    up = [pair for pair, step in steps.items() if step > half]
    down = [pair for pair, step in steps.items() if step < -half]
    if up and down:
        return INVERTED_U if _one_hill(up, down, int(np.argmax(means))) else IRREGULAR
    if up or down:
        return RISING if up else FALLING
    trend = dose_slope(values)
    if smallest is None or trend.ci_low is None or trend.ci_high is None or trend.span is None:
        return UNCLEAR
    return PLATEAU if max(-trend.ci_low, trend.ci_high) * trend.span <= smallest else UNCLEAR


def _one_hill(up: list[tuple[int, int]], down: list[tuple[int, int]], peak: int) -> bool:
    """Whether the highest group has steps up to it and down from it, and none goes up behind it or down before it."""
    reached = any(j == peak for _, j in up) and any(i == peak for i, _ in down)
    return reached and all(i < peak for i, _ in up) and all(j > peak for _, j in down)


@lru_cache(maxsize=64)
def _studentized(groups: int, freedom: int) -> float:
    return float(stats.studentized_range.ppf(CONFIDENCE, groups, freedom))
