"""The metrics by name, each with its role in the study: the one place from which study and report read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vizrobust.clarity.identification import identification
from vizrobust.clarity.metrics import forced_choice, recognised, transfer
from vizrobust.clarity.naturalness import kernel_distance, nearest_natural
from vizrobust.clarity.paths import path_similarity
from vizrobust.clarity.seeds import seed_agreement
from vizrobust.clarity.spectrum import high_frequency_share, nyquist_ratio, spectrum_distance

Role = Literal["primary", "secondary", "diagnostic"]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, what it is for and how to read it.

    `direction` is 1 where larger is clearer and -1 where smaller is. `chance` is the level of pictures that say
    nothing, where it is one number; where it depends on how many there are to choose from, `among` says of what.
    `class_units` metrics need the logits of a judge and exist for class units alone; `judged` ones need a judge or
    encoder at all.
    """

    name: str
    title: str
    role: Role
    direction: Literal[1, -1]
    function: Callable[..., Any]
    chance: float | None = None
    among: Literal["", "units", "classes"] = ""
    class_units: bool = False
    judged: bool = True

    def chance_level(self, units: int, classes: int) -> float | None:
        """The chance level among so many units, for a judge of so many classes; None where there is none.

        >>> METRICS["identification"].chance_level(units=20, classes=10), METRICS["transfer"].chance_level(20, 10)
        (0.05, None)
        """
        if self.name == "reciprocal_rank":
            return sum(1 / rank for rank in range(1, units + 1)) / units
        return 1 / {"units": units, "classes": classes}[self.among] if self.among else self.chance


def _catalogue(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


# Roles: docs/measuring-clarity.md, "Metrics and their roles". The primary ones enter the verdict; diagnostics never do.
METRICS = _catalogue(
    Metric("transfer", "Transfer to a judge (log-odds)", "primary", 1, transfer, class_units=True),
    Metric("forced_choice", "Two-alternative choice, hard (AUC)", "primary", 1, forced_choice, chance=0.5),
    Metric("recognised", "Recognised by a judge (top-1)", "secondary", 1, recognised, among="classes", class_units=True),
    Metric("forced_choice_easy", "Two-alternative choice, easy (AUC)", "secondary", 1, forced_choice, chance=0.5),
    Metric("forced_choice_own", "Two-alternative choice, own queries (AUC)", "secondary", 1, forced_choice, chance=0.5),
    Metric("identification", "Identification (top-1)", "secondary", 1, identification, among="units"),
    Metric("reciprocal_rank", "Identification (mean reciprocal rank)", "secondary", 1, identification, among="units"),
    Metric("seed_agreement", "Agreement of seeds (cosine)", "secondary", 1, seed_agreement, chance=0.0),
    Metric("nearest_natural", "Distance to the nearest natural image", "secondary", -1, nearest_natural),
    Metric("kernel_distance", "Kernel distance to natural images (KID)", "secondary", -1, kernel_distance),
    Metric("spectrum_distance", "Distance of spectra", "diagnostic", -1, spectrum_distance, judged=False),
    Metric("high_frequency_share", "Power above 1/4 cycle per pixel", "diagnostic", -1, high_frequency_share, judged=False),
    Metric("nyquist_ratio", "Power at Nyquist over its neighbours", "diagnostic", -1, nyquist_ratio, judged=False),
    Metric("path_similarity", "Path similarity", "diagnostic", 1, path_similarity, judged=False),
)
