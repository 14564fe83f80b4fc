"""Whether a study's report holds: pictures rendered again, images attacked again, the verdict computed again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vizrobust.attacks import parse_attack
from vizrobust.compute import Compute, changes, versions
from vizrobust.data import DataSet, head
from vizrobust.features import parse_objective, parse_recipe
from vizrobust.features.pictures import in_tiles, to_uint8
from vizrobust.features.render import Batch, render_batches
from vizrobust.models import Checkpoint, builtin_names, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.runs import Row
from vizrobust.study.contrasts import SECONDARY
from vizrobust.study.evaluations import unpacked_verdicts
from vizrobust.study.measured_again import matched_again, scored_again, secondary_again
from vizrobust.study.protocol import UNTRAINED
from vizrobust.study.report import FORMAT, StudyReport
from vizrobust.study.report_checks import AGAIN, FILES, Check, not_checked, plan_of, stated_checks
from vizrobust.study.report_rows import sha256_of

PICTURES, IMAGES = 3, 50
# On another machine or thread count kernels round otherwise and an optimizer amplifies it; scores then agree to this share.
TOLERANCE = 0.02
# Of so many attacked images so many may be decided otherwise there.
FLIPS = 1
# Where the numbers of a report agree with those computed again (see `difference`); SHOWN is for numbers in sentences.
ABSOLUTE, RELATIVE, SHOWN = 1e-9, 1e-5, 1e-2
NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
NEEDED = ("prereg", "clarity", "trends", "verdict", "rows_sha256")


def verify(
    report: StudyReport,
    folder: Path,
    images: Callable[[], DataSet],
    compute: Compute,
    seed: int = 0,
    copy: Path | None = None,
    looking: Sequence[str] = (),
    networks: Path | None = None,
) -> Iterator[Check]:
    """Check a report whose relative references start in `folder`; `images` loads the data set when it comes to attacks.

    Three pictures, one network's class pictures with their scores, and fifty attacked images are drawn at random among the
    checkpoints that can be loaded: those in the study's folder or in that of another study, `networks`, and built-in ones, of
    the same weights. Bits must be the same on the recorded processor and device with the recorded versions and threads;
    elsewhere scores must agree to 2 %, clarity to its smallest effect of interest, and all but one image be decided alike.
    Of the secondary outcomes one network is measured again. `copy` is a preregistration that was kept elsewhere. `looking` are
    references of judges and of the encoder, for those of the report with the same file name.
    Raises ``ValueError`` where the report lacks a part that is checked.
    """
    missing = [name for name in NEEDED if name not in report]
    if missing:
        raise ValueError(f"the report has no {missing[0]!r}; give the report.json of a finished study")
    images = cache(images)  # attacks and scores look at the same
    yield from stated_checks(report, folder, copy)
    yield from _concluded(report)
    unlike = _unlike(report, compute)
    loaded = dict(_loadable(report, [folder, *([] if networks is None else [networks])]))
    absent = [row["name"] for row in report["checkpoints"] if row["name"] not in loaded and row["role"] != UNTRAINED]
    if absent:
        yield Check("checkpoints", None, f"not here, so not looked at: {', '.join(absent)}", AGAIN)
    pictures = [row for row in report["pictures"] if row["checkpoint"] in loaded]
    for row in _drawn(pictures, PICTURES, seed, "pictures"):
        yield _rendered_again(row, loaded[row["checkpoint"]], report, compute, unlike)
    attacked = [row for row in report["accuracy"] if row["checkpoint"] in loaded and row.get("right") and row["kind"] != "clean"]
    for row in _drawn(attacked, 1, seed, "attacks"):
        try:
            data = images()
        except FileNotFoundError as error:
            yield Check("attacks", None, str(error), AGAIN)
        else:
            yield _attacked_again(row, loaded[row["checkpoint"]], data, compute, unlike, seed)
    for what, there in (("pictures", pictures), ("attacks", attacked)):
        if not there:
            yield Check(what, None, "none of the report's checkpoints is here", AGAIN)
    if loaded:
        yield from _measured(report, loaded, images, compute.in_fp32(), seed, looking)
    yield from not_checked(report)


def _measured(
    report: StudyReport, loaded: Mapping[str, Checkpoint], images: Callable[[], DataSet], compute: Compute, seed: int,
    looking: Sequence[str],
) -> Iterator[Check]:  # fmt: skip
    try:
        data = images()
    except FileNotFoundError as error:
        yield Check("scores of the pictures", None, str(error), AGAIN)
        return
    facts = report["data"]
    alike = (list(data.classes), list(data.shape)) == (list(facts["classes"]), list(facts["shape"]))
    yield Check("data set", alike, "its classes and shape" if alike else f"classes or shape of {data.name} are others", FILES)
    plan = plan_of(report)
    yield from scored_again(report, plan, loaded, data, compute, seed, looking)
    yield from matched_again(report, plan, loaded, data, compute, seed)
    yield from secondary_again(report, plan, loaded, data, compute, seed)


def _concluded(report: StudyReport) -> Iterator[Check]:
    """The hash of the rows, and what is concluded from them."""
    rows = report.rows_sha256
    yield Check("rows", rows == report["rows_sha256"], f"their hash is {rows[:16]}…, stated {report['rows_sha256'][:16]}…")
    again = json.loads(json.dumps(dict(StudyReport.conclude(report))))
    if SECONDARY in report or SECONDARY in again:
        stated = report.rows(SECONDARY)
        wrong = difference(stated, again.get(SECONDARY, []), SECONDARY)
        yield Check(SECONDARY, wrong is None, wrong or f"{len(stated)} contrasts follow from the rows")
    for name, comparable in (("trends", _comparable_results), ("verdict", _comparable_verdict)):
        old, new = (comparable(one, again, report["format"]) for one in (report, again))
        wrong = difference(old, new, name)
        count = len(report[name]) if isinstance(report[name], list) else len(report[name]["sentences"])
        what = "rows" if name == "trends" else "sentences" if report["format"] == FORMAT else "sentences, without their words,"
        yield Check(name, wrong is None, wrong or f"{count} {what} follow from the rows")


def _comparable_results(report: Mapping[str, Any], again: Mapping[str, Any], written: int) -> Any:
    """The `trends` of a report as far as its format can be compared with what is computed `again`."""
    if written == FORMAT:
        return report["trends"]
    found = []
    for row, new in zip(report["trends"], again["trends"], strict=False):
        # Format 1 gave reasons in other words. It broke ties of ranks by rounding errors, and stated the p value of rounding
        # errors where a contrast is constant.
        untold = {"why", "constant", "spearman", "page_p"} | ({"p", "p_holm"} if new["constant"] else set())
        found.append({name: value for name, value in row.items() if name not in untold})
    return [*found, *report["trends"][len(found) :]]


def _comparable_verdict(report: Mapping[str, Any], _again: Mapping[str, Any], written: int) -> Any:
    """The `verdict` of a report: all of it, or the labels alone where the format had other sentences."""
    if written == FORMAT:
        return report["verdict"]
    by_metric = [{name: value for name, value in row.items() if name != "why"} for row in report["verdict"]["by_metric"]]
    return {"by_contrast": report["verdict"]["by_contrast"], "by_metric": by_metric}


def difference(stated: Any, found: Any, at: str = "") -> str | None:
    """Where two JSON values first differ, as a sentence; None where they agree.

    Numbers agree to 5 digits, which is what the six recorded decimals of a score carry into a test statistic. Texts agree
    word by word, and their numbers to the digits that they show.

    >>> difference({"p": 0.012345678}, {"p": 0.012345679})
    >>> difference([1.0, "p = 0.12"], [1.0, "p = 0.34"])
    "[1] is stated as 'p = 0.12', the rows say 'p = 0.34'"
    """
    if isinstance(stated, float | int) and isinstance(found, float | int) and not isinstance(stated, bool):
        close = abs(stated - found) <= ABSOLUTE + RELATIVE * abs(stated)
        return None if close else f"{at} is stated as {stated}, the rows say {found}"
    if isinstance(stated, dict) and isinstance(found, dict):
        keys = dict.fromkeys([*stated, *found])
        return next((d for key in keys if (d := difference(stated.get(key), found.get(key), f"{at}.{key}"))), None)
    if isinstance(stated, list) and isinstance(found, list):
        if len(stated) != len(found):
            return f"{at} has {len(stated)} entries, the rows give {len(found)}"
        pairs = enumerate(zip(stated, found, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, f"{at}[{i}]"))), None)
    same = _same_text(stated, found) if isinstance(stated, str) and isinstance(found, str) else stated == found
    return None if same else f"{at} is stated as {stated!r}, the rows say {found!r}"


def _same_text(stated: str, found: str) -> bool:
    one, other = (NUMBER.split(text) for text in (stated, found))
    if len(one) != len(other) or one[::2] != other[::2]:
        return False
    return all(abs(float(a) - float(b)) <= SHOWN * abs(float(a)) for a, b in zip(one[1::2], other[1::2], strict=True))


def _unlike(report: StudyReport, compute: Compute) -> str:
    """What keeps this machine from computing the report's bits, as a sentence; empty where nothing does."""
    then, now = report["versions"], versions()
    unknown = [f"{name} was not recorded" for name in now if name not in then]
    recorded = {"threads": str(report["threads"]), "device": report["device"], **then}
    return "; ".join(unknown + changes(recorded, {"threads": str(compute.threads), "device": compute.device.type, **now}))


