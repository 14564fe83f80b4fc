"""A sample of a report's pictures rendered, scored by the judges and matched again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from vizrobust.clarity import NaturalScale, encoder_for, judges_for, natural_scale
from vizrobust.clarity.natural_scale import recorded_scale
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head
from vizrobust.features import RenderJob, parse_recipe, render_into
from vizrobust.features.picture_runs import frames_of, images_of
from vizrobust.features.pictures import read_png, to_uint8
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.plugins import split_code
from vizrobust.rng import Streams
from vizrobust.runs import Row, RunFolder
from vizrobust.study.clarity_scores import MATCHED, LayerScores, score_layer
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES
from vizrobust.study.protocol import UNTRAINED, Plan
from vizrobust.study.report import NATURAL_REFERENCE, RANDOM_REFERENCE, StudyReport
from vizrobust.study.report_checks import AGAIN, Check
from vizrobust.study.report_rows import sha256_of
from vizrobust.study.secondary_measures import attribution_rows, explained_images, feature_number
from vizrobust.study.stimuli import QuerySet, all_excitations, drawn_units, matched_units, picture_jobs
from vizrobust.study.verdicts import SMALLEST_EFFECT_SHARE

# Metrics that no other network has a part in; the others need the ranking of queries by all compared networks.
ALONE = ("transfer", "natural_equivalent", "recognised", "seed_agreement", "nearest_natural", "kernel_distance",
         "spectrum_distance", "high_frequency_share", "nyquist_ratio")  # fmt: skip
# The same pixels give a judge the same scores but for the order of sums.
SAME = 1e-3
EXPLAINED_AGAIN = 5


@dataclass(frozen=True)
class Again:
    """One network's class pictures under one recipe, rendered and scored again; `same`: with the stated pixels."""

    name: str
    recipe: str
    scores: LayerScores
    same: bool
    whole: bool


def scored_again(
    report: StudyReport, plan: Plan, loaded: Mapping[str, Checkpoint], data: DataSet, compute: Compute, seed: int,
    looking: Sequence[str] = (),
) -> Iterator[Check]:  # fmt: skip
    """Draw one network and recipe, render all its class pictures, and let the judges score them.

    `looking` are references of judges and the encoder that a person gives, for those of the report with the same file name.
    """
    compared = [row["name"] for row in report["checkpoints"] if row["role"] != UNTRAINED]
    whole = all(name in loaded for name in compared)
    names = sorted(loaded)
    order = Streams(seed, ["scores"], "verify").permutation(len(names) * len(plan.recipes))[0]
    place = int(order[0])
    name, recipe = names[place // len(plan.recipes)], plan.recipes[place % len(plan.recipes)].name
    checkpoint = replace(loaded[name], name=name)
    stated = {row["name"]: row["weights_sha256"] for row in report["judges"]}
    compared_here = [loaded[one] for one in names]
    given = {file_name(ref): ref for ref in looking}
    coded = [one for one in (*stated, plan.encoder) if split_code(one)[1] and file_name(one) not in given]
    if coded:
        why = f"{file_name(coded[0])} runs code of its own; give each such judge as FILE::arch=CODE.py:NAME"
        yield Check("scores of the pictures", None, why, AGAIN)
        return
    try:
        judges = [
            replace(judge, name=one)
            for one in stated
            for judge in judges_for(data.name, compared_here, compute, [given.get(file_name(one), one)], builtin=False,
                                    typed=file_name(one) in given, independent=True)
        ]  # fmt: skip
        encoder = None
        if plan.encoder:
            own = given.get(file_name(plan.encoder))
            encoder = encoder_for(own or plan.encoder, data.name, compared_here, compute, typed=own is not None)
            encoder = replace(encoder, name=plan.encoder)
    except FileNotFoundError as error:
        yield Check("scores of the pictures", None, f"a judge or the encoder is not here: {error}", AGAIN)
        return
    if {judge.name: judge.sha256 for judge in judges} != stated:
        yield Check("judges' weights", False, "the judges that are here are not the stated ones", AGAIN)
        return
    yield Check("judges' weights", True, f"{len(judges)} judges have the stated weights", AGAIN)
    for judge, row in zip(judges, report["judges"], strict=True):
        if (judge.kind, judge.clean) != (row["kind"], row["clean"]):
            yield Check(f"judge {judge.name}", False, f"it is {judge.kind} with clean accuracy {judge.clean}", AGAIN)
    scales = {row["judge"]: NaturalScale.read(row) for row in report.rows("scales")}
    for judge in judges:
        if judge.name in scales and recorded_scale(judge) is None:
            found, scale = natural_scale(judge, data.test, data.name), scales[judge.name]
            rows = zip([*found.scores, *found.errors], [*scale.scores, *scale.errors], strict=True)
            near = all(_near(a, b, True) for one, other in rows for a, b in zip(one, other, strict=True))
            yield Check(f"natural scale of {judge.name}", near, f"{scale.images} images of each class", AGAIN)
    if encoder is not None:
        same = encoder.sha256 == report["encoder"]["weights_sha256"]
        yield Check("encoder's weights", same, "as stated" if same else "the encoder that is here is not the stated one", AGAIN)
    questions = QuerySet(plan, data, judges, compute, scales, encoder)
    questions.agree_on([loaded[one] for one in (compared if whole else names)])
    job = next(one for one in picture_jobs(plan, data, checkpoint) if one.layer == LOGITS and one.recipe.name == recipe)
    job = replace(job, recipe=parse_recipe(report["recipes"][recipe]))
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "pictures", "neurons", job.identity("fp32"))
        for _ in render_into(run, checkpoint, job, compute):
            pass
        images = images_of(run, checkpoint, job)
        scores = score_layer(checkpoint, job, images, None, frames_of(run, checkpoint, job), questions, plan.layer)
        same = _same_pixels(report, run, job, name)
        run.close()
    yield from compare(report, Again(name, recipe, scores, same, whole))


