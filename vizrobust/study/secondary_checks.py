"""Checks of a report's secondary outcomes: that each is there which the plan asks for, of every network, and can be."""

from __future__ import annotations

from collections.abc import Iterator

from vizrobust.attribution import MEASURES
from vizrobust.runs import Row
from vizrobust.study.protocol import Plan
from vizrobust.study.report import StudyReport
from vizrobust.study.secondary_contrasts import ATTRIBUTION, FEATURES

# What the measures of a map can be at most and at least; the others are 0 or more.
RANGES = {"deletion": (-1.0, 1.0), "insertion": (-1.0, 1.0), "weights": (-1.0, 1.0), "gini": (0.0, 1.0)}


def secondary(report: StudyReport, plan: Plan) -> Iterator[str]:
    names = [row["name"] for row in report["checkpoints"]]
    asked = {ATTRIBUTION: plan.explain_images, FEATURES: plan.feature_images}
    yield from (f"{key} is there, the plan asks for none" for key, images in asked.items() if key in report and not images)
    if plan.explain_images:
        yield from _attribution(report[ATTRIBUTION], plan, names)
    if plan.feature_images:
        rows = report[FEATURES]
        if [(row["checkpoint"], row["layer"]) for row in rows] != [(name, plan.layer) for name in names]:
            yield "effective_features is not one row for each network, of the plan's layer"
        yield from (
            f"{row['value']} features of {row['checkpoint']} cannot be"
            for row in rows
            if row["value"] is not None and row["value"] < 1
        )


def _attribution(rows: list[Row], plan: Plan, names: list[str]) -> Iterator[str]:
    methods = [repr(method) for method in plan.explain_methods]
    wanted = [(name, method, measure) for name in names for method in methods for measure in MEASURES]
    if [(row["checkpoint"], row["method"], row["measure"]) for row in rows] != wanted:
        yield "attribution is not one row for each network, method of the plan and measure"
        return
    counts = {len(row["values"]) for row in rows}
    if len(counts) != 1 or not 1 <= max(counts) <= plan.explain_images:
        yield f"attribution is of {sorted(counts)} images, the plan asks for {plan.explain_images}"
    for row in rows:
        low, high = RANGES.get(row["measure"], (0.0, float("inf")))
        if any(value is not None and not low <= value <= high for value in row["values"]):
            yield f"a {row['measure']} of {row['checkpoint']}, {row['method']} is not from {low:g} to {high:g}"
