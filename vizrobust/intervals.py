"""Confidence intervals and paired statistics: one implementation of each for attacks, checks and the study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONFIDENCE = 0.95
POWER = 0.8
# More images than any data set has: what takes more is at the margin for all that anybody can measure.
MOST_IMAGES = 10_000_000


def share(hits: Tensor | Sequence[bool]) -> float:
    """(n,) bool -> the fraction that is true."""
    return float(torch.as_tensor(hits).to(torch.float64).mean())


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson interval, 95 % unless told otherwise, of a proportion (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(450, 1000)]
    [0.419, 0.481]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes and n must be counts of the same trials, at least one of them, got {successes} of {n}")
    return _wilson(successes, n, _two_sided(confidence))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of a sample with its Student t interval; without the interval for a single value.

    >>> [round(value, 3) for value in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    from scipy.stats import t as student

    sample = np.asarray(values, dtype=np.float64)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return mean, None, None
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def auc_of_ranks(ranks: np.ndarray[Any, Any], positive: np.ndarray[Any, Any]) -> Any:
    """(n, ...), (n,) bool -> (...): the area under the ROC curve by ranks from 1 (Mann & Whitney 1947); ties share a mean rank.

    >>> float(auc_of_ranks(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])))
    1.0
    """
    n = int(positive.sum())
    return (ranks[positive].sum(0) - n * (n + 1) / 2) / (n * (len(positive) - n))


def auc_text(auc: float, positive: int, negative: int) -> str:
    """An area with its interval, for a table.

    >>> auc_text(0.75, 50, 50)
    '0.75 (0.64 to 0.83)'
    """
    low, high = auc_interval(auc, positive, negative)
    return f"{auc:.2f} ({low:.2f} to {high:.2f})"


def auc_interval(auc: float, positive: int, negative: int) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve from so many positive and negative cases, within [0, 1].

    Newcombe's method 5 (Statistics in Medicine 25, 2006, pp. 559-573): the areas from which this one is at most 1.96
    standard errors away, each with the error that it would have itself. It has a width also at 0 and 1.

    >>> [round(bound, 3) for bound in auc_interval(1.0, 10, 90)], [round(bound, 2) for bound in auc_interval(0.5, 50, 50)]
    ([0.89, 1.0], [0.39, 0.61])
    """
    from scipy.optimize import brentq

    z, each = _two_sided(CONFIDENCE), (positive + negative) / 2 - 1

    def outside(true: float) -> float:
        variance = true * (1 - true) * (1 + each * ((1 - true) / (2 - true) + true / (1 + true))) / (positive * negative)
        return abs(auc - true) - z * math.sqrt(variance)

    inside = min(max(auc, 1e-9), 1 - 1e-9)  # at 0 and 1 the error is 0 and the difference too
    return (0.0 if auc <= 0 else float(brentq(outside, 0, inside))), (1.0 if auc >= 1 else float(brentq(outside, inside, 1)))


@dataclass(frozen=True)
class McNemar:
    """Two accuracies on the same `n` images: `difference` is the share of a minus the share of b, with its interval.

    `only_a` images are true in a and false in b, `only_b` the other way round; the other images say nothing about
    the difference. `p` is the two-sided probability of so uneven a split if there were no difference.
    """

    n: int
    only_a: int
    only_b: int
    difference: float
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True)
class ClassAccuracy:
    """The accuracy of one class's `n` images with its interval; all three are None for a class without images."""

    name: str
    n: int
    accuracy: float | None
    ci_low: float | None
    ci_high: float | None

    def row(self) -> dict[str, Any]:
        return class_row(self)


def class_row(about: Any) -> dict[str, Any]:
    """The fields of a dataclass about one class as a row, its `name` under "class".

    >>> class_row(ClassAccuracy("cat", 0, None, None, None))
    {'class': 'cat', 'n': 0, 'accuracy': None, 'ci_low': None, 'ci_high': None}
    """
    plain = asdict(about)
    return {"class": plain.pop("name"), **plain}