def file_name(ref: str) -> str:
    """The name of a reference's file, without folders and code; the reference itself where it is no file."""
    return Path(split_code(ref)[0]).name


def _same_pixels(report: StudyReport, run: RunFolder, job: RenderJob, name: str) -> bool:
    stated = {row["unit"]: row["pixels_sha256"] for row in report["pictures"]
              if (row["checkpoint"], row["recipe"], row["layer"]) == (name, job.recipe.name, LOGITS)}  # fmt: skip
    first = {row["unit"]: row for row in run.rows() if row["seed"] == job.seeds[0]}
    return bool(stated) and all(
        sha256_of(to_uint8(read_png(run.folder / first[unit]["image"]))) == pixels for unit, pixels in stated.items()
    )


def compare(report: StudyReport, again: Again) -> Iterator[Check]:
    """What a report states of one network's class pictures, beside what was measured."""
    where = f"of {again.name}, {again.recipe}"

    def mine(key: str) -> list[Row]:
        rows = [row for row in report[key] if (row["checkpoint"], row["recipe"]) == (again.name, again.recipe)]
        return [row for row in rows if row.get("layer", LOGITS) == LOGITS or key == "path_similarity"]

    stated = {(row["metric"], row["judge"], row["control"]): row for row in mine("clarity") if row["control"] != MATCHED}
    found = {(row["metric"], row["judge"], row["control"]): row for row in again.scores.clarity}
    wanted = [key for key in found if again.whole or key[0] in ALONE]
    wrong = [key for key in wanted if key not in stated or not _alike(report, again, stated[key], found[key])]
    yield _check(f"clarity {where}", wrong, len(wanted), again)
    curves = {(row["judge"], row["step"]): row for row in mine("distance")}
    off: list[tuple[Any, ...]] = []
    for row in again.scores.distance:
        there = curves.get((row["judge"], row["step"]))
        near = there is not None and _near(there["distance"], row["distance"], again.same)
        if near and again.whole and there is not None:
            near = _near(there["value"], row["value"], again.same)
        off += [] if near else [(row["judge"], row["step"])]
    yield _check(f"distances {where}", off, len(again.scores.distance), again)
    measured = {"ratio": again.scores.ratio, "radius": again.scores.radius, "reached": again.scores.activation_reached}
    excited = mine("excitation")
    off = [(key,) for key, value in measured.items() if len(excited) != 1 or not _near(excited[0][key], value, again.same)]
    yield _check(f"excitation {where}", off, len(measured), again)
    if again.whole and again.scores.path is not None:
        paths = mine("path_similarity")
        near = len(paths) == 1 and _near(paths[0]["value"], again.scores.path["value"], again.same)
        yield _check(f"path similarity {where}", [] if near else [("value",)], 1, again)


def _check(what: str, wrong: Sequence[tuple[Any, ...]], count: int, again: Again) -> Check:
    how = "from the same pixels" if again.same else "from other pixels, so as far as they may differ"
    if wrong:
        first = ", ".join(str(part) for part in wrong[0] if part is not None)
        return Check(what, False, f"{len(wrong)} of {count} are measured otherwise {how}, the first is {first}", AGAIN)
    return Check(what, True, f"{count} values, {how}", AGAIN)


