"""From a finished study to report.json, and from the rows of a report.json to its trends and verdict."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from vizrobust.clarity import METRICS, excluded
from vizrobust.compute import versions
from vizrobust.features import Logit, picture_key
from vizrobust.features.pictures import read_png, to_uint8
from vizrobust.robustness.corruptions.corruption import SMALLEST
from vizrobust.runs import Row, write_png, write_text
from vizrobust.study.clarity_scores import MATCHED, LayerScores, PictureSet, metric_rows
from vizrobust.study.contrasts import CONTRASTS
from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.run import Study
from vizrobust.study.summary import Verdict, verdict
from vizrobust.study.verdicts import DIAGNOSTIC, ContrastResult, MetricSeries, contrast_results

FORMAT = 1
FILE = "report.json"
BEFORE = "before optimization"
EXEMPLARS = 9
LOGITS = "logits"


def report_of(study: Study, command: str) -> dict[str, Any]:
    """The report of a study that ran to its end; writes the exemplars' pictures into its folder."""
    found: list[LayerScores] = study.facts["measured"]
    references: list[StudyCheckpoint] = study.facts["references"]
    random = {one.checkpoint.name for one in references}
    natural = list(_natural(study, [one for one in found if one.checkpoint not in random]))
    rows = [*natural, *_of_random(found, random), *_before(found, random)]
    report: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "versions": versions(),
        "threads": study.compute.threads,
        "device": study.compute.device.type,
        "prereg": study.facts["prereg"],
        "data": _data(study),
        "scope": "inferential" if _seeds(study.compared) >= 3 and not study.plan.quick else "descriptive",
        "quick": study.plan.quick,
        "left_out": _left_out(study),
        "checkpoints": [_checkpoint(study, one) for one in [*study.compared, *references]],
        "accuracy": study.facts["accuracy"],
        "metrics": _metrics(len(study.data.classes)),
        "clarity": [
            *(one.labelled(row) for one in found if one.checkpoint not in random for row in one.clarity),
            *study.facts["matched"],
        ],
        "references": rows,
        "judges": [_judge(study, judge, rows) for judge in study.judges],
        "distance": [{"checkpoint": one.checkpoint, "recipe": one.recipe, **row} for one in found for row in one.distance],
        "excitation": [_excitation(one) for one in found],
        "matching": [pairs.row(name, study.plan.layer) for name, pairs in study.matched_units.items()],
        "path_similarity": [one.path_row() for one in found if one.path is not None],
        "confounds": _confounds(study),
        "pictures": list(_pictures(study, found)),
        "exemplars": list(_exemplars(study)),
        "recipes": {job.recipe.name: repr(job.recipe) for job in study.jobs(study.compared[0].checkpoint)},
    }
    conclude(report)
    report["rows_sha256"] = rows_sha256(report)
    return report


def conclude(report: dict[str, Any]) -> None:
    """Put `contrast_results` and `verdict` into a report, from its own rows alone."""
    contrast_results, verdict = judged(report)
    report["trends"] = [one.row() for one in contrast_results if one.series.control is None]
    report["verdict"] = verdict.row()


def _left_out(study: Study) -> list[str]:
    small = study.plan.corruption_images and min(study.data.shape[1:]) < SMALLEST
    return study.plan.left_out(given=bool(study.given)) + ([f"no corruptions of images below {SMALLEST} px"] if small else [])


def _metrics(classes: int) -> list[Row]:
    return [
        {"name": one.name, "title": one.title, "role": one.role, "direction": one.direction,
         "chance": one.chance_level(classes, classes)}
        for one in METRICS.values()
    ]  # fmt: skip


def _data(study: Study) -> Row:
    data = study.data
    images = min(study.plan.images, len(data.test))
    return {
        "name": data.name, "classes": list(data.classes), "shape": list(data.shape), "eps": study.chosen.eps,
        "test_images": images, "eps_rule": study.chosen.row(),
    }  # fmt: skip


def _checkpoint(study: Study, one: StudyCheckpoint) -> Row:
    path = study.folder / "checkpoints" / f"{one.checkpoint.name}.safetensors"
    ref = str(path.relative_to(study.folder)) if path.is_file() else one.checkpoint.reference
    row = one.row(ref, study.facts["masked"].get(one.checkpoint.name))
    return row | {"clean": _clean(study).get(one.checkpoint.name)}


