"""What trials are made from: a study's report, its pictures with all their seeds, its exemplars and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from vizrobust.data import DataSet, load
from vizrobust.models import LOGITS, Checkpoint, load_checkpoint
from vizrobust.runs import Row, read_rows
from vizrobust.spec import unknown

REPORT = "report.json"
IMAGES = "images"
DEAD = "dead"


@dataclass(frozen=True)
class Faces:
    """A unit's picture files, relative to the study's folder: its `own`, and those of the unit `negated` where there are any."""

    layer: str
    own: tuple[str, ...]
    negated: tuple[str, ...] = ()


def read_report(folder: Path | str) -> dict[str, Any]:
    """The study's report. ``FileNotFoundError`` where there is none, ``ValueError`` if it cannot be read."""
    path = Path(folder) / REPORT
    if not path.is_file():
        raise FileNotFoundError(f"no {REPORT} in {str(folder)!r}; give the folder of a finished study (vizrobust study)")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not readable ({error}); let the study write it again: vizrobust study") from error
    if not isinstance(report, dict) or report.get("format") != 1 or "checkpoints" not in report:
        raise ValueError(f"{str(path)!r} is no report of a study in format 1; give the folder that vizrobust study wrote")
    return report


def data_of(report: Mapping[str, Any], download: bool = False) -> DataSet:
    """The study's data set, whose test images are the queries; one sentence where it is not to be had."""
    name = report["data"]["name"]
    try:
        data = load(name, download)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(
            f"the trials ask about test images of the study's data set {name!r}, which are not here: {error}"
        ) from error
    if tuple(report["data"]["shape"]) != data.shape or tuple(report["data"]["classes"]) != data.classes:
        raise ValueError(
            f"{name!r} has other classes or another shape than when the study was made; bring back the data it was made with"
        )
    return data


def faces_of(
    folder: Path, report: Mapping[str, Any], recipe: str, layer: str, names: Sequence[str]
) -> dict[str, dict[int, Faces]]:
    """Checkpoint name -> unit -> pictures, for the checkpoints `names`, or for one of each dose.

    The report lists one seed of a unit; the others are in the run folder beside it, if that is there. Dead units have
    no pictures. Raises ``ValueError`` for names, recipes and layers that the study has no pictures of.
    """
    listed = [row for row in report["pictures"] if row["recipe"] == recipe]
    if not listed:
        there = dict.fromkeys(row["recipe"] for row in report["pictures"])
        raise ValueError(unknown(recipe, there, "recipe with pictures in this study"))
    there = dict.fromkeys(row["layer"] for row in listed)
    if layer not in there:
        raise ValueError(unknown(layer, there, f"layer with pictures under {recipe} in this study"))
    listed = [row for row in listed if row["layer"] == layer]
    have = dict.fromkeys(row["checkpoint"] for row in listed)
    for name in names:
        if name not in have:
            raise ValueError(unknown(name, have, f"checkpoint with pictures of {layer} under {recipe}"))
    chosen = list(dict.fromkeys(names)) or _one_of_each_dose(report, have)
    found: dict[str, dict[int, Faces]] = {name: {} for name in chosen}
    rows_of = cache(read_rows)  # a run folder holds the pictures of many units
    for row in listed:
        if row["checkpoint"] in found and row["status"] != DEAD:
            before = found[row["checkpoint"]].get(row["unit"], Faces(layer, ()))
            own, negated = _seeds(folder, row["image"], rows_of)
            both = (dict.fromkeys([*before.own, *own]), dict.fromkeys([*before.negated, *negated]))
            found[row["checkpoint"]][row["unit"]] = Faces(layer, *(tuple(files) for files in both))
    empty = [name for name, faces in found.items() if not faces]
    if empty:
        raise ValueError(
            f"all units of {empty[0]!r} are dead: there are no pictures to ask about; leave it out with --checkpoints"
        )
    return found


def exemplars_of(folder: Path, report: Mapping[str, Any]) -> dict[int, list[str]]:
    """Class unit -> files of its natural exemplars, the most exciting first."""
    found = {row["unit"]: list(row["images"]) for row in report["exemplars"] if row["layer"] == LOGITS and row["images"]}
    for name in (name for images in found.values() for name in images):
        _there(folder, name)
    return found


def checkpoints_of(folder: Path, report: Mapping[str, Any], names: Sequence[str], arch: str | None = None) -> list[Checkpoint]:
    """The study's checkpoints under the names that it gives them, with the weights that its report says."""
    rows = {row["name"]: row for row in report["checkpoints"]}
    found = []
    for name in names:
        row = rows.get(name, {})
        ref = row.get("ref")
        if not ref:
            raise ValueError(
                f"the report does not say where checkpoint {name!r} is; let the study write it again: vizrobust study"
            )
        try:
            checkpoint = load_checkpoint(str(folder / ref) if (folder / ref).exists() else ref, arch)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(
                f"the trials need the activations of checkpoint {name!r}, which is not to be had: {error}"
            ) from error
        if checkpoint.sha256 != row["weights_sha256"]:
            raise ValueError(f"{ref!r} holds other weights than checkpoint {name!r} of the study had; bring those back")
        found.append(replace(checkpoint, name=name))
    return found


def _one_of_each_dose(report: Mapping[str, Any], have: Mapping[str, None]) -> list[str]:
    """Of every K the checkpoint of the first training seed; all checkpoints where the study has no doses."""
    rows = [row for row in report["checkpoints"] if row["name"] in have]
    doses = sorted((row for row in rows if row["role"] == "dose"), key=lambda row: (row["k"], row["seed"]))
    first: dict[str, str] = {}
    for row in doses:
        first.setdefault(row["group"], row["name"])
    return list(first.values()) or [row["name"] for row in rows]


def _seeds(folder: Path, image: str, rows_of: Callable[[Path], list[Row]]) -> tuple[list[str], list[str]]:
    """All seeds of a listed picture and of its negative, by the rows of the run folder that it lies in."""
    _there(folder, image)
    parts = PurePosixPath(image).parts
    if IMAGES not in parts:
        return [image], []
    at = len(parts) - 1 - parts[::-1].index(IMAGES)
    run, name = PurePosixPath(*parts[:at]), str(PurePosixPath(*parts[at:]))
    rows = rows_of(folder / run)
    listed = next((row for row in rows if row["image"] == name), None)
    if listed is None:
        return [image], []
    alike = [row for row in rows if _subject(row) == _subject(listed) and row["status"] != DEAD]
    signs = ([row for row in alike if row["sign"] == sign * listed["sign"]] for sign in (1, -1))
    own, negated = ([str(run / row["image"]) for row in one if (folder / run / row["image"]).is_file()] for one in signs)
    return own, negated


def _subject(row: Row) -> tuple[Any, ...]:
    """What pictures of one unit share, whatever their seed and sign."""
    return tuple(row[key] for key in ("checkpoint", "recipe_text", "objective", "unit"))


def _there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"picture {name!r} is gone from {str(folder)!r}; bring the study's pictures back, or start it again"
        )
