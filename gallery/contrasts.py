"""The contrasts of a study, as the tables of docs/study.md: estimate, 95 % interval and verdict for each metric and recipe.

python gallery/contrasts.py gallery/imagenette-study/report.json

Below them, for H1: how far K = 0 and the mean of K >= 1 go together over the training seeds that have both.
"""

# ruff: noqa: T201  a script that prints its table
import sys

import numpy as np

from vizrobust.study import StudyReport
from vizrobust.study.verdicts import ContrastResult

METRICS = {
    "transfer": ("log-odds of the class", 2),
    "forced_choice": ("two-alternative choice, AUC", 3),
    "natural_equivalent": ("natural-equivalent clarity", 3),
}


def number(value: float, decimals: int, sign: str = "") -> str:
    """A number without the zero before its point.

    >>> number(-0.0512, 3), number(2.16, 2, "+")
    ('-.051', '+2.16')
    """
    text = f"{value:{sign}.{decimals}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def cells(result: ContrastResult, decimals: int) -> list[str]:
    """Estimate with its interval, smallest effect of interest, verdict."""
    found, interest = result.contrast, result.smallest_effect
    span = "" if found.ci_low is None else f" [{number(found.ci_low, decimals)}, {number(found.ci_high, decimals)}]"
    verdict = "a plateau" if result.dose_response_shape == "plateau" else result.verdict
    return [number(found.estimate, decimals, "+") + span, "-" if interest is None else number(interest, decimals), verdict]


def paired(result: ContrastResult) -> float:
    """The correlation of K = 0 with the mean of K >= 1 over the seeds of a contrast."""
    values, seeds = result.series.values, result.contrast.seeds
    attacked = sorted({k for k, _ in values if k})
    return float(
        np.corrcoef([values[0, one] for one in seeds], [np.mean([values[k, one] for k in attacked]) for one in seeds])[0, 1]
    )


report = StudyReport.read(sys.argv[1])
# The mean over judges stands behind each judge's own; the 2AFC of an encoder has no judges.
tables = {
    (one.contrast.name, one.series.layer, one.series.metric, one.series.recipe): one
    for one in report.results
    if one.series.control is None and one.series.metric in METRICS and one.contrast.estimate is not None
}
recipes = list(dict.fromkeys(recipe for *_, recipe in tables))
columns = [text for recipe in recipes for text in (f"`{recipe}` [95 % interval]", "of interest from", "verdict")]
print("| contrast | measured by |", " | ".join(columns), "|")
print("|---" * (2 + len(columns)) + "|")
for contrast, layer in dict.fromkeys(key[:2] for key in tables):
    for metric, (name, decimals) in METRICS.items():
        mine = [tables[key] for recipe in recipes if (key := (contrast, layer, metric, recipe)) in tables]
        if mine:
            print(f"| {contrast} {layer} | {name} |", " | ".join(text for one in mine for text in cells(one, decimals)), "|")
print("\ncorrelation of K = 0 with the mean of K >= 1 over training seeds:")
for (contrast, layer, metric, recipe), one in tables.items():
    if contrast == "H1":
        print(f"{layer}, {metric}, {recipe}: {number(paired(one), 2)} over {len(one.contrast.seeds)} seeds")
