"""From the rows of report.json to the study's trends and verdict, the same way for whoever has the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vizrobust.study.contrasts import CONTRASTS
from vizrobust.study.scores import MATCHED
from vizrobust.study.summary import Verdict, verdict
from vizrobust.study.verdicts import DIAGNOSTIC, Series, Trend, trends

Row = Mapping[str, Any]
NATURAL, RANDOM = "natural", "random network"
# Matched units are units like others: the references of pictures as rendered are their scale.
SCALES: Mapping[str | None, str | None] = {MATCHED: None}


def judged(report: Mapping[str, Any]) -> tuple[list[Trend], Verdict]:
    """All trends and the verdict from `checkpoints`, `accuracy`, `metrics`, `clarity`, `references` and `judges`.

    The rows `trends` and `verdict` of report.json are ``[trend.row() for trend in found if trend.series.control is
    None]`` and ``verdict.row()``: controls have a say in the sentences alone. Only checkpoints with the role ``dose``
    enter; disqualified judges do not.
    """
    out = {judge["name"]: judge["disqualified"] for judge in report["judges"] if judge["disqualified"]}
    found = trends(series_of(report), accuracies(report))
    order = {contrast: place for place, contrast in enumerate(CONTRASTS)}
    found.sort(key=lambda trend: order[trend.contrast.name])
    return found, verdict(found, out)


def series_of(report: Mapping[str, Any]) -> list[Series]:
    """One series for each metric, recipe, qualified judge, control and layer of `clarity`, diagnostics left away.

    The value of a cell is the mean over those units that have one, None where none has.
    """
    cells = doses(report["checkpoints"])
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    out = {judge["name"] for judge in report["judges"] if judge["disqualified"]}
    tables: dict[tuple[Any, ...], dict[tuple[int, int], float | None]] = {}
    for row in report["clarity"]:
        metric = metrics.get(row["metric"])
        if metric is None or metric["role"] == DIAGNOSTIC or row["judge"] in out or row["checkpoint"] not in cells:
            continue
        key = (row["metric"], row["recipe"], row["judge"], row["layer"], row["control"])
        tables.setdefault(key, dict.fromkeys(cells.values()))[cells[row["checkpoint"]]] = mean(row["values"])
    found = []
    for (name, recipe, judge, layer, control), values in tables.items():
        scale = SCALES.get(control, control)
        ends = [reference(report["references"], one, name, recipe, judge, layer, scale) for one in (NATURAL, RANDOM)]
        about = (name, metrics[name]["role"], metrics[name]["direction"], recipe, judge, layer)
        found.append(Series(*about, values, ends[0], ends[1], control))
    return found


def accuracies(report: Mapping[str, Any]) -> dict[tuple[int, int], float | None]:
    """Accuracy under the strongest attack found, as a fraction, by (K, training seed); empty where none was measured.

    Of several rows for a checkpoint the lowest counts.
    """
    cells = doses(report["checkpoints"])
    found: dict[tuple[int, int], float | None] = {}
    for row in report["accuracy"]:
        if row["kind"] == "strongest" and row["checkpoint"] in cells and row["accuracy"] is not None:
            cell = cells[row["checkpoint"]]
            before = found.get(cell)
            found[cell] = row["accuracy"] if before is None else min(before, row["accuracy"])
    return found


def doses(checkpoints: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Checkpoint -> (K, training seed), for those of the dose family."""
    return {row["name"]: (row["k"], row["seed"]) for row in checkpoints if row["role"] == "dose" and row["k"] is not None}


def reference(
    rows: Sequence[Row], name: str, metric: str, recipe: str, judge: str | None, layer: str, control: str | None
) -> float | None:
    """The value of a reference; one without a recipe holds for all, and several (one for each checkpoint) are averaged."""
    return mean(
        [
            row["value"]
            for row in rows
            if (row["reference"], row["metric"], row["judge"], row["layer"], row["control"])
            == (name, metric, judge, layer, control)
            and row["recipe"] in (recipe, None)
        ]
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there.

    >>> mean([1.0, None, 2.0]), mean([None])
    (1.5, None)
    """
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(there) / len(there) if there else None
