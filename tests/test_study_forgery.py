"""A report that an expert forges: each field of the committed reports is changed, one at a time, and is noticed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from vizrobust.study import StudyReport
from vizrobust.study.report import READABLE
from vizrobust.study.report_checks import READ, UNCHECKED, not_checked, stated_checks
from vizrobust.study.verify import _concluded

# All 464 fields take more than half an hour; another seed draws others.
OF_EACH_PART = 2
GALLERY = Path(__file__).resolve().parents[1] / "gallery"
STUDIES = ("mnist-study", "imagenette-study")
# Fields that only measuring again can judge, with the checks that do (`measured_again.py`, `verify.py`): what each states
# of one network, recipe or pair is compared with what is measured of it.
MEASURED = {
    "distance[].distance": "distances", "distance[].value": "distances", "excitation[].ratio": "excitation",
    "excitation[].radius": "excitation", "excitation[].reached": "excitation", "matching[].units[]": "matching",
    "matching[].partners[]": "matching", "matching[].quality": "matching", "matching[].chance": "matching",
    "matching[].checkpoint": "matching", "matching[].reference": "matching",
    "path_similarity[].value": "path similarity", "path_similarity[].checkpoint": "path similarity",
    "path_similarity[].recipe": "path similarity", "path_similarity[].why": "path similarity",
    "distance[].step": "distances", "distance[].checkpoint": "distances", "distance[].recipe": "distances",
    "excitation[].checkpoint": "excitation", "excitation[].recipe": "excitation", "excitation[].layer": "excitation",
    "pictures[].pixels_sha256": "picture", "pictures[].score": "picture", "pictures[].batch_size": "picture",
    "pictures[].saturated_share": "picture", "pictures[].status": "picture", "pictures[].checkpoint": "picture",
    "pictures[].image": "picture", "recipes.plain": "picture", "recipes.fourier": "picture", "data.shape[]": "data set",
}  # fmt: skip
# What is believed, as `verify` lists it.
BELIEVED = {
    "command": "command", "versions": "versions", "threads": "threads", "device": "device",
    "prereg.departures": "prereg.departures",
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield path
        return
    for key, one in items:
        yield from leaves(one, (*path, key))


def field(path: tuple[Any, ...]) -> str:
    text = ""
    for key in path:
        text += "[]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def forged(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.05 + 0.01
        case str():
            return value + "x"
        case None:
            return 0.5
        case list():
            return ["x"]
        case dict():
            return {"x": 1}


def is_believed(name: str, report: dict[str, Any]) -> bool:
    top = name.split(".")[0].split("[")[0]
    wording = report["format"] == 1 and (
        name in ("metrics[].title", "verdict.sentences[]", "verdict.overall", "trends[].why", "judges[].disqualified")
        or name in ("trends[].spearman", "trends[].page_p", "verdict.by_metric[].why")
    )
    return top in BELIEVED or name in BELIEVED or wording


def noticed(report: dict[str, Any], folder: Path) -> bool:
    if report["format"] not in READABLE:
        return True  # `StudyReport.read` refuses it
    found = StudyReport(report)
    try:
        return any(check.ok is False for check in chain(stated_checks(found, folder), _concluded(found)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return True  # refused


def fields_of(report: dict[str, Any], seed: int) -> dict[str, tuple[Any, ...]]:
    """Field -> one place of it, drawn."""
    places: dict[str, list[tuple[Any, ...]]] = {}
    for path in leaves(report):
        places.setdefault(field(path), []).append(path)
    draw = random.Random(seed)
    return {name: draw.choice(some) for name, some in places.items()}


def sampled(report: dict[str, Any], seed: int) -> dict[str, tuple[Any, ...]]:
    """Field -> one place of it: of each part of the report `OF_EACH_PART` fields, drawn among those that reports alone judge."""
    parts: dict[str, list[str]] = {}
    fields = fields_of(report, seed)
    for name in fields:
        if name not in MEASURED and not is_believed(name, report):
            parts.setdefault(name.split(".")[0].split("[")[0], []).append(name)
    draw = random.Random(seed)
    return {name: fields[name] for names in parts.values() for name in draw.sample(names, min(len(names), OF_EACH_PART))}


def unnoticed(study: str, seed: int) -> list[str]:
    folder = GALLERY / study
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    missed = []
    for name, path in sampled(report, seed).items():
        changed = {**report, path[0]: copy.deepcopy(report[path[0]])}
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = forged(place[path[-1]])
        if not noticed(changed, folder):
            missed.append(f"{name} at {path}")
    return missed


def test_a_committed_report_says_what_follows_from_it() -> None:
    for study in STUDIES:
        report = StudyReport.read(GALLERY / study)
        assert [one for one in stated_checks(report, GALLERY / study) if one.ok is not True] == []


def test_a_sample_of_forged_fields_is_noticed() -> None:
    folder = GALLERY / "imagenette-study"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for key, change in (
        ("data", {**report["data"], "eps": 0.02}),
        ("checkpoints", [{**report["checkpoints"][0], "clean": 0.9}, *report["checkpoints"][1:]]),
    ):
        assert noticed({**report, key: change}, folder), key


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_forged_field_is_noticed_or_listed(study: str) -> None:
    assert unnoticed(study, seed=0) == []


def test_what_is_believed_is_listed_with_its_reason() -> None:
    assert len(UNCHECKED) + 1 <= 10
    assert all(UNCHECKED.values())
    assert set(BELIEVED.values()) <= set(UNCHECKED)
    assert all(check.how == READ and check.ok is None for check in not_checked(StudyReport.read(GALLERY / "mnist-study")))


def test_a_changed_preregistration_is_noticed_by_its_copy(tmp_path: Path) -> None:
    report = json.loads((GALLERY / "mnist-study" / "report.json").read_text(encoding="utf-8"))
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({**report["prereg"]["content"], "inference": "otherwise"}))
    wrong = next(one.what for one in stated_checks(StudyReport(report), tmp_path, kept) if one.ok is False)
    assert wrong == "preregistration's copy"
    with pytest.raises(FileNotFoundError, match="give a copy of the study's prereg"):
        list(stated_checks(StudyReport(report), tmp_path, tmp_path / "absent.json"))