def mcnemar(a: Tensor, b: Tensor, confidence: float = CONFIDENCE) -> McNemar:
    """McNemar's exact test of two verdicts (n,) bool on the same images (McNemar 1947; binomial, two-sided).

    The interval of the difference is Newcombe's method 10 (Statistics in Medicine 17, 1998, pp. 2635-2650): Wilson
    intervals of both accuracies, put together with their correlation. It stays within [-1, 1] and has a width also
    where no image disagrees. For a one-sided bound of 95 % ask for a `confidence` of 0.9 and take one end.
    Raises ``ValueError`` for verdicts of different lengths, that are not bool, and for none.

    >>> a, b = torch.arange(100) < 80, torch.arange(100) < 70
    >>> test = mcnemar(a, b)
    >>> test.only_a, test.only_b, round(test.difference, 2), round(test.p, 3)
    (10, 0, 0.1, 0.002)
    """
    from scipy.stats import binomtest

    counts = _table(a, b)
    _, only_a, only_b, _ = counts
    low, high = _newcombe(counts, _two_sided(confidence))
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    n = sum(counts)
    return McNemar(n, only_a, only_b, (only_a - only_b) / n, low, high, p)


def needed(a: Tensor, b: Tensor, margin: float, confidence: float = CONFIDENCE, power: float = POWER) -> int | None:
    """How many images it takes to tell on which side of `margin` the difference a - b lies.

    Decided means that a one-sided bound of the difference (the lower one where the difference is above the margin,
    else the upper one; method 10, as in `mcnemar`) has passed the margin. If that is so already, the answer is the
    present number. Otherwise: as many as decide it with a probability of `power` if the shares of agreeing and
    disagreeing images are as observed. None where 10 million would not do: the difference is at the margin.

    >>> a, b = torch.arange(100) < 80, torch.arange(100) < 70
    >>> needed(a, b, margin=0.02), needed(a, b, margin=0.08), needed(a, b, margin=0.1)
    (100, 1400, None)
    """
    from scipy.special import ndtri

    counts = _table(a, b)
    n, difference = sum(counts), (counts[1] - counts[2]) / sum(counts)

    def decides(images: int, z: float) -> bool:
        low, high = _newcombe(tuple(count * images / n for count in counts), z)
        return low > margin if difference > margin else high < margin

    z = float(ndtri(confidence))
    if decides(n, z):
        return n
    z += float(ndtri(power))
    if difference == margin or not decides(MOST_IMAGES, z):
        return None
    too_few, enough = n, MOST_IMAGES
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decides(middle, z) else (middle, enough)
    return _rounded_up(enough)


def per_class(robust: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassAccuracy, ...]:
    """Accuracy with its Wilson interval for each class: `robust` (n,) bool, `labels` (n,), the names of all classes.

    >>> rows = per_class(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]), ["cat", "dog"])
    >>> [(row.name, row.n, row.accuracy) for row in rows]
    [('cat', 2, 0.5), ('dog', 1, 1.0)]
    """
    return _per_class(robust, labels, classes, CONFIDENCE)


def worst_class(robust: Tensor, labels: Tensor, classes: Sequence[str]) -> ClassAccuracy:
    """The class of lowest accuracy, with an interval for the lowest of the true accuracies.

    The minimum over classes is biased low: of ten classes that are all equally hard, the one that happened to do
    worst is picked. So the interval is that of the true minimum, whichever class has it: from the lowest lower to
    the lowest upper end of Wilson intervals that hold for all classes at once (each at 1 - 0.05 / classes,
    Bonferroni). Compare two networks class by class or by this interval, never by the two minima alone.
    """
    rows = _per_class(robust, labels, classes, CONFIDENCE)
    there = [row for row in rows if row.n]
    together = _per_class(robust, labels, classes, 1 - (1 - CONFIDENCE) / len(there))
    worst = min(there, key=lambda row: (row.accuracy, -row.n))
    low = min(row.ci_low for row in together if row.ci_low is not None)
    high = min(row.ci_high for row in together if row.ci_high is not None)
    return ClassAccuracy(worst.name, worst.n, worst.accuracy, low, high)