def _loadable(report: StudyReport, folders: Sequence[Path]) -> Iterator[tuple[str, Checkpoint]]:
    shipped: dict[str, Checkpoint] | None = None
    for row in report["checkpoints"]:
        if row["role"] == UNTRAINED:
            continue
        there = (load_checkpoint(str(path)) for folder in folders if (path := folder / row["ref"]).is_file())
        own = next((one for one in there if one.sha256 == row["weights_sha256"]), None)
        if own is not None:
            yield row["name"], own
            continue
        if shipped is None:
            found = (load_checkpoint(name) for name in builtin_names())
            shipped = {one.sha256: one for one in found}
        if row["weights_sha256"] in shipped:
            yield row["name"], shipped[row["weights_sha256"]]


def _rendered_again(row: Row, checkpoint: Checkpoint, report: StudyReport, compute: Compute, unlike: str) -> Check:
    what = f"picture {row['checkpoint']}, {row['recipe']}, {row['layer']}, {row['unit_name']}, seed {row['seed']}"
    recipe = parse_recipe(report["recipes"][row["recipe"]])
    shape = checkpoint.info.input_shape
    batch = Batch(((row["unit"], row["seed"]),), row.get("batch_size") or report["batch_size"])  # older reports have one for all
    (done,) = render_batches(checkpoint.net(), parse_objective(row["objective"]), [batch], recipe, shape=shape, compute=compute)
    if sha256_of(to_uint8(in_tiles(done.image, shape[0]))) == row["pixels_sha256"]:
        return Check(what, True, "the same pixels, bit for bit", AGAIN)
    detail = f"other pixels; score {done.score:.4g}, stated {row['score']:.4g}"
    near = abs(done.score - row["score"]) <= TOLERANCE * abs(row["score"])
    if not unlike:
        return Check(what, False, f"{detail}, although processor, versions and threads are those recorded", AGAIN)
    return Check(what, near, f"{detail} ({unlike}; so {100 * TOLERANCE:g} % is asked for)", AGAIN)


def _attacked_again(row: Row, checkpoint: Checkpoint, data: DataSet, compute: Compute, unlike: str, seed: int) -> Check:
    """The same attack on images drawn at random; a verdict never depends on who else is attacked."""
    what = f"{row['label']} on {row['checkpoint']}"
    right = unpacked_verdicts(row["right"], row["n"])
    places = sorted(int(i) for i in Streams(seed, ["images"], "verify").permutation(row["n"])[0][:IMAGES])
    attack = parse_attack(row["attack"])
    parts = evaluate(checkpoint.net(), attack, head(data.test, row["n"]), compute, indices=places)
    found = merge_results(attack, parts)
    other = [place for place, alive in zip(found.indices.tolist(), found.robust.tolist(), strict=True) if alive != right[place]]
    detail = f"{len(places) - len(other)} of {len(places)} images are decided as stated"
    return Check(what, len(other) <= (FLIPS if unlike else 0), detail + (f"; not {other}" if other else ""), AGAIN)


def _drawn(rows: Sequence[Row], count: int, seed: int, purpose: str) -> list[Row]:
    order = Streams(seed, [purpose], "verify").permutation(len(rows))[0] if rows else torch.zeros(0, dtype=torch.int64)
    return [rows[int(i)] for i in order[:count]]
