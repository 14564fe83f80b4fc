"""What a study's report states about itself, computed again from its own rows, its preregistration and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vizrobust.attacks import parse_attack
from vizrobust.attribution import MEASURES
from vizrobust.clarity import METRICS
from vizrobust.intervals import wilson
from vizrobust.legacy import present
from vizrobust.models import LOGITS
from vizrobust.robustness.corruptions.corruption import SMALLEST
from vizrobust.runs import Row, read_run
from vizrobust.spec import parse
from vizrobust.study import judge_checks, preregistration, protocol
from vizrobust.study.clarity_scores import FLAGGED_BELOW
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES, FEWEST_SEEDS
from vizrobust.study.evaluations import unpacked_verdicts
from vizrobust.study.judge_checks import CLOSE
from vizrobust.study.networks import PART
from vizrobust.study.protocol import SWEEP, UNTRAINED, Plan, training_runs
from vizrobust.study.report import FORMAT, StudyReport

AGAIN, ROWS, FILES, READ = "measured again", "computed from the rows", "compared with a file", "only read"

# What no check can see in a report alone, each with its reason.
UNCHECKED: Mapping[str, str] = {
    "command": "how the command was typed; a run.json beside the report is compared",
    "versions": "the versions that made it; a run.json beside the report is compared",
    "threads": "the threads that made it; a run.json beside the report is compared",
    "device": "the device that made it; a run.json beside the report is compared",
    "prereg.departures": "what a later start changed is known to the study's folder alone",
    "checkpoints.training log": "delta_linf, delta_l2, gradient_passes and epochs are in the logs of training alone",
    "checkpoints.masked": "the masking diagnosis asks for every network and thousands of attacks",
    "references": "natural images, start images and the untrained network are not measured again",
}
# What the measures of a map can be at most and at least; the others are 0 or more.
RANGES = {"deletion": (-1.0, 1.0), "insertion": (-1.0, 1.0), "weights": (-1.0, 1.0), "gini": (0.0, 1.0)}


@dataclass(frozen=True)
class Check:
    """One part of a report: `ok` is None where it was not checked, for the reason in `detail`; `how` it was looked at."""

    what: str
    ok: bool | None
    detail: str
    how: str = ROWS


def plan_of(report: StudyReport) -> Plan:
    """The preregistered plan; ``ValueError`` where its text is none."""
    found = parse(report["prereg"]["content"]["plan"], protocol.NAMES, "plan")
    if not isinstance(found, Plan):
        raise ValueError("the preregistration has no plan")
    return found


def stated_checks(report: StudyReport, folder: Path, copy: Path | None = None) -> Iterator[Check]:
    """Every check that needs neither networks nor data; `copy` is a preregistration kept elsewhere."""
    yield from _preregistration(report, folder, copy)
    yield from _made_with(report, folder)
    try:
        plan = plan_of(report)
    except (ValueError, KeyError, TypeError) as error:
        yield Check("plan", False, str(error))
        return
    checks: dict[str, Callable[[StudyReport, Plan], Iterator[str]]] = {
        "data": _data, "scope": _scope, "checkpoints": _checkpoints, "accuracy": _accuracy, "metrics": _metrics,
        "confounds": _confounds, "pictures": _pictures, "exemplars": _exemplars, "recipes": _recipes, "layers": _layers,
        "judges": judge_checks.judges, "scales": judge_checks.natural_scale, "power": judge_checks.power,
        "secondary outcomes": _secondary,
    }  # fmt: skip
    for what, check in checks.items():
        try:
            wrong = list(check(report, plan))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            wrong = [f"not readable ({type(error).__name__}: {error})"]
        count = report[what] if what in report and isinstance(report[what], list) else ()
        fine = f"{len(count)} rows follow" if count else "as the plan and the rows say"
        yield Check(what, not wrong, "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "") or fine)


def not_checked(report: StudyReport) -> Iterator[Check]:
    """The list of what is believed, with reasons."""
    for what, why in UNCHECKED.items():
        yield Check(what, None, why, READ)
    if report["format"] != FORMAT:
        yield Check("words", None, f"format {report['format']} had other sentences; their labels and numbers are checked", READ)


def _preregistration(report: StudyReport, folder: Path, copy: Path | None) -> Iterator[Check]:
    content, stated = report["prereg"]["content"], str(report["prereg"]["sha256"])
    written = preregistration.sha256(content)
    yield Check("preregistration", written == stated, f"its hash is {written[:16]}…, stated {stated[:16]}…")
    file = folder / preregistration.FILE if copy is None else copy
    if not file.is_file():
        if copy is not None:
            raise FileNotFoundError(f"no file {str(copy)!r}; give a copy of the study's {preregistration.FILE}")
        yield Check("preregistration's copy", None, f"no {preregistration.FILE} beside the report", FILES)
        return
    try:
        other = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        yield Check("preregistration's copy", False, f"{file.name} is damaged ({error})", FILES)
        return
    keys = [key for key in dict.fromkeys([*other, *content]) if other.get(key) != content.get(key)]
    detail = f"{file.name} differs in {', '.join(keys)}" if keys else f"{file.name} says the same"
    yield Check("preregistration's copy", not keys, detail, FILES)


def _made_with(report: StudyReport, folder: Path) -> Iterator[Check]:
    info = read_run(folder)
    if info is None or info.get("command") != "study":
        return
    wrong = [key for key in ("threads", "device", "versions") if info.get(key) != report[key]]
    yield Check("run.json", not wrong, f"it has other {', '.join(wrong)}" if wrong else "threads, device and versions", FILES)


def _data(report: StudyReport, plan: Plan) -> Iterator[str]:
    data, registered = report["data"], report["prereg"]["content"]["eps"]
    if data["eps_rule"] != registered:
        yield "eps_rule is not the preregistered one"
    if data["eps"] != registered["eps"]:
        yield f"eps is {data['eps']}, preregistered {registered['eps']}"
    if data["name"] != plan.training.data:
        yield f"the name is {data['name']!r}, the plan's {plan.training.data!r}"
    for tried in registered["tried"]:
        if tried["fulfilled"] != (tried["strong"] is not None and tried["fgsm"] < PART * tried["strong"]):
            yield f"the rule's answer at {tried['eps']} does not follow"
    counts = {row["n"] for row in report["accuracy"] if row["kind"] == "clean"}
    if counts != {data["test_images"]}:
        yield f"test_images is {data['test_images']}, attacked were {sorted(counts)}"
    names = {row["unit"]: row["unit_name"] for row in report["pictures"] if row["layer"] == LOGITS}
    if any(data["classes"][unit] != name for unit, name in names.items()) or len(data["classes"]) != len(names):
        yield "the classes are not those of the pictures"


def _scope(report: StudyReport, plan: Plan) -> Iterator[str]:
    seeds = len({row["seed"] for row in report["checkpoints"] if row["role"] == SWEEP})
    scope = "inferential" if seeds >= FEWEST_SEEDS and not plan.quick else "descriptive"
    if report["scope"] != scope:
        yield f"scope is {report['scope']!r}, {seeds} training seeds make it {scope!r}"
    if report["quick"] != plan.quick:
        yield f"quick is {report['quick']}, the plan's {plan.quick}"
    small = bool(plan.corruption_images) and min(report["data"]["shape"][1:]) < SMALLEST
    told = [*plan.left_out(provided=not plan.steps), *([f"no corruptions of images below {SMALLEST} px"] if small else [])]
    # Format 1 called baselines arms.
    stated = [_as_today(text) for text in report["left_out"]]
    if stated != told:
        yield f"left_out says {stated}, the plan {told}"


def _as_today(text: str) -> str:
    head, colon, rest = text.partition(": ")
    if head != "not trained":
        return text
    parts = [f"baseline {part.removesuffix(' arm')}" if part.endswith(" arm") else part for part in rest.split(", ")]
    return f"{head}{colon}{', '.join(parts)}"


def _checkpoints(report: StudyReport, plan: Plan) -> Iterator[str]:
    rows = report["checkpoints"]
    hashes = {row["name"]: row["weights_sha256"] for row in rows}
    if hashes != report["prereg"]["content"]["checkpoints"]:
        yield "the weights are not those of the preregistration"
    clean = {row["checkpoint"]: row["accuracy"] for row in report["accuracy"] if row["kind"] == "clean"}
    yield from (f"clean of {row['name']} is not its accuracy" for row in rows if row["clean"] != clean.get(row["name"]))
    if not plan.steps:
        return
    runs = {run.name: run for run in training_runs(plan, report["data"]["eps"])}
    trained = [row for row in rows if row["role"] != UNTRAINED]
    if set(runs) != {row["name"] for row in trained}:
        yield "the networks are not those of the plan"
        return
    for row in trained:
        run = runs[row["name"]]
        expected = {"label": run.label, "role": run.role, "group": run.group, "k": run.k, "seed": run.seed}
        yield from (
            f"{key} of {run.name} is {row[key]!r}, the plan's {want!r}" for key, want in expected.items() if row[key] != want
        )
        if present(row["training"]) != present(repr(run.training)) and not run.until:
            yield f"the training of {run.name} is not the plan's"


def _accuracy(report: StudyReport, _plan: Plan) -> Iterator[str]:
    eps = report["data"]["eps"]
    weakest: dict[str, float] = {}
    for row in report["accuracy"]:
        where = f"{row['label']} on {row['checkpoint']}"
        right = round(row["accuracy"] * row["n"])
        if "right" in row:
            right = sum(unpacked_verdicts(row["right"], row["n"]))
            if abs(right / row["n"] - row["accuracy"]) > CLOSE:
                yield f"{where} is stated as {row['accuracy']}, its images say {right / row['n']}"
        if any(abs(a - b) > CLOSE for a, b in zip(wilson(right, row["n"]), (row["ci_low"], row["ci_high"]), strict=True)):
            yield f"the interval of {where} does not follow"
        if row["kind"] in ("fgsm", "pgd"):
            weakest[row["checkpoint"]] = min(weakest.get(row["checkpoint"], 1.0), row["accuracy"])
            attack: Any = parse_attack(row["attack"])
            if abs(attack.ball.eps - eps) > CLOSE or row["eps"] != attack.ball.eps:
                yield f"eps of {where} is not the study's"
            if row["kind"] == "pgd" and row["steps"] != attack.steps:
                yield f"steps of {where} are not the attack's"
        if row["kind"] == "strongest" and row["accuracy"] > weakest.get(row["checkpoint"], 1.0) + CLOSE:
            yield f"{where} is above a weaker attack"


def _metrics(report: StudyReport, _plan: Plan) -> Iterator[str]:
    classes = len(report["data"]["classes"])
    registered = report["prereg"]["content"]["metrics"]
    if [row["name"] for row in report["metrics"]] != list(registered):
        yield "the metrics are not the preregistered ones"
    for row in report["metrics"]:
        known = registered.get(row["name"], {})
        if (row["role"], row["direction"]) != (known.get("role"), known.get("direction")):
            yield f"{row['name']} has another role or direction than preregistered"
        metric = METRICS.get(row["name"])
        if metric is not None and row["chance"] != metric.chance_level(classes, classes):
            yield f"the chance level of {row['name']} is not {metric.chance_level(classes, classes)}"
        if metric is not None and report["format"] == FORMAT and row["title"] != metric.title:
            yield f"the title of {row['name']} is not {metric.title!r}"


def _confounds(report: StudyReport, _plan: Plan) -> Iterator[str]:
    rows = [row for row in report["checkpoints"] if row["role"] != UNTRAINED]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    if [row["group"] for row in report["confounds"]] != groups:
        yield "the groups are not those of the checkpoints"
        return
    for row in report["confounds"]:
        mine = [one for one in rows if one["group"] == row["group"]]
        if row["steps"] != mine[0]["k"]:
            yield f"steps of {row['group']} are not {mine[0]['k']}"
        for key in ("clean", "delta_linf", "delta_l2", "gradient_passes"):
            values = [one[key] for one in mine if one[key] is not None]
            want = fmean(values) if values else None
            if (want is None) != (row[key] is None) or (want is not None and abs(want - row[key]) > CLOSE * max(1, abs(want))):
                yield f"{key} of {row['group']} is {row[key]}, its checkpoints' mean is {want}"


def _pictures(report: StudyReport, plan: Plan) -> Iterator[str]:
    scores: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
    for row in report["clarity"]:
        for unit, value in zip(row["units"], row["values"], strict=True):
            if row["control"] is None and value is not None:
                of_unit = scores.setdefault((row["checkpoint"], row["recipe"], row["layer"], unit), {})
                of_unit.setdefault(row["metric"], []).append(value)
    classes = report["data"]["classes"]
    for row in report["pictures"]:
        key = (row["checkpoint"], row["recipe"], row["layer"], row["unit"])
        where = f"{row['checkpoint']}, {row['recipe']}, {row['layer']}, {row['unit_name']}"
        want = {metric: fmean(values) for metric, values in scores.get(key, {}).items()}
        if set(want) != set(row["scores"]) or any(abs(want[name] - value) > CLOSE for name, value in row["scores"].items()):
            yield f"the scores of {where} are not those of its clarity rows"
        name = classes[row["unit"]] if row["layer"] == LOGITS else f"unit {row['unit']}"
        objective = "Logit()" if row["layer"] == LOGITS else f'Channel(layer="{row["layer"]}")'
        if row["unit_name"] != name or row["objective"] != objective or row["seed"] != 0:
            yield f"name, objective or seed of {where} are not those of its unit"
        if row["status"] not in ("ok", "dead", "saturated") or not 0 <= row["saturated_share"] <= 1:
            yield f"status or saturated_share of {where} cannot be"
        if not str(row["image"]).startswith(f"pictures/{row['recipe']}-") or not str(row["image"]).endswith(
            f"{row['unit']}-s0.png"
        ):
            yield f"the image of {where} is another one's"
        if not 1 <= row.get("batch_size", plan.batch_size) <= plan.batch_size:
            yield f"batch_size of {where} is not the plan's"


def _exemplars(report: StudyReport, _plan: Plan) -> Iterator[str]:
    units = range(len(report["data"]["classes"]))
    want = [(LOGITS, unit, [f"exemplars/{unit}-{place}.png" for place in range(len(row["images"]))])
            for unit, row in zip(units, report["exemplars"], strict=True)]  # fmt: skip
    if [(row["layer"], row["unit"], row["images"]) for row in report["exemplars"]] != want:
        yield "the exemplars are not one row of files for each class"


def _recipes(report: StudyReport, plan: Plan) -> Iterator[str]:
    from vizrobust.features import parse_recipe

    if list(report["recipes"]) != [recipe.name for recipe in plan.recipes]:
        yield "the recipes are not the plan's"
        return
    for recipe in plan.recipes:
        stated = parse_recipe(report["recipes"][recipe.name])
        # The data's colours are the only thing that a study adds.
        if (
            stated.name != recipe.name
            or stated.steps != recipe.steps
            or type(stated.optimizer) is not type(recipe.optimizer)
            or stated.transforms != recipe.transforms
            or type(stated.parametrization) is not type(recipe.parametrization)
        ):
            yield f"{recipe.name} is not the plan's recipe"


def _layers(report: StudyReport, plan: Plan) -> Iterator[str]:
    """What distances, excitations, path similarities and matches state of each other."""
    known = {row["name"] for row in report["checkpoints"]}
    recipes = {recipe.name for recipe in plan.recipes}
    for name in ("distance", "excitation", "path_similarity"):
        if any(row["checkpoint"] not in known or row["recipe"] not in recipes for row in report[name]):
            yield f"{name} has a row of another network or recipe"
    for row in report["path_similarity"]:
        if row["flagged"] != (row["value"] is not None and row["value"] < FLAGGED_BELOW) or row["layer"] != plan.layer:
            yield f"the flag or the layer of {row['checkpoint']}'s path similarity does not follow"
        if (row["value"] is None) != bool(row["why"]):
            yield f"the path similarity of {row['checkpoint']} must have either a value or a reason for none"
    yield from _curves(report)
    for row in report["excitation"]:
        if row["reached"] is not None and not (0 <= row["reached"] <= 1 and (row["radius"] is None) == (row["reached"] == 0)):
            yield f"radius and reached of {row['checkpoint']}'s excitation do not go together"
    for row in report["matching"]:
        if {row["checkpoint"], row["reference"]} - known or row["layer"] != plan.layer:
            yield "a match is of another network or layer"
        if not len(row["units"]) == len(row["partners"]) == len(row["correlations"]):
            yield f"the matches of {row['checkpoint']} are not pairs"
        elif abs(fmean(row["correlations"]) - row["drawn"]) > CLOSE:
            yield f"drawn of {row['checkpoint']} is not the mean of its correlations"
        if not -1 <= row["chance"] <= row["quality"] <= 1:
            yield f"quality and chance of {row['checkpoint']}'s match are impossible"


def _curves(report: StudyReport) -> Iterator[str]:
    """Distances start at 0 at the same steps for every judge; values are AUCs."""
    # The first judge of each family has a curve.
    encoders = [report["encoder"]] if "encoder" in report else report["judges"]
    judges = set({row.get("family") or row["name"]: row["name"] for row in reversed(encoders)}.values())
    curves: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in report["distance"]:
        curves.setdefault((row["checkpoint"], row["recipe"]), {}).setdefault(row["judge"], []).append(row)
    for (checkpoint, recipe), by_judge in curves.items():
        paths = {tuple((row["step"], row["distance"]) for row in rows) for rows in by_judge.values()}
        if set(by_judge) != judges or len(paths) != 1:
            yield f"the distances of {checkpoint}, {recipe} differ between judges"
        elif any(not 0 <= row["value"] <= 1 for rows in by_judge.values() for row in rows):
            yield f"a value on the path of {checkpoint}, {recipe} is not an AUC: it must be from 0 to 1"
        else:
            (path,) = paths
            if path[0] != (0, 0.0) or [step for step, _ in path] != sorted({step for step, _ in path}):
                yield f"the steps of {checkpoint}, {recipe} do not begin at 0"


def _secondary(report: StudyReport, plan: Plan) -> Iterator[str]:
    """What is wrong with the secondary outcomes: each that the plan asks for is there, of every network, and can be."""
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
