"""Whether a study's report holds: pictures rendered again, images attacked again, the verdict computed again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vizrobust.attacks import parse_attack
from vizrobust.compute import Compute, changes, versions
from vizrobust.data import DataSet, head
from vizrobust.features import parse_objective, parse_recipe
from vizrobust.features.pictures import to_uint8
from vizrobust.features.render import render_pairs
from vizrobust.models import Checkpoint, builtin_names, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.runs import Row
from vizrobust.study import protocol
from vizrobust.study import report as report_module
from vizrobust.study.evaluations import unpacked_verdicts

PICTURES, IMAGES = 5, 50
# On another machine or thread count kernels round otherwise and an optimizer amplifies it; scores then agree to this share.
TOLERANCE = 0.02
# Of so many attacked images so many may be decided otherwise there.
FLIPS = 1


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `ok` None where it could not be (with the reason in `detail`)."""

    what: str
    ok: bool | None
    detail: str


def read_report(path: Path | str) -> dict[str, Any]:
    """A report.json; ``ValueError`` where the file is not one, ``FileNotFoundError`` where there is none."""
    file = Path(path)
    file = file / report_module.FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"no report {str(path)!r}; give a study's folder or its {report_module.FILE}")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if report["format"] != report_module.FORMAT:
            raise ValueError(
                f"{str(path)!r} is of format {report['format']}, this vizrobust reads {report_module.FORMAT}; update vizrobust"
            )
        report["prereg"]["sha256"], report["clarity"], report["verdict"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a study's report ({type(error).__name__}: {error})") from error
    return dict(report)


def verify(
    report: Mapping[str, Any], folder: Path, images: Callable[[], DataSet], compute: Compute, seed: int = 0
) -> Iterator[Check]:
    """Check a report whose relative references start in `folder`; `images` loads the data set when it comes to attacks.

    Five pictures and fifty attacked images are drawn at random among the checkpoints that can be loaded: those in the
    study's folder, and built-in ones of the same weights. Bits must be the same on the recorded processor and device
    with the recorded versions and threads; elsewhere scores must agree to 2 % and all but one image be decided alike.
    """
    yield from _recomputed(report)
    unlike = _unlike(report, compute)
    loaded = dict(_loadable(report, folder))
    absent = [row["name"] for row in report["checkpoints"] if row["name"] not in loaded and row["role"] != "random"]
    if absent:
        yield Check("checkpoints", None, f"not here, so not looked at: {', '.join(absent)}")
    pictures = [row for row in report["pictures"] if row["checkpoint"] in loaded]
    for row in _drawn(pictures, PICTURES, seed, "pictures"):
        yield _rendered_again(row, loaded[row["checkpoint"]], report, compute, unlike)
    attacked = [row for row in report["accuracy"] if row["checkpoint"] in loaded and row.get("right") and row["kind"] != "clean"]
    for row in _drawn(attacked, 1, seed, "attacks"):
        try:
            data = images()
        except FileNotFoundError as error:
            yield Check("attacks", None, str(error))
        else:
            yield _attacked_again(row, loaded[row["checkpoint"]], data, compute, unlike, seed)
    for what, there in (("pictures", pictures), ("attacks", attacked)):
        if not there:
            yield Check(what, None, "none of the report's checkpoints is here")


def _recomputed(report: Mapping[str, Any]) -> Iterator[Check]:
    """Everything that follows from the report's own rows."""
    written = protocol.sha256(report["prereg"]["content"])
    stated = report["prereg"]["sha256"]
    yield Check("preregistration", written == stated, f"its hash is {written[:16]}…, stated {stated[:16]}…")
    rows = report_module.rows_sha256(report)
    yield Check("rows", rows == report["rows_sha256"], f"their hash is {rows[:16]}…, stated {report['rows_sha256'][:16]}…")
    again = copy.deepcopy(dict(report))
    report_module.conclude(again)
    again = json.loads(json.dumps(again))
    for name in ("trends", "verdict"):
        wrong = _difference(report[name], again[name])
        count = len(report[name]) if isinstance(report[name], list) else len(report[name]["sentences"])
        yield Check(name, wrong is None, wrong or f"{count} {'rows' if name == 'trends' else 'sentences'} follow from the rows")


def _difference(stated: Any, found: Any, at: str = "") -> str | None:
    """Where two JSON values first differ, as a sentence; numbers may differ by rounding."""
    if isinstance(stated, float | int) and isinstance(found, float | int) and not isinstance(stated, bool):
        close = abs(stated - found) <= 1e-9 + 1e-6 * abs(stated)
        return None if close else f"{at} is stated as {stated}, the rows say {found}"
    if type(stated) is not type(found):
        return f"{at} is stated as {stated!r}, the rows say {found!r}"
    if isinstance(stated, dict):
        keys = dict.fromkeys([*stated, *found])
        return next((d for key in keys if (d := _difference(stated.get(key), found.get(key), f"{at}.{key}"))), None)
    if isinstance(stated, list):
        if len(stated) != len(found):
            return f"{at} has {len(stated)} entries, the rows give {len(found)}"
        pairs = enumerate(zip(stated, found, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{at}[{i}]"))), None)
    return None if stated == found else f"{at} is stated as {stated!r}, the rows say {found!r}"


def _unlike(report: Mapping[str, Any], compute: Compute) -> str:
    """What keeps this machine from computing the report's bits, as a sentence; empty where nothing does."""
    then, now = report["versions"], versions()
    unknown = [f"{name} was not recorded" for name in now if name not in then]
    recorded = {"threads": str(report["threads"]), "device": report["device"], **then}
    return "; ".join(unknown + changes(recorded, {"threads": str(compute.threads), "device": compute.device.type, **now}))


def _loadable(report: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Checkpoint]]:
    shipped: dict[str, Checkpoint] | None = None
    for row in report["checkpoints"]:
        if row["role"] == "random":
            continue
        path = folder / row["ref"]
        if path.is_file():
            checkpoint = load_checkpoint(str(path))
            if checkpoint.sha256 == row["weights_sha256"]:
                yield row["name"], checkpoint
                continue
        if shipped is None:
            found = (load_checkpoint(name) for name in builtin_names())
            shipped = {one.sha256: one for one in found}
        if row["weights_sha256"] in shipped:
            yield row["name"], shipped[row["weights_sha256"]]


def _rendered_again(row: Row, checkpoint: Checkpoint, report: Mapping[str, Any], compute: Compute, unlike: str) -> Check:
    what = f"picture {row['checkpoint']}, {row['recipe']}, {row['layer']}, {row['unit_name']}, seed {row['seed']}"
    recipe = parse_recipe(report["recipes"][row["recipe"]])
    shape = checkpoint.info.input_shape
    (done,) = render_pairs(
        checkpoint.net(), parse_objective(row["objective"]), [(row["unit"], row["seed"])], recipe, shape=shape,
        compute=compute, batch_size=row.get("batch_size") or report["batch_size"],  # reports of before have one for all
    )  # fmt: skip
    if report_module.sha256_of(to_uint8(done.image)) == row["pixels_sha256"]:
        return Check(what, True, "the same pixels, bit for bit")
    detail = f"other pixels; score {done.score:.4g}, stated {row['score']:.4g}"
    near = abs(done.score - row["score"]) <= TOLERANCE * abs(row["score"])
    if not unlike:
        return Check(what, False, f"{detail}, although processor, versions and threads are those recorded")
    return Check(what, near, f"{detail} ({unlike}; so {100 * TOLERANCE:g} % is asked for)")


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
    return Check(what, len(other) <= (FLIPS if unlike else 0), detail + (f"; not {other}" if other else ""))


def _drawn(rows: Sequence[Row], count: int, seed: int, purpose: str) -> list[Row]:
    order = Streams(seed, [purpose], "verify").permutation(len(rows))[0] if rows else torch.zeros(0, dtype=torch.int64)
    return [rows[int(i)] for i in order[:count]]
