"""The paired difference of a measure between two checkpoints, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

CONFIDENCE = 0.95
# One training run each: the interval speaks of units, not of training
# (docs/measuring-clarity.md, "The unit of replication").
SCOPE = "over units; descriptive: these checkpoints only"


@dataclass(frozen=True)
class Difference:
    """b minus a over `n` pairs: the mean with its 95 % t interval; None where there are fewer than two pairs."""

    n: int
    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return "-"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(a: Sequence[float | None], b: Sequence[float | None]) -> Difference:
    """The difference b - a over the units that both have a value for.

    >>> str(paired([0.1, 0.2, 0.3], [0.4, 0.6, 0.5]))
    '+0.300 [+0.052, +0.548]'
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < 2:
        return Difference(len(pairs), None, None, None)
    first, second = np.array(pairs).T
    mean = float((second - first).mean())
    if np.ptp(second - first) == 0:
        return Difference(len(pairs), mean, mean, mean)
    interval = ttest_rel(second, first).confidence_interval(CONFIDENCE)
    return Difference(len(pairs), mean, float(interval.low), float(interval.high))
