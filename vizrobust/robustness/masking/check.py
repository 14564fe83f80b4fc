"""A masking check's result (value, threshold, counts, advice), the network under test and the budget of its attacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from vizrobust.attacks import Attack, Ball
from vizrobust.attacks.attack import check_least
from vizrobust.data import Split
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