def _clean(study: Study) -> dict[str, float]:
    """Clean accuracy on the images that were attacked."""
    return {row["checkpoint"]: row["accuracy"] for row in study.facts["accuracy"] if row["kind"] == "clean"}


def _excitation(one: LayerScores) -> Row:
    about = {"checkpoint": one.checkpoint, "recipe": one.recipe, "layer": one.layer}
    return {**about, "ratio": one.ratio, "radius": one.radius, "reached": one.reached}


def _reference(name: str, recipe: str | None, layer: str, row: Row) -> Row:
    value = mean(row["values"])
    return {"reference": name, "recipe": recipe, "layer": layer, "value": value} | {
        key: row[key] for key in ("metric", "judge", "control")
    }


def _natural(study: Study, compared: Sequence[LayerScores]) -> Iterable[Row]:
    """The same questions with each class's most exciting exemplars in place of its pictures; no recipe has a say."""
    questions, seeds = study.facts["questions"], study.plan.image_seeds
    images = torch.stack([questions.exemplars.images[order.index[:seeds]] for order in questions.shared_exemplar_rankings])
    rows = metric_rows(PictureSet(questions.units, images), questions, questions.shared, questions.shared)
    yield from (_reference(NATURAL, None, LOGITS, row) for row in rows)
    for one in compared:
        yield from (_reference(NATURAL, one.recipe, one.layer, row) for row in one.natural)


def _of_random(found: Sequence[LayerScores], random: set[str]) -> Iterable[Row]:
    for one in found:
        if one.checkpoint in random:
            yield from (_reference(RANDOM, one.recipe, one.layer, row) for row in one.clarity)


def _before(found: Sequence[LayerScores], random: set[str]) -> Iterable[Row]:
    """The start images are the same for every checkpoint, so those of the random network stand for all."""
    for one in found:
        if one.checkpoint in random:
            yield from (_reference(BEFORE, one.recipe, one.layer, row) for row in one.start)


def _judge(study: Study, judge: Any, references: Sequence[Row]) -> Row:
    """A judge with its qualification, asked for each recipe; one reason is enough."""

    def values(name: str, recipe: str | None) -> dict[str, float | None]:
        return {
            row["metric"]: row["value"]
            for row in references
            if row["reference"] == name and row["recipe"] == recipe and row["judge"] == judge.name
            and row["control"] is None and row["layer"] == LOGITS
        }  # fmt: skip

    natural = values(NATURAL, None)
    share = float(natural.get("identification") or 0.0)
    units = len(study.data.classes)
    reasons = [excluded(share, units, natural, values(RANDOM, recipe.name)) for recipe in study.plan.recipes]
    named = [f"under {recipe.name}: {why}" for recipe, why in zip(study.plan.recipes, reasons, strict=True) if why]
    return {
        "name": judge.name, "kind": judge.kind, "weights_sha256": judge.sha256, "clean": judge.clean,
        "natural_identification": share, "disqualified": "; ".join(named) or None,
    }  # fmt: skip


def _confounds(study: Study) -> list[Row]:
    """What else varies with K: means over training seeds."""
    rows = [_checkpoint(study, one) for one in study.compared]
    groups = dict.fromkeys(row["group"] for row in rows)

    def mean(group: str, name: str) -> float | None:
        values = [row[name] for row in rows if row["group"] == group and row[name] is not None]
        return fmean(values) if values else None

    return [
        {"group": group, "steps": next(row["k"] for row in rows if row["group"] == group)}
        | {name: mean(group, name) for name in ("clean", "delta_linf", "delta_l2", "gradient_passes")}
        for group in groups
    ]


def _pictures(study: Study, found: Sequence[LayerScores]) -> Iterable[Row]:
    """The first image seed of every class unit, and of the hidden units of the first training seed, with their scores."""
    scores = _unit_scores(found, {judge.name for judge in study.judges})
    for one in study.compared:
        for job in study.jobs(one.checkpoint):
            of_class = isinstance(job.objective, Logit)
            if job.sign < 0 or not (of_class or one.seed == 0):
                continue
            run = study.pictures(job)
            rows = {picture_key(row): row for row in run.rows()}
            for unit in job.units:
                row = rows[job.key(one.checkpoint.id, unit, job.seeds[0])]
                file = run.folder / row["image"]
                yield {
                    "checkpoint": one.checkpoint.name, "recipe": job.recipe.name, "layer": job.layer, "unit": unit,
                    "unit_name": study.data.classes[unit] if of_class else f"unit {unit}", "seed": row["seed"],
                    "image": str(file.relative_to(study.folder)), "pixels_sha256": sha256_of(to_uint8(read_png(file))),
                    "score": row["score"], "saturated_share": row["saturated_share"], "status": row["status"],
                    "objective": row["objective"], "batch_size": job.batch_size,
                    "scores": scores.get((one.checkpoint.name, job.recipe.name, job.layer, unit), {}),
                }  # fmt: skip