def _near(stated: float | None, found: float | None, same: bool) -> bool:
    if stated is None or found is None:
        return stated is found
    return math.isclose(stated, found, rel_tol=SAME if same else 0.1, abs_tol=SAME if same else 0.05)


def _alike(report: StudyReport, again: Again, there: Row, here: Row) -> bool:
    """Unit by unit where the pixels are the same; else the mean, to the smallest effect of interest."""
    stated, found = there["values"], here["values"]
    if len(stated) != len(found) or list(there["units"]) != list(here["units"]):
        return False
    if again.same:
        return all(_near(one, other, True) for one, other in zip(stated, found, strict=True))
    both = [(a, b) for a, b in zip(stated, found, strict=True) if a is not None and b is not None]
    if not both:
        return True
    metric, judge, control = there["metric"], there["judge"], there["control"]
    ends = [report.reference(one, metric, again.recipe, judge, LOGITS, control) for one in (NATURAL_REFERENCE, RANDOM_REFERENCE)]
    scale = abs(ends[0] - ends[1]) if ends[0] is not None and ends[1] is not None else 0.0
    mean, other = fmean(a for a, _ in both), fmean(b for _, b in both)
    return abs(mean - other) <= max(SMALLEST_EFFECT_SHARE * scale, 0.1 * abs(other), 0.05)


def matched_again(
    report: StudyReport, plan: Plan, loaded: Mapping[str, Checkpoint], data: DataSet, compute: Compute, seed: int
) -> Iterator[Check]:
    """One network's hidden units matched again with those of its reference."""
    rows = [row for row in report["matching"] if row["checkpoint"] in loaded and row["reference"] in loaded]
    if not rows:
        if report["matching"]:
            yield Check("matching", None, "no pair of matched networks is here", AGAIN)
        return
    row = rows[int(Streams(seed, ["matching"], "verify").permutation(len(rows))[0][0])]
    one, other = loaded[row["checkpoint"]], loaded[row["reference"]]
    drawn = drawn_units(plan, other)
    images = head(data.val, plan.exemplar_images)
    mine, theirs = (all_excitations(each, plan.layer, images, compute) for each in (one, other))
    found = matched_units(row["reference"], mine, theirs, drawn[1] if drawn else ())
    again = None if found is None else found.row(row["checkpoint"], plan.layer)
    near = again is not None and all(_agree(row[key], again[key]) for key in again)
    yield Check(f"matching of {row['checkpoint']}", near, "the same pairs" if near else "other pairs or correlations", AGAIN)


def _agree(stated: Any, found: Any) -> bool:
    if isinstance(found, list | tuple):
        return len(stated) == len(found) and all(_agree(one, other) for one, other in zip(stated, found, strict=True))
    return _near(stated, found, True) if isinstance(found, float) else bool(stated == found)


def secondary_again(
    report: StudyReport, plan: Plan, loaded: Mapping[str, Checkpoint], data: DataSet, compute: Compute, seed: int
) -> Iterator[Check]:
    """The first maps of one network and method, and one network's effective number of features, measured again."""
    names = sorted(loaded)
    order = Streams(seed, ["secondary"], "verify").permutation(len(names) * max(1, len(plan.explain_methods)))[0]
    name, method = names[int(order[0]) % len(names)], plan.explain_methods[int(order[0]) // len(names)]
    checkpoint = loaded[name]
    if plan.explain_images:
        what = f"attribution of {name}, {method!r}"
        images = head(data.test, min(plan.explain_images, EXPLAINED_AGAIN))
        try:
            rows = list(explained_images(checkpoint, method, images, data.mean, compute, RunFolder.memory()))
        except ValueError as error:  # without captum
            yield Check(what, None, str(error), AGAIN)
        else:
            found = {row["measure"]: row["values"] for row in attribution_rows(name, method, rows)}
            stated = {row["measure"]: row["values"] for row in report[ATTRIBUTION]
                      if (row["checkpoint"], row["method"]) == (name, repr(method))}  # fmt: skip
            wrong = [key for key in found if not _agree(stated[key][: len(images)], found[key])]
            detail = f"otherwise in {', '.join(wrong)}" if wrong else f"{len(found)} measures of {len(images)} images"
            yield Check(what, not wrong, detail, AGAIN)
    if plan.feature_images:
        again = feature_number(plan, checkpoint, data, compute)
        there = next(row["value"] for row in report[FEATURES] if row["checkpoint"] == name)
        yield Check(f"features of {name}", _near(there, again, True), f"{again}, stated {there}", AGAIN)
