"""The rows of a finished study's report: checkpoints, accuracies, clarity, references, judges and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from vizrobust.clarity import METRICS, excluded, identified, phases_scrambled
from vizrobust.compute import versions
from vizrobust.features import Logit, picture_key
from vizrobust.features.pictures import in_tiles, read_png, to_uint8
from vizrobust.models import LOGITS
from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.corruption import SMALLEST
from vizrobust.runs import Row, write_png
from vizrobust.study.clarity_scores import LayerScores, PictureSet, metric_rows, primary_rows
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES, FEWEST_SEEDS
from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.power import achieved
from vizrobust.study.protocol import SWEEP
from vizrobust.study.report import NATURAL_REFERENCE, RANDOM_REFERENCE, START_REFERENCE, StudyReport, mean
from vizrobust.study.run import Study

EXEMPLARS = 9
# Share of the phases that is left -> the name of the reference.
STRUCTURE = {0.3: "natural, 30 % of its phases", 0.0: "natural, phases scrambled"}


def report_of(study: Study, command: str) -> StudyReport:
    """The report of a study that ran to its end; writes the exemplars' pictures into its folder."""
    found: list[LayerScores] = study.facts["measured"]
    references: list[StudyCheckpoint] = study.facts["references"]
    random = {one.checkpoint.name for one in references}
    natural = list(_natural(study, [one for one in found if one.checkpoint not in random]))
    rows = [*natural, *_of_random(found, random), *_before(found, random)]
    report: dict[str, Any] = {
        "command": command,
        "versions": versions(),
        "threads": study.compute.threads,
        "device": study.compute.device.type,
        "prereg": study.facts["prereg"],
        "data": _data(study),
        "scope": "inferential" if _seeds(study.compared) >= FEWEST_SEEDS and not study.plan.quick else "descriptive",
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
        **({"encoder": _judge(study, study.encoder, rows) | {"kind": "encoder"}} if study.encoder is not None else {}),
        "scales": [scale.row() for scale in study.facts["scales"].values()],
        "distance": [{"checkpoint": one.checkpoint, "recipe": one.recipe, **row} for one in found for row in one.distance],
        "excitation": [_excitation(one) for one in found],
        "matching": [pairs.row(name, study.plan.layer) for name, pairs in study.matched_units.items()],
        "path_similarity": [one.path_row() for one in found if one.path is not None],
        "confounds": _confounds(study),
        **{key: study.facts[key] for key in (ATTRIBUTION, FEATURES) if key in study.facts},
        "pictures": list(_pictures(study, found)),
        "exemplars": list(_exemplars(study)),
        "recipes": {job.recipe.name: repr(job.recipe) for job in study.jobs(study.compared[0].checkpoint)},
    }
    if wanted := report["prereg"]["content"].get("power"):
        report["power"] = achieved(StudyReport(report), wanted)
    return StudyReport.conclude(report)


def _left_out(study: Study) -> list[str]:
    small = study.plan.corruption_images and min(study.data.shape[1:]) < SMALLEST
    left_out = study.plan.left_out(provided=bool(study.provided))
    return [*left_out, *([f"no corruptions of images below {SMALLEST} px"] if small else [])]


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
    return {**about, "ratio": one.ratio, "radius": one.radius, "reached": one.activation_reached}


def _reference(name: str, recipe: str | None, layer: str, row: Row) -> Row:
    value = mean(row["values"])
    return {"reference": name, "recipe": recipe, "layer": layer, "value": value} | {
        key: row[key] for key in ("metric", "judge", "control")
    }