def sha256_of(pixels: np.ndarray[Any, Any]) -> str:
    """The hash of a picture's pixels, whatever text its file carries."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _unit_scores(found: Sequence[LayerScores], judges: set[str]) -> dict[tuple[str, str, str, int], dict[str, float]]:
    """(checkpoint, recipe, layer, unit) -> metric -> its value, the mean over judges where there are several."""
    values: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
    for one in found:
        for row in one.clarity:
            if row["control"] is not None or (row["judge"] is not None and row["judge"] not in judges):
                continue
            for unit, value in zip(row["units"], row["values"], strict=True):
                if value is not None:
                    of_unit = values.setdefault((one.checkpoint, one.recipe, one.layer, unit), {})
                    of_unit.setdefault(row["metric"], []).append(value)
    return {key: {metric: round(fmean(these), 5) for metric, these in of.items()} for key, of in values.items()}


def _exemplars(study: Study) -> Iterable[Row]:
    """Each class's most exciting images of the validation split, as files of the study's folder."""
    questions = study.facts["questions"]
    for unit, order in zip(questions.units, questions.shared_exemplar_rankings, strict=True):
        names = []
        for place, index in enumerate(order.index[:EXEMPLARS].tolist()):
            name = f"exemplars/{unit}-{place}.png"
            write_png(study.folder / name, to_uint8(questions.exemplars.images[index]), {})
            names.append(name)
        yield {"layer": LOGITS, "unit": unit, "images": names}


def _seeds(compared: Sequence[StudyCheckpoint]) -> int:
    return len({one.seed for one in compared if one.role == "dose"})


def rows_sha256(report: Mapping[str, Any]) -> str:
    """The hash of the rows from which everything else of a report follows."""
    rows = [report[name] for name in ("checkpoints", "clarity", "accuracy", "references", "judges")]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def write_report(study: Study, report: Mapping[str, Any]) -> Path:
    """report.json, whole or not at all."""
    path = study.folder / FILE
    # On one line: thousands of rows, which nobody reads as text.
    write_text(path, json.dumps(report, ensure_ascii=False) + "\n")
    return path


ReportRow = Mapping[str, Any]
NATURAL, RANDOM = "natural", "random network"
# Matched units are units like others: the references of pictures as rendered are their scale.
SCALES: Mapping[str | None, str | None] = {MATCHED: None}


def judged(report: Mapping[str, Any]) -> tuple[list[ContrastResult], Verdict]:
    """All trends and the verdict from `checkpoints`, `accuracy`, `metrics`, `clarity`, `references` and `judges`.

    The rows `contrast_results` and `verdict` of report.json are ``[trend.row() for trend in found if trend.series.control is
    None]`` and ``verdict.row()``: controls have a say in the sentences alone. Only checkpoints with the role ``dose``
    enter; disqualified judges do not.
    """
    out = {judge["name"]: judge["disqualified"] for judge in report["judges"] if judge["disqualified"]}
    found = contrast_results(series_of(report), accuracies(report))
    order = {contrast: place for place, contrast in enumerate(CONTRASTS)}
    found.sort(key=lambda trend: order[trend.contrast.name])
    return found, verdict(found, out)


def series_of(report: Mapping[str, Any]) -> list[MetricSeries]:
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
        found.append(MetricSeries(*about, values, ends[0], ends[1], control))
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


def doses(checkpoints: Sequence[ReportRow]) -> dict[str, tuple[int, int]]:
    """Checkpoint -> (K, training seed), for those of the dose family."""
    return {row["name"]: (row["k"], row["seed"]) for row in checkpoints if row["role"] == "dose" and row["k"] is not None}


def reference(
    rows: Sequence[ReportRow], name: str, metric: str, recipe: str, judge: str | None, layer: str, control: str | None
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
