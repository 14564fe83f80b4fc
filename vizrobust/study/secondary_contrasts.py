"""The contrasts of a study's secondary outcomes: what attribution maps are worth, and how many features count in effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vizrobust.study.contrasts import Contrast, RunValues

ATTRIBUTION, FEATURES, SECONDARY = "attribution", "effective_features", "secondary"
RATIO = "participation ratio"
# What a preregistration says of them; texts are data, as those of the protocol are.
TEXTS = {
    ATTRIBUTION: "for each method and measure the mean over the first explain_images test images, of maps of the predicted class",
    FEATURES: (
        "participation ratio of the covariance of the hidden layer's activations, over all places of the first feature_images "
        "test images"
    ),
    "inference": (
        "the contrasts over training seeds with 95 % t intervals, not corrected for their number; they are descriptions and have "
        "no verdict"
    ),
}


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
