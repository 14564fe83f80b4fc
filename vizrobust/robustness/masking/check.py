"""A masking check's result (value, threshold, counts, advice), the network under test and the budget of its attacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from vizrobust.attacks import Attack, Ball
from vizrobust.data import Split
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class AttackBudget:
    """How hard the attacks try: PGD's `steps` and `restarts`, the `queries` of Square, the `draws` of noise.

    What another attack breaks meets PGD again, with `confirm_restarts` restarts, before it counts as hidden from gradients:
    another round of any attack finds a few images more. Ten are those of PGD-50-10 (Wong et al. 2020).
    `probes` images, those that are classified correctly first, serve the checks that look at gradients and losses.
    """

    steps: int = 50
    restarts: int = 3
    confirm_restarts: int = 10
    queries: int = 1000
    draws: int = 100
    probes: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "confirm_restarts", "draws", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"AttackBudget: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class NetworkUnderTest:
    """A network under diagnosis and what is known of it.

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
    """One sign of masked gradients, looked for in one network.

    It is `flagged` where `value` is on the wrong side of `threshold` (above it unless `flagged_if` is ``"below"``); None
    where it could not be run, which `evidence` then explains. `counts` are whole numbers of images behind the value,
    `advice` says what to do about it, and is empty unless it tripped or was not run.
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
            "counts": self.counts, "evidence": self.evidence, "advice": self.advice,
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
    """A value held against its threshold; where a confidence `bound` is given, that decides in the value's place.

    >>> threshold_check("gap", 0.2, 0.15, "20 images of 100", "attack harder", bound=0.13).flagged
    False
    """
    decisive = value if bound is None else bound
    flagged = decisive > threshold if flagged_if == "above" else decisive < threshold
    return Check(
        name, float(value), threshold, bool(flagged), counts or {}, evidence, advice if flagged else "", unit, flagged_if
    )


def skipped(name: str, why: str, advice: str = "") -> Check:
    """A check that has nothing to say here."""
    return Check(name, None, None, None, {}, why, advice)