def _per_class(robust: Tensor, labels: Tensor, classes: Sequence[str], confidence: float) -> tuple[ClassAccuracy, ...]:
    _check_verdicts(robust, "robust")
    if labels.shape != robust.shape:
        raise ValueError(f"there are {len(robust)} verdicts and {len(labels)} labels; give both for the same images")
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise ValueError(f"label {wrong} has no name: there are {len(classes)} classes, 0 to {len(classes) - 1}")
    totals = torch.bincount(labels, minlength=len(classes)).tolist()
    right = torch.bincount(labels[robust], minlength=len(classes)).tolist()
    return tuple(_class(*counts, confidence) for counts in zip(classes, right, totals, strict=True))


def _class(name: str, right: int, n: int, confidence: float) -> ClassAccuracy:
    if n == 0:
        return ClassAccuracy(name, 0, None, None, None)
    return ClassAccuracy(name, n, right / n, *_wilson(right, n, _two_sided(confidence)))


def _table(a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    """How many images are true in both, only in a, only in b, in neither."""
    _check_verdicts(a, "a")
    _check_verdicts(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a paired test needs the same images on both sides, got {len(a)} and {len(b)} verdicts")
    return int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum())


def _newcombe(counts: tuple[float, ...], z: float) -> tuple[float, float]:
    """Method 10, for counts that need not be whole: a planned table is the observed one times a factor."""
    both, only_a, only_b, neither = counts
    n = both + only_a + only_b + neither
    of_a, of_b = both + only_a, both + only_b
    share_a, share_b = of_a / n, of_b / n
    (low_a, high_a), (low_b, high_b) = _wilson(of_a, n, z), _wilson(of_b, n, z)
    correlation = _correlation(both, only_a, only_b, neither)

    def reach(one: float, other: float) -> float:
        # Never negative but for rounding, as the correlation is at most 1.
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    difference = (only_a - only_b) / n
    low = difference - reach(share_a - low_a, high_b - share_b)
    return max(-1.0, low), min(1.0, difference + reach(high_a - share_a, share_b - low_b))


def _correlation(both: float, only_a: float, only_b: float, neither: float) -> float:
    """Newcombe's phi with his continuity correction; 0 where an accuracy is 0 or 1."""
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    agreement = both * neither - only_a * only_b
    if agreement > 0:
        agreement = max(0.0, agreement - (both + only_a + only_b + neither) / 2)
    return agreement / math.sqrt(product)


def _wilson(successes: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for counts that need not be whole, in the order of operations of `scipy.stats`: bit for bit the same."""
    share, width = successes / n, 2 * (n + z**2)
    centre = (2 * n * share + z**2) / width
    half = z / width * math.sqrt(4 * n * share * (1 - share) + z**2)
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def _two_sided(confidence: float) -> float:
    # Not scipy.stats.norm: to import that takes half a second.
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _rounded_up(n: int) -> int:
    """Two figures are enough of a forecast: 1234 -> 1300."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return -(-n // unit) * unit


def _check_verdicts(verdicts: Tensor, name: str) -> None:
    if verdicts.dtype != torch.bool or verdicts.dim() != 1:
        raise ValueError(f"{name} must be (n,) bool, one verdict for each image, got {tuple(verdicts.shape)} {verdicts.dtype}")
    if len(verdicts) == 0:
        raise ValueError(f"{name} holds no verdicts; give at least one image")


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


def paired(a: Sequence[float | None], b: Sequence[float | None], *, largest: float = math.inf) -> Difference:
    """The difference b - a over the units that both have a value for; the interval ends at `largest`, as a share's does at 1.

    >>> str(paired([0.1, 0.2, 0.3], [0.4, 0.6, 0.5]))
    '+0.300 [+0.052, +0.548]'
    """
    from scipy.stats import ttest_rel

    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < 2:
        return Difference(len(pairs), None, None, None)
    first, second = np.array(pairs).T
    mean = float((second - first).mean())
    if np.ptp(second - first) == 0:
        return Difference(len(pairs), mean, mean, mean)
    interval = ttest_rel(second, first).confidence_interval(CONFIDENCE)
    low, high = np.clip((interval.low, interval.high), -largest, largest)
    return Difference(len(pairs), mean, float(low), float(high))
