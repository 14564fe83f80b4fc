"""Checks of a report's judges: their eligibility, their natural scales, and the planned and achieved widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vizrobust.clarity import NaturalScale, excluded, identified
from vizrobust.clarity.natural_scale import recorded_scales
from vizrobust.models import LOGITS
from vizrobust.study.power import achieved
from vizrobust.study.protocol import Plan
from vizrobust.study.report import NATURAL_REFERENCE, RANDOM_REFERENCE, StudyReport

# Rounding: recorded scores have five decimals or more.
CLOSE = 2e-5


def judges(report: StudyReport, plan: Plan) -> Iterator[str]:
    if {row["name"]: row["weights_sha256"] for row in report["judges"]} != report["prereg"]["content"]["judges"]:
        yield "the judges are not the preregistered ones"
    encoder = report.facts("encoder")
    if encoder.get("weights_sha256") != report["prereg"]["content"].get("encoder"):
        yield "the encoder is not the preregistered one"
    if encoder.get("name", "") != plan.encoder:
        yield f"the encoder is {encoder.get('name')!r}, the plan's {plan.encoder!r}"
    units = len(report["data"]["classes"])
    for judge in report.judges_and_encoder:
        natural = reference_values(report, NATURAL_REFERENCE, None, judge["name"])
        share = identified(natural)
        if abs(judge["natural_identification"] - share) > CLOSE:
            yield f"natural_identification of {judge['name']} is not {share}"
        reasons = [
            excluded(share, units, natural, reference_values(report, RANDOM_REFERENCE, recipe.name, judge["name"]))
            for recipe in plan.recipes
        ]
        reasons += [scale.disqualified for scale in scales(report) if scale.judge == judge["name"]]
        if bool(judge["disqualified"]) != any(reasons):
            yield f"whether {judge['name']} is eligible does not follow"


def scales(report: StudyReport) -> list[NaturalScale]:
    return [NaturalScale.read(row) for row in report.rows("scales")]


def natural_scale(report: StudyReport, _plan: Plan) -> Iterator[str]:
    """What is read off the natural scales, and what they say of themselves."""
    known_scales = {scale.judge: scale for scale in scales(report)}
    known = {scale.network_sha256: scale for scale in recorded_scales()}
    for row, scale in zip(report.rows("scales"), known_scales.values(), strict=True):
        if {name: row[name] for name in ("disqualified", "resolves_from")} != {
            "disqualified": scale.disqualified, "resolves_from": scale.resolves_from,
        }:  # fmt: skip
            yield f"what {scale.judge} resolves does not follow from its curve"
        recorded = known.get(scale.network_sha256)
        if recorded is not None and recorded.classes == scale.classes and recorded != replace(scale, judge=recorded.judge):
            yield f"the curve of {scale.judge} is not the one that comes with vizrobust"
    keys = ("checkpoint", "recipe", "layer", "judge", "control")
    scored = {tuple(row[key] for key in keys): row for row in report["clarity"] if row["metric"] == "transfer"}
    for row in report["clarity"]:
        if row["metric"] != "natural_equivalent":
            continue
        score = scored[tuple(row[key] for key in keys)]
        found = known_scales[row["judge"]].clarity(score["values"], score["units"])
        if any(abs(value - found) > CLOSE for value in row["values"]):
            yield f"natural_equivalent of {row['checkpoint']}, {row['recipe']}, {row['judge']} is not {found:.6f}"


def power(report: StudyReport, _plan: Plan) -> Iterator[str]:
    planned = report["prereg"]["content"].get("power") or ()
    if not planned and not report.rows("power"):
        return
    wanted = achieved(report, planned)
    for row, found in zip(report.rows("power"), wanted, strict=True):
        same = {key: value for key, value in row.items() if key != "achieved"} == {
            key: value for key, value in found.items() if key != "achieved"
        }
        one, other = row["achieved"], found["achieved"]
        if not same or (one is None) != (other is None) or (one is not None and abs(one - other) > CLOSE):
            yield f"planned or achieved width of {row['contrast']}, {row['metric']}, {row['recipe']} does not follow"


def reference_values(report: StudyReport, name: str, recipe: str | None, judge: str) -> dict[str, float | None]:
    keys = ("reference", "recipe", "judge", "control", "layer")
    wanted = (name, recipe, judge, None, LOGITS)
    return {row["metric"]: row["value"] for row in report["references"] if tuple(row[key] for key in keys) == wanted}
