"""Sections of a study page: its pictures as units by checkpoints, and its secondary outcomes over K."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vizrobust.attribution import MEASURES
from vizrobust.features.pictures import picture_inside
from vizrobust.report.study_data import Entry, Group, Spread, StudyGroups
from vizrobust.report.study_figures import Steps, label_lines
from vizrobust.report.study_tables import CONTRASTS, mean_text, short
from vizrobust.report.style import COLORS, INK, MARKERS, QUIET, blank, house_style
from vizrobust.report.viewer import tile_style
from vizrobust.report.words import SATURATED
from vizrobust.results import Table, percent
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES, Contrast, Outcome

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
                "told": group.diagnosed, "tiles": tiles, "exemplars": (),
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


TITLES = {
    "deletion": "deletion gain", "insertion": "insertion gain", "infidelity": "infidelity", "sensitivity": "sensitivity",
    "weights": "same as random weights", "gini": "sparsity (Gini)",
}  # fmt: skip
MEANING = (
    "Attribution maps of the predicted class, means over images. Deletion and insertion: probability gained over random orders "
    "of pixels; infidelity: the part of the logit's changes under hidden squares that the map does not tell; sensitivity: the "
    "largest relative change of the map under noise of .02; same as random weights: rank correlation with the map of a network "
    "with random weights; sparsity: 0 where all pixels count alike, near 1 for one pixel. Effective number of features: the "
    "participation ratio of the layer's covariance (Gao et al. 2017)."
)
WIDE, TALL = 4.5, 3.3
DOTTED, NEAR = (0, (1, 1.6)), "random weights"


def secondary_over_k(study: StudyGroups) -> Figure | None:
    """Sparsity of the maps of each method, and effective number of features, over K; None where neither was measured.

    Each training seed is a thin line, their mean a thick one. The network with random weights is a dotted line, or a number
    where it is far from the others.
    """
    measured = study.report.secondary_values
    panels = {
        "sparsity of attribution maps (Gini)": [one for one in measured if (one.kind, one.measure) == (ATTRIBUTION, "gini")],
        "effective number of features": [one for one in measured if one.kind == FEATURES],
    }
    panels = {title: outcomes for title, outcomes in panels.items() if outcomes}
    if not panels or not study.swept:
        return None
    with house_style():
        figure = blank((WIDE * len(panels), TALL), pad=0.1)
        for (title, outcomes), axes in zip(panels.items(), figure.subplots(1, len(panels), squeeze=False).flat, strict=True):
            _outcome_panel(axes, study, outcomes)
            axes.set_title(title, loc="left", fontsize=10.5, pad=8)
            axes.set_xlabel("attack steps K in training")
        return figure


def _outcome_panel(axes: Axes, study: StudyGroups, outcomes: list[Outcome]) -> None:
    steps, labels = Steps.of(study, baselines=False), []
    seeds = {str(row["name"]): row["seed"] for row in study.report.rows("checkpoints")}
    untrained = [name for group in study.groups if group.role == "random" for name in group.checkpoints]
    for index, outcome in enumerate(outcomes):
        values = {name: value for name, value in study.report.secondary_values[outcome].items() if value is not None}
        color = COLORS[index % len(COLORS)] if len(outcomes) > 1 else INK
        for seed in sorted(set(seeds.values())) if study.seeds > 1 else ():
            own = {group.name: Spread(values[name]) for group in study.swept for name in group.checkpoints
                   if seeds[name] == seed and name in values}  # fmt: skip
            steps.draw(axes, own, thin=True, color=color, linewidth=0.8, alpha=0.55, markersize=0)
        mean = {name: Spread(spread.mean) for name, spread in study.spreads(values).items()}
        steps.draw(axes, mean, color=color, marker=MARKERS[index % len(MARKERS)], linewidth=2.6)
        last = steps.last(mean)
        labels += [(last, method_name(outcome), color)] if last is not None else []
        for name in untrained:
            if name in values:
                _random_weights(axes, values[name], f", {method_name(outcome)}" if len(outcomes) > 1 else "", color)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False, loc="best")
    steps.dress(axes, size=9)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    if outcomes[0].kind == FEATURES:
        axes.set_ylim(0)
    label_lines(axes, axes.get_xlim()[1], labels, 0.7 * TALL, size=8.5, width=20)


def _random_weights(axes: Axes, value: float, of: str, color: str) -> None:
    """The value of the network with random weights, as a line where it is near those of the others, else as a number."""
    low, high = axes.get_ylim()
    if low - (high - low) <= value <= high + (high - low):
        axes.axhline(value, color=color, linewidth=1, linestyle=DOTTED, zorder=1)
        known = axes.get_legend_handles_labels()[1]
        axes.plot([], [], color=QUIET, linewidth=1, linestyle=DOTTED, label="_" if NEAR in known else NEAR)
    else:
        axes.plot([], [], linestyle="none", label=f"{NEAR}{of}: {short(value)}")


def method_name(outcome: Outcome) -> str:
    """The method or layer of an outcome, as tables and figures call it.

    >>> [method_name(Outcome("attribution", "gini", of)) for of in ("SmoothGrad(samples=9)", "Saliency()")]
    ['SmoothGrad(samples=9)', 'Saliency']
    """
    return outcome.of.removesuffix("()")


def measure_title(outcome: Outcome) -> str:
    """What is measured, in words."""
    return "effective number of features" if outcome.kind == FEATURES else TITLES[outcome.measure]


def secondary_table(study: StudyGroups) -> Table | None:
    """The contrasts of every secondary outcome with their intervals over training seeds; None where none was measured."""
    found: dict[Outcome, dict[str, Contrast]] = {}
    for one in study.report.secondary:
        found.setdefault(one.outcome, {})[one.contrast.name] = one.contrast
    names = [name for name in CONTRASTS if any(name in mine for mine in found.values())]
    rows = [
        [measure_title(outcome), method_name(outcome), *(_estimate(found[outcome].get(name)) for name in names),
         " to ".join(map(str, sorted({len(one.per_seed) for one in found[outcome].values()})))]
        for outcome in sorted(found, key=_place)
    ]  # fmt: skip
    note = (
        f"{'. '.join(CONTRASTS[name] for name in names)}. In brackets 95 % t intervals over training seeds, not corrected for "
        "their number: descriptions, without a verdict."
    )
    return Table("Contrasts of the secondary outcomes", ("outcome", "of", *names, "training seeds"), rows, note) if rows else None


def _estimate(found: Contrast | None) -> str:
    if found is None or found.estimate is None:
        return "-"
    known = found.ci_low is not None and found.ci_high is not None
    return f"{short(found.estimate)} [{short(found.ci_low)}, {short(found.ci_high)}]" if known else short(found.estimate)


def _place(outcome: Outcome) -> int:
    """Tables go by measures, not by methods; features come last."""
    return [*MEASURES, outcome.measure].index(outcome.measure)


def secondary_values(study: StudyGroups) -> Table | None:
    """The mean over training seeds of every secondary outcome, by group; None where none was measured."""
    measured = study.report.secondary_values
    rows = []
    for outcome in sorted(measured, key=_place):
        series = study.spreads({name: value for name, value in measured[outcome].items() if value is not None})
        rows.append([measure_title(outcome), method_name(outcome), *(mean_text(series, group.name) for group in study.groups)])
    header = ("outcome", "of", *(group.label for group in study.groups))
    return Table("Secondary outcomes of every group", header, rows, MEANING) if rows else None
