"""What masking checks find: the budget of their attacks, the result of a check, and the verdict on a network's gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from vizrobust.attacks import Attack, Ball
from vizrobust.attacks.attack import check_least
from vizrobust.data import Split
from vizrobust.intervals import CONFIDENCE, POWER, mcnemar, needed, share, wilson
from vizrobust.requests.request import named_parameters
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class AttackBudget:
    """How hard the attacks of a diagnosis try.

    `steps` and `restarts` are PGD's, `queries` those of Square and HopSkipJump, which meets the first `decision_images` at the
    most (0: it is left out), `noise_samples` how many random points are tried. An
    image on which another attack succeeds meets PGD again, with `confirm_restarts` restarts, before it counts as hidden
    from gradients: another round of any attack finds a few images more (ten restarts as in PGD-50-10, Wong et al. 2020).
    The first `probes` images that are classified correctly serve the checks that look at gradients and losses.
    Raises ``ValueError`` for a number below 1 (`queries`, `decision_images`: below 0).

    >>> AttackBudget(steps=10, restarts=1)
    AttackBudget(steps=10, restarts=1)
    """

    steps: int = 50
    restarts: int = 3
    confirm_restarts: int = 10
    queries: int = 1000
    noise_samples: int = 100
    probes: int = 100
    decision_images: int = 50

    def __post_init__(self) -> None:
        check_least(self, steps=1, restarts=1, confirm_restarts=1, queries=0, noise_samples=1, probes=1, decision_images=0)


@dataclass(frozen=True)
class NetworkUnderTest:
    """A network whose gradients are to be diagnosed, and what is known of it.

    `ball` holds the evaluation eps. `trained` are the attacks that it was trained against: none for standard
    training, None where that is not known. `source` is another checkpoint's reference, from which attacks are
    transferred; `ensemble` is one more attack that counts towards the strongest found.
    """

    net: nn.Module
    images: Split
    ball: Ball
    trained: tuple[Attack, ...] | None = None
    source: str | None = None
    ensemble: Attack | None = None


# How a value is to be read and printed; JSON has fractions and plain numbers.
Unit = Literal["share", "points", "number"]


@dataclass(frozen=True)
class Check:
    """One sign of masked gradients, and whether a network shows it.

    It is `flagged` where `value` is on the wrong side of `threshold` (above it unless `flagged_if` is ``"below"``); None
    where it could not be run, which `evidence` then explains. `counts` are the numbers of images behind the value.
    `advice` says what to do, and is empty unless the check was flagged or skipped; it names parameters of the commands
    `attack` and `masking` as templates, such as ``{thorough}`` (see `vizrobust.requests.request.named_parameters`).
    """

    name: str
    value: float | None
    threshold: float | None
    flagged: bool | None
    counts: dict[str, int] = field(default_factory=dict)
    evidence: str = ""
    advice: str = ""
    unit: Unit = "share"
    flagged_if: Literal["above", "below"] = "above"

    def row(self) -> dict[str, Any]:
        """The fields of a check in JSON."""
        return {
            "name": self.name, "value": self.value, "threshold": self.threshold, "tripped": self.flagged,
            "counts": self.counts, "evidence": self.evidence, "advice": named_parameters(self.advice, str),
        }  # fmt: skip


def threshold_check(
    name: str,
    value: float,
    threshold: float,
    evidence: str,
    advice: str,
    *,
    counts: dict[str, int] | None = None,
    unit: Unit = "share",
    flagged_if: Literal["above", "below"] = "above",
    bound: float | None = None,
) -> Check:
    """A check that compares a value with its threshold; a confidence `bound` of the value, if given, decides instead.

    >>> threshold_check("gap", 0.2, 0.15, "20 images of 100", "attack harder", bound=0.13).flagged
    False
    """
    decisive = value if bound is None else bound
    flagged = decisive > threshold if flagged_if == "above" else decisive < threshold
    return Check(
        name, float(value), threshold, bool(flagged), counts or {}, evidence, advice if flagged else "", unit, flagged_if
    )


def skipped(name: str, why: str, advice: str = "") -> Check:
    """A check that does not apply to this network."""
    return Check(name, None, None, None, {}, why, advice)


OVERFITTED = "masked: overfitted to its training attack"
HIDDEN = "masked: gradients hide attacks"
SOUND = "sound"
NOT_ROBUST = "not robust, gradients sound"
UNDECIDED = "undecided"

# Our two limits, set before any network was diagnosed. Sound training loses some points from its own attack to the
# strongest one known (MNIST 88.8 -> 82.9, Wong et al. 2020; CIFAR-10 50.0 -> 44.0, Madry et al. 2018, both under
# AutoAttack); catastrophic overfitting loses nearly all of them.
GAP = 0.15
# What gradients may miss of what other attacks find: restarts alone move published figures by about as much
# (47.0 -> 45.2 % with ten of them, Madry's CIFAR-10 network).
HIDING = 0.02
# "Accuracy near 0": one image in twenty.
NEAR_ZERO = 0.05
# Four times as many images halve an interval.
AT_LIMIT = 4


@dataclass(frozen=True)
class Criterion:
    """A difference of accuracies on n images that makes a network masked where it is certainly above `threshold`.

    `low` and `high` are its one-sided bounds, of 95 % unless several looks share the error; `images` says how many images
    would tell on which side of the limit it lies (n where they do already; None where the observed difference is at the
    limit, so nobody can say).
    """

    verdict: str
    value: float
    threshold: float
    low: float
    high: float
    n: int
    images: int | None
    what: str = ""
    # Of overfitting: whether gradients alone show it too, as they do not where they hide what other attacks find.
    plain: bool = True

    @property
    def side(self) -> Literal["above", "below", "open"]:
        if self.low > self.threshold:
            return "above"
        return "below" if self.high < self.threshold else "open"

    def __str__(self) -> str:
        """Such as: what random noise breaks and PGD does not is 1.0 points (0.0 to 2.2; limit 2)."""
        low, high = (f"{100 * bound:.1f}" for bound in (max(self.low, 0), self.high))
        return f"{self.what} is {100 * self.value:.1f} points ({low} to {high}; limit {100 * self.threshold:g})"


@dataclass(frozen=True)
class Verdict:
    """One of the five verdicts, with the sentence for a person; `images` is how many would settle an undecided one."""

    name: str
    sentence: str
    images: int | None = None

    @property
    def masked(self) -> bool:
        return self.name in (OVERFITTED, HIDDEN)

    @property
    def undecided(self) -> bool:
        return self.name == UNDECIDED


def overfitting(
    under_training: Tensor, under_gradients: Tensor, under_strongest: Tensor, confidence: float = CONFIDENCE
) -> Criterion:
    """Accuracy under the attack of training minus that under the strongest: (n,) bool each, who survives.

    `under_gradients`, who survives PGD with restarts, tells overfitting from gradients that hide attacks.
    """
    criterion = _paired(OVERFITTED, under_training, under_strongest, GAP, confidence)
    return replace(criterion, plain=share(under_training) - share(under_gradients) > GAP)


def hiding(under_gradients: Tensor, under_another: Tensor, confidence: float = CONFIDENCE) -> Criterion:
    """The share of images that survive PGD but not another attack: (n,) bool each, who survives."""
    return _paired(HIDDEN, under_gradients, under_gradients & under_another, HIDING, confidence)


def underflow(under_plain_loss: Tensor, under_gradients: Tensor, confidence: float = CONFIDENCE) -> Criterion:
    """The share of images that survive PGD on plain cross entropy and not PGD: (n,) bool each, who survives.

    The limit is that of overfitting: a network that is sure of a few images hides nothing.
    """
    return _paired(HIDDEN, under_plain_loss | under_gradients, under_gradients, GAP, confidence)


def unbounded(left: Tensor, classes: int, confidence: float = CONFIDENCE) -> Criterion:
    """The share (n,) bool that an attack leaves which may change every pixel at will, against guessing."""
    n, value, threshold = len(left), share(left), 1 / classes
    low, high = wilson(int(left.sum()), n, 2 * confidence - 1)
    criterion = Criterion(HIDDEN, value, threshold, low, high, n, n)
    return (
        criterion if criterion.side != "open" else replace(criterion, images=_images_for_share(value, threshold, n, confidence))
    )


def verdict_of(criteria: Sequence[Criterion], robust: Tensor, caveat: str = "") -> Verdict:
    """One verdict from all criteria and from who survives everything (n,) bool: above one limit is masked.

    Sound takes every criterion to be certainly below its limit; anything else is undecided. `caveat` is appended.
    """
    above = [criterion for criterion in criteria if criterion.side == "above"]
    if above:
        # Where both hold, gradients that show the fall as well tell which comes first; the sentence says both.
        overfitted = [criterion for criterion in above if criterion.verdict == OVERFITTED]
        only = len(overfitted) == len(above)
        name = OVERFITTED if overfitted and (only or overfitted[0].plain) else HIDDEN
        found = "; ".join(map(str, above))
        return Verdict(name, _with(f"{name}: {found}", caveat))
    accuracy = f"{100 * share(robust):.1f} % of {len(robust)} images survive every attack that was run"
    unsettled = [criterion for criterion in criteria if criterion.side == "open"]
    if unsettled:
        return _undecided(unsettled, caveat)
    if share(robust) < NEAR_ZERO:
        return Verdict(NOT_ROBUST, _with(f"{NOT_ROBUST}: {accuracy}, and its gradients lead there", caveat))
    return Verdict(SOUND, _with(f"{SOUND}: {accuracy}, and gradients missed little", caveat))


def undefined_verdict(undefined: int, n: int, caveat: str = "") -> Verdict:
    """Of a network whose outputs are not finite on `undefined` of n images."""
    what = f"outputs are not finite on {undefined} of {n} images, so nobody can say what the network answers there"
    return Verdict(UNDECIDED, _with(f"{UNDECIDED}: {what}", caveat))


def confidence_of(looks: int) -> float:
    """The confidence of each bound where a verdict may be looked at so often: all of them together hold with 95 %.

    By Bonferroni's inequality: each look gets its share of the 5 %.

    >>> confidence_of(1), confidence_of(2)
    (0.95, 0.975)
    """
    return CONFIDENCE if looks == 1 else 1 - (1 - CONFIDENCE) / looks


def more_images(criteria: Sequence[Criterion]) -> int | None:
    """How many images are expected to settle a verdict that these leave undecided; None where it is settled.

    Where a difference is at its limit as far as can be seen, four times as many: they halve the interval.
    """
    unsettled = [criterion for criterion in criteria if criterion.side == "open"]
    if not unsettled or any(criterion.side == "above" for criterion in criteria):
        return None
    return max(AT_LIMIT * criterion.n if criterion.images is None else criterion.images for criterion in unsettled)


def _undecided(unsettled: Sequence[Criterion], caveat: str) -> Verdict:
    n = max(criterion.n for criterion in unsettled)
    images = None if any(criterion.images is None for criterion in unsettled) else more_images(unsettled)
    # The one that needs most images; where there are several, the reader has the table.
    widest = max(unsettled, key=lambda criterion: criterion.images or math.inf)
    more = f", and {len(unsettled) - 1} more like it" if len(unsettled) > 1 else ""
    if images is None:
        ask = f"{n} images cannot tell it from the limit; {AT_LIMIT * n} images would halve the interval"
    else:
        ask = f"about {images} images would tell"
    return Verdict(UNDECIDED, _with(f"{UNDECIDED} with {n} images: {widest}{more}; {ask}", caveat), images)


def _with(sentence: str, caveat: str) -> str:
    return f"{sentence}. {caveat[0].upper()}{caveat[1:]}." if caveat else f"{sentence}."


def _paired(verdict: str, a: Tensor, b: Tensor, threshold: float, confidence: float) -> Criterion:
    # The ends of a two-sided 90 % interval are one-sided 95 % bounds.
    test = mcnemar(a, b, confidence=2 * confidence - 1)
    return Criterion(verdict, test.difference, threshold, test.ci_low, test.ci_high, test.n, needed(a, b, threshold, confidence))


def _images_for_share(value: float, threshold: float, n: int, confidence: float) -> int | None:
    """How many images would tell a share from a limit, with the power of `statistics.needed`."""
    from scipy.stats import norm

    if value == threshold:
        return None
    z = float(norm.ppf(confidence) + norm.ppf(POWER))
    spread = max(value * (1 - value), threshold * (1 - threshold))
    return max(n + 1, math.ceil(z * z * spread / (value - threshold) ** 2))
