"""What a check says: a value, the threshold it is held against, the counts behind it, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# How a value is to be read and printed; JSON has fractions and plain numbers.
Unit = Literal["share", "points", "number"]


@dataclass(frozen=True)
class Check:
    """One sign of masked gradients, looked for in one network.

    It is `tripped` where `value` is on the wrong side of `threshold` (above it unless `trips` is ``"below"``); None
    where it could not be run, which `evidence` then explains. `counts` are whole numbers of images behind the value,
    `advice` says what to do about it, and is empty unless it tripped or was not run.
    """

    name: str
    value: float | None
    threshold: float | None
    tripped: bool | None
    counts: dict[str, int] = field(default_factory=dict)
    evidence: str = ""
    advice: str = ""
    unit: Unit = "share"
    trips: Literal["above", "below"] = "above"

    def row(self) -> dict[str, Any]:
        """The fields of a check in JSON."""
        names = ("name", "value", "threshold", "tripped", "counts", "evidence", "advice")
        return {name: getattr(self, name) for name in names}


def held(
    name: str,
    value: float,
    threshold: float,
    evidence: str,
    advice: str,
    *,
    counts: dict[str, int] | None = None,
    unit: Unit = "share",
    trips: Literal["above", "below"] = "above",
    bound: float | None = None,
) -> Check:
    """A value held against its threshold; where a confidence `bound` is given, that decides in the value's place.

    >>> held("gap", 0.2, 0.15, "20 images of 100", "attack harder", bound=0.13).tripped
    False
    """
    decisive = value if bound is None else bound
    tripped = decisive > threshold if trips == "above" else decisive < threshold
    return Check(name, float(value), threshold, bool(tripped), counts or {}, evidence, advice if tripped else "", unit, trips)


def not_run(name: str, why: str, advice: str = "") -> Check:
    """A check that has nothing to say here."""
    return Check(name, None, None, None, {}, why, advice)
