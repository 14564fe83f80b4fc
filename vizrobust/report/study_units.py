"""A study's pictures as units by checkpoints, for the page that filters and sorts them, and for the contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizrobust.features.pictures import picture_inside
from vizrobust.report.study_data import Entry, Group, StudyGroups
from vizrobust.report.viewer import tile_style
from vizrobust.report.words import SATURATED
from vizrobust.results import percent

EXEMPLARS_SHOWN = 4
ACTIVATION = "activation"


@dataclass(frozen=True)
class Cell:
    """One picture; `file` is None where it is missing or the unit is dead."""

    row: Entry
    group: Group
    training_seed: int | None
    file: Path | None

    @property
    def checkpoint(self) -> str:
        return str(self.row["checkpoint"])

    @property
    def status(self) -> str:
        return str(self.row.get("status") or "ok")

    @property
    def scores(self) -> dict[str, float]:
        """The unit's activation and what each metric said of this picture."""
        named = {ACTIVATION: self.row.get("score"), **(self.row.get("scores") or {})}
        return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def units(study: StudyGroups, recipe: str, layer: str) -> list[tuple[int, str]]:
    """The units of a layer that were rendered, with their names, in order."""
    names = {int(row["unit"]): str(row.get("unit_name") or row["unit"]) for row in _rows(study, recipe, layer)}
    return sorted(names.items())


def cells(study: StudyGroups, folder: Path, recipe: str, layer: str) -> dict[tuple[str, int], list[Cell]]:
    """(group, unit) -> its pictures by training seed, then by image seed."""
    groups = {name: group for group in study.groups for name in group.checkpoints}
    seeds = {entry["name"]: entry.get("seed") for entry in study.report.rows("checkpoints")}
    found: dict[tuple[str, int], list[Cell]] = {}
    for row in _rows(study, recipe, layer):
        if row["checkpoint"] in groups:
            group = groups[row["checkpoint"]]
            file = inside(folder, row.get("image"))
            found.setdefault((group.name, int(row["unit"])), []).append(Cell(row, group, seeds[row["checkpoint"]], file))
    return {
        key: sorted(some, key=lambda cell: (cell.training_seed or 0, cell.row.get("seed") or 0)) for key, some in found.items()
    }


def inside(folder: Path, name: Any) -> Path | None:
    """A picture of the study by its relative path; None where there is none, or it is no picture inside the folder."""
    try:
        found = picture_inside(folder, name) if name else None
    except ValueError:
        return None
    return None if found is None else found.resolve()


def panels(study: StudyGroups, folder: Path, source: Callable[[Path], str], facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every layer and recipe as the template wants it; `facts` grows by one entry per picture and exemplar."""
    found = []
    for layer in study.layers:
        for recipe in study.recipes:
            by_place = cells(study, folder, recipe, layer)
            if by_place:
                found.append(_panel(study, folder, layer, recipe, by_place, source, facts))
    for index, panel in enumerate(found):
        panel["id"] = f"panel-{index}"
    return found


def _panel(
    study: StudyGroups,
    folder: Path,
    layer: str,
    recipe: str,
    by_place: Mapping[tuple[str, int], list[Cell]],
    source: Callable[[Path], str],
    facts: list[dict[str, Any]],
) -> dict[str, Any]:
    columns = [group for group in study.groups if any(name == group.name for name, _ in by_place)]
    natural = {int(row["unit"]): row["images"] for row in study.report.rows("exemplars") if row["layer"] == layer}
    about = {entry["name"]: entry for entry in study.report.rows("checkpoints")}
    robust = study.accuracy_of("strongest")
    lines = []
    for unit, name in units(study, recipe, layer):
        shown = []
        for group in columns:
            some = by_place.get((group.name, unit), [])
            tiles = []
            for cell in some:
                facts.append(_facts(study, cell, name, recipe, about[cell.checkpoint], robust.get(cell.checkpoint)))
                tiles.append({
                    "index": len(facts) - 1, "source": source(cell.file) if cell.file else "", "status": cell.status,
                    "seed": int(cell.row.get("seed") or 0), "alt": _alt(cell, name),
                    "training": "" if cell.training_seed is None else cell.training_seed,
                })  # fmt: skip
            shown.append({
                "key": group.name, "label": group.label, "k": group.k if group.has_k else None, "title": group.label,
                "told": "masked" if group.masked else "", "tiles": tiles, "exemplars": (),
            })  # fmt: skip
        exemplars = []
        for rank, image in enumerate(natural.get(unit, [])):
            file = inside(folder, image)
            if file is not None:
                exemplars.append({"rank": rank + 1, "source": source(file), "more": rank >= EXEMPLARS_SHOWN})
        lines.append({"unit": unit, "name": name, "cells": shown, "exemplars": exemplars})
    pictures = [cell for some in by_place.values() for cell in some]
    naturals = any(line["exemplars"] for line in lines)
    return {
        "title": f"{layer}, {recipe}",
        "button": f"{layer} · {recipe}",
        "lines": lines,
        "notes": [f"Orange corner, {SATURATED}."] if any(cell.status == "saturated" for cell in pictures) else [],
        "training_seeds": {cell.training_seed for cell in pictures if cell.training_seed is not None},
        "image_seeds": {int(cell.row.get("seed") or 0) for cell in pictures},
        **tile_style((cell.file for cell in pictures), len(columns) + naturals),
    }


def _alt(cell: Cell, name: str) -> str:
    """Unit, network and score, for those who do not see the picture."""
    status = [cell.status] if cell.status != "ok" else []
    score = f"score {cell.scores[ACTIVATION]:.4g}" if ACTIVATION in cell.scores else "no score"
    return ", ".join([name, cell.group.label, *status, score])


def measures(study: StudyGroups, facts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What units can be sorted by: their activation, and every metric that has a value for some picture."""
    names = dict.fromkeys(name for fact in facts for name in fact["scores"])
    return [(name, "activation" if name == ACTIVATION else study.title(name)) for name in names]


def _facts(study: StudyGroups, cell: Cell, name: str, recipe: str, entry: Entry, robust: float | None) -> dict[str, Any]:
    """What the enlarged picture says about itself."""
    pairs = {
        "activation": f"{cell.scores[ACTIVATION]:.4g}" if ACTIVATION in cell.scores else "-",
        **{study.title(metric): f"{value:.3g}" for metric, value in cell.scores.items() if metric != ACTIVATION},
        "status": cell.status,
        "near black or white": percent(cell.row.get("saturated_share")),
        "checkpoint": str(entry.get("label") or entry["name"]),
        "accuracy": f"clean {percent(entry.get('clean'))}, strongest attack {percent(robust)}",
        "recipe": str(study.report.facts("recipes").get(recipe) or recipe),
        "layer and unit": f"{cell.row['layer']}, unit {cell.row['unit']}, seed {cell.row.get('seed')}",
        "file": str(cell.row.get("image") or ""),
    }
    return {
        "key": "/".join(map(str, (cell.row["layer"], recipe, cell.row["unit"], cell.checkpoint, cell.row.get("seed")))),
        "title": f"{name} · {cell.group.label}",
        "pairs": [[key, text] for key, text in pairs.items() if text],
        "scores": cell.scores,
        "trajectory": (),
        "frames": "",
    }


def _rows(study: StudyGroups, recipe: str, layer: str) -> list[Entry]:
    return [row for row in study.report.rows("pictures") if (row["recipe"], row["layer"]) == (recipe, layer)]