def _natural(study: Study, compared: Sequence[LayerScores]) -> Iterable[Row]:
    """The metrics of each class's most exciting exemplars in place of its pictures: one reference for all recipes."""
    questions, seeds = study.facts["questions"], study.plan.image_seeds
    images = torch.stack([questions.exemplars.images[order.index[:seeds]] for order in questions.shared_exemplar_rankings])
    rows = metric_rows(PictureSet(questions.units, images), questions, questions.shared, questions.shared)
    yield from (_reference(NATURAL_REFERENCE, None, LOGITS, row) for row in rows)
    # Controls whose order is known: the same exemplars with less and less structure.
    streams = Streams(0, range(images.shape[0] * seeds), "structure")
    for coherence, name in STRUCTURE.items():
        less = phases_scrambled(images.flatten(0, 1), coherence, streams.child(name)).reshape(images.shape)
        found = primary_rows(PictureSet(questions.units, less), questions, questions.shared, None)
        yield from (_reference(name, None, LOGITS, row) for row in found)
    for one in compared:
        yield from (_reference(NATURAL_REFERENCE, one.recipe, one.layer, row) for row in one.natural)


def _of_random(found: Sequence[LayerScores], random: set[str]) -> Iterable[Row]:
    for one in found:
        if one.checkpoint in random:
            yield from (_reference(RANDOM_REFERENCE, one.recipe, one.layer, row) for row in one.clarity)


def _before(found: Sequence[LayerScores], random: set[str]) -> Iterable[Row]:
    """The start images are the same for every checkpoint, so those of the random network stand for all."""
    for one in found:
        if one.checkpoint in random:
            yield from (_reference(START_REFERENCE, one.recipe, one.layer, row) for row in one.start)


def _judge(study: Study, judge: Any, references: Sequence[Row]) -> Row:
    """A judge with its eligibility under each recipe; one reason excludes it."""

    def values(name: str, recipe: str | None) -> dict[str, float | None]:
        return {
            row["metric"]: row["value"]
            for row in references
            if row["reference"] == name and row["recipe"] == recipe and row["judge"] == judge.name
            and row["control"] is None and row["layer"] == LOGITS
        }  # fmt: skip

    natural = values(NATURAL_REFERENCE, None)
    share = identified(natural)
    units = len(study.data.classes)
    reasons = [excluded(share, units, natural, values(RANDOM_REFERENCE, recipe.name)) for recipe in study.plan.recipes]
    named = [f"under {recipe.name}: {why}" for recipe, why in zip(study.plan.recipes, reasons, strict=True) if why]
    scale = study.facts["scales"].get(judge.name)
    named += [scale.disqualified] if scale is not None and scale.disqualified else []
    return {
        "name": judge.name, "kind": judge.kind, "family": judge.family, "weights_sha256": judge.sha256, "clean": judge.clean,
        "natural_identification": share, "disqualified": "; ".join(named) or None,
    }  # fmt: skip


def _confounds(study: Study) -> list[Row]:
    """Confounds, which vary with K too: means over training seeds."""
    rows = [_checkpoint(study, one) for one in study.compared]
    groups = dict.fromkeys(row["group"] for row in rows)

    def over_seeds(group: str, name: str) -> float | None:
        values = [row[name] for row in rows if row["group"] == group and row[name] is not None]
        return fmean(values) if values else None

    return [
        {"group": group, "steps": next(row["k"] for row in rows if row["group"] == group)}
        | {name: over_seeds(group, name) for name in ("clean", "delta_linf", "delta_l2", "gradient_passes")}
        for group in groups
    ]


def _pictures(study: Study, found: Sequence[LayerScores]) -> Iterable[Row]:
    """The first image seed of every class unit, and of the hidden units of the first training seed, with their scores."""
    first = min(one.seed for one in study.compared)
    scores = _unit_scores(found, {judge.name for judge in (*study.judges, study.encoder) if judge is not None})
    for one in study.compared:
        for job in study.jobs(one.checkpoint):
            of_class = isinstance(job.objective, Logit)
            if job.sign < 0 or not (of_class or one.seed == first):
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
                    "objective": row["objective"], "batch_size": row.get("batch_size", job.batch_size),
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
            write_png(study.folder / name, to_uint8(in_tiles(questions.exemplars.images[index], study.data.shape[0])), {})
            names.append(name)
        yield {"layer": LOGITS, "unit": unit, "images": names}


def _seeds(compared: Sequence[StudyCheckpoint]) -> int:
    return len({one.seed for one in compared if one.role == SWEEP})
