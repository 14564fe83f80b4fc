"""A study's figures of clarity: over K for each metric, under its controls, over the distance, against robust accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from vizrobust.clarity import NaturalScale
from vizrobust.report.study_data import Entry, Group, StudyGroups, mean_of
from vizrobust.report.study_figures import K_AXIS, Steps, label_lines
from vizrobust.report.style import COLORS, FAINT, INK, MARKERS, QUIET, blank, house_style, wrapped
from vizrobust.report.words import judge_name
from vizrobust.spec import number_text

BESIDE, WIDE, PANEL, MARGIN = 3, 9.0, 2.05, 0.85
REFERENCES = {"natural": (0, ()), "random network": (0, (5, 2)), "before optimization": (0, (1, 1.6))}
CONTROLS = {
    None: "as rendered", "contrast": "contrast matched", "blur": "blurred", "equal-excitation": "equal excitation",
    "matched": "units matched",
}  # fmt: skip


def clarity_over_k(study: StudyGroups, role: str, layer: str) -> Figure | None:
    """Every metric of a role over K: a panel per judge, a line per recipe, references as straight lines; None without any.

    Bands are t intervals over training seeds (the range of two, none of one).
    """
    panels = [(metric, judge) for metric in study.metrics(role, layer) for judge in study.judges(metric["name"], layer)]
    if not panels or not study.swept:
        return None
    steps = Steps.of(study, baselines=False)
    with house_style():
        figure, grid = _panels(len(panels), _beside(panels))
        for place, ((metric, judge), axes) in enumerate(zip(panels, grid, strict=False)):
            labels: list[tuple[float, str, str]] = []
            for index, recipe in enumerate(study.recipes):
                series = study.clarity(metric["name"], recipe, judge, layer)
                look: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
                steps.draw(axes, series, markersize=4.5, linewidth=1.6, **look)
                last = steps.last(series)
                labels += [(last, recipe, look["color"])] if last is not None else []
            labels += _references(axes, study, metric, judge, layer)
            _finish(axes, steps, place, len(panels), _beside(panels))
            if place % _beside(panels) == _beside(panels) - 1 or place == len(panels) - 1:
                room = place % _beside(panels) == _beside(panels) - 1
                label_lines(axes, axes.get_xlim()[1], labels, PANEL * 0.8, size=7.5, width=20, leader=0.25, room=room)
            struck = " (excluded)" if judge in study.report.excluded_judges else ""
            _title(axes, study.title(metric["name"]), f"judge: {judge_name(judge)}{struck}" if judge else "", metric)
        return figure


def natural_scale_over_k(study: StudyGroups, radii: StudyGroups | None = None) -> Figure | None:
    """Class pictures between scrambled and photograph, over K and over eps: each judge thin, the mean over families thick.

    `radii` is another study, by the same judges, whose radii are shown in place of this one's. Many panels stand in a row
    per recipe. The last one shows the curves on which the scale rests. None without natural scales.
    """
    layer, metric = "logits", "natural_equivalent"
    judges = [name for name in study.judges(metric, layer) if name is not None and name not in study.report.excluded_judges]
    if not judges or not study.swept:
        return None
    others = radii or study
    looks = {judge: COLORS[index % len(COLORS)] for index, judge in enumerate(judges)}
    over_eps = [recipe for recipe in study.recipes if others.radii and recipe in others.recipes]
    count = len(study.recipes) + len(over_eps)
    down = 1 if count < BESIDE else len(study.recipes)
    # The curves stand where a recipe has no radii, else in a column of their own.
    alone = [place for place, recipe in enumerate(study.recipes) if recipe not in over_eps] if down > 1 else []
    beside = count + 1 if down == 1 else BESIDE - bool(alone)
    with house_style():
        # Names of baselines below the axis need their room in every panel.
        named = (len(study.recipes) if down == 1 else 1) * len(study.baselines)
        figure = blank((max(WIDE, 3.5 * beside) + max(0, named - 2) * 0.7, 3.7 * down), pad=0.1)
        grid = figure.subplots(down, beside, squeeze=False, width_ratios=[*[1.25] * (beside - 1), 1.25 if alone else 1])
        for axes in grid.flat:
            axes.set_axis_off()  # until something is drawn there
        for place, recipe in enumerate(study.recipes):
            axes = grid[0, place] if down == 1 else grid[place, 0]
            _judged(axes, study, Steps.of(study), recipe, looks)
            axes.set_title(recipe, loc="left", fontsize=10.5, pad=8)
            axes.set_xlabel("attack steps K in training")
        for place, recipe in enumerate(over_eps):
            axes = grid[0, len(study.recipes) + place] if down == 1 else grid[study.recipes.index(recipe), 1]
            _judged(axes, others, Steps(tuple(others.radii.values()), ()), recipe, looks)
            axes.set_xticks(range(len(others.radii)), [number_text(eps) if eps else "0" for eps in others.radii], fontsize=8)
            axes.set_title(recipe, loc="left", fontsize=10.5, pad=8)
            axes.set_xlabel(f"eps in training, K = {max(group.k or 0 for group in others.radii.values())} (at 0: K = 0)")
        _scale_curves(grid[alone[0], 1] if alone else grid[0, -1], study, looks)
        for axes in grid[:, 0]:
            axes.set_ylabel("natural-equivalent clarity")
        return figure


def _judged(axes: Axes, study: StudyGroups, steps: Steps, recipe: str, looks: Mapping[str, str]) -> None:
    """Natural-equivalent clarity of class pictures over these groups: the judges thin, in their colours, their mean thick."""
    layer, metric = "logits", "natural_equivalent"
    for judge, color in looks.items():
        steps.draw(axes, study.clarity(metric, recipe, judge, layer), thin=True, color=color, linewidth=1, markersize=0)
    mean = study.spreads(study.over_judges(metric, recipe, layer))
    steps.draw(axes, mean, color=INK, marker="o", linewidth=2.6, markersize=5.5)
    steps.dress(axes, size=9)
    _on_the_scale(axes)


def _scale_curves(axes: Axes, study: StudyGroups, looks: Mapping[str, str]) -> None:
    """The curve of each judge, from its score of scrambled photographs to that of photographs."""
    for row in study.report.rows("scales"):
        if row["judge"] in looks:
            rising = NaturalScale.read(row).curve()
            share = (rising - rising[0]) / max(rising[-1] - rising[0], 1e-12)
            axes.plot(share, row["coherences"], color=looks[row["judge"]], linewidth=1.4, label=judge_name(row["judge"]))
    _on_the_scale(axes)
    axes.set_title("the judges' curves", loc="left", fontsize=10.5, pad=8)
    axes.set_xticks([0, 0.5, 1], ["scrambled", ".5", "photograph"], fontsize=8)
    axes.set_xlabel("score")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.94))  # below the line of photographs


def _on_the_scale(axes: Axes) -> None:
    axes.set_axis_on()
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["scrambled 0", ".25", ".5", ".75", "photograph 1"], fontsize=8)
    for level in (0, 1):
        axes.axhline(level, color=FAINT, linewidth=0.9, zorder=0)
    _quiet(axes)


def controls_over_k(study: StudyGroups, layer: str) -> Figure | None:
    """Primary metrics over K as rendered, contrast matched, blurred and at equal excitation: the mean of the judges."""
    panels = [(metric, recipe) for metric in study.metrics("primary", layer) for recipe in study.recipes]
    drawn = [[(c, study.spreads(study.over_judges(m["name"], r, layer, c))) for c in CONTROLS] for m, r in panels]
    drawn = [[(control, series) for control, series in panel if series] for panel in drawn]
    if not study.swept or not any(control for panel in drawn for control, _series in panel):
        return None
    steps, beside = Steps.of(study, baselines=False), len(study.recipes)
    with house_style():
        figure, grid = _panels(len(panels), beside)
        for place, ((metric, recipe), lines, axes) in enumerate(zip(panels, drawn, grid, strict=False)):
            labels = []
            for control, series in lines:
                index = list(CONTROLS).index(control)
                look: dict[str, Any] = {
                    "color": INK if control is None else COLORS[index % len(COLORS)],
                    "marker": MARKERS[index],
                }
                steps.draw(axes, series, thin=control is not None, markersize=4.5, linewidth=1.6, **look)
                last = steps.last(series)
                labels += [(last, CONTROLS[control], look["color"])] if last is not None else []
            _finish(axes, steps, place, len(panels), beside)
            if place % beside == beside - 1:
                label_lines(axes, axes.get_xlim()[1], labels, PANEL * 0.8, size=8, width=20)
            _title(axes, study.title(metric["name"]), recipe, metric)
        return figure


def clarity_distance(study: StudyGroups) -> Figure | None:
    """Clarity during optimization over the mean L2 distance from the start image, a line per K."""
    curves = {recipe: _curves(study, recipe) for recipe in study.recipes}
    curves = {recipe: lines for recipe, lines in curves.items() if lines}
    if not curves:
        return None
    with house_style():
        figure = blank((WIDE, 3.9), pad=0.1)
        for axes, (recipe, lines) in zip(
            figure.subplots(1, len(curves), sharey=True, squeeze=False).flat, curves.items(), strict=True
        ):
            colors = dict(zip([group.name for group, _ in lines], shades(len(lines)), strict=True))
            for index, (group, points) in enumerate(lines):
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=colors[group.name], marker=MARKERS[index % len(MARKERS)], markersize=3.5, linewidth=1.7)
            _quiet(axes)
            axes.set_xlim(0, None)
            axes.set_title(recipe, loc="left", fontsize=10.5, pad=8)
            axes.set_xlabel("mean L2 distance from the start image")
            ends = [(points[-1][1], group.label, colors[group.name]) for group, points in lines]
            right = axes.get_xlim()[1]
            for (y, _, color), (_, points) in zip(ends, lines, strict=True):
                axes.plot(
                    [points[-1][0], right], [y, y], color=color, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1, scalex=False
                )
            label_lines(axes, right, ends, 3.0, size=9, leader=0.03 * right)
        figure.axes[0].set_ylabel("2AFC AUC (hard)")
        return figure


def clarity_against_accuracy(study: StudyGroups, layer: str) -> Figure | None:
    """Primary metrics against accuracy under the strongest attack, a mark per checkpoint; full marks are K of at least 1."""
    robust = study.accuracy_of("strongest")
    panels = [(metric, recipe) for metric in study.metrics("primary", layer) for recipe in study.recipes]
    found = [study.over_judges(metric["name"], recipe, layer) for metric, recipe in panels]
    if not robust or not any(name in robust for values in found for name in values):
        return None
    beside = len(study.recipes)
    colors = dict(zip([group.name for group in study.swept], shades(len(study.swept)), strict=True))
    with house_style():
        figure, grid = _panels(len(panels), beside)
        for (metric, recipe), values, axes in zip(panels, found, grid, strict=False):
            labels = []
            for group in (*study.swept, *study.baselines):
                points = [(100 * robust[name], values[name]) for name in group.checkpoints if name in robust and name in values]
                if not points:
                    continue
                color = colors.get(group.name, QUIET)
                xs, ys = zip(*points, strict=True)
                face = "none" if group.has_k and not group.k else color
                axes.scatter(
                    xs,
                    ys,
                    s=24,
                    marker="o" if group.has_k else "D",
                    color=color,
                    facecolor=face,
                    linewidth=1.3,
                    zorder=3,
                    clip_on=False,
                )
                at = (sum(xs) / len(xs), max(ys)) if group.has_k else (max(xs), sum(ys) / len(ys))
                labels.append((*at, str(group.k) if group.has_k and group.label[:1] == "K" else group.label, color))
            _quiet(axes)
            axes.margins(y=0.16)
            axes.set_xlim(-4, 104)
            for x, y, text, color in labels:  # numbers above their marks, names of baselines beside them
                place: dict[str, Any] = (
                    {"xytext": (0, 5), "ha": "center"} if color != QUIET else {"xytext": (6, -3), "ha": "left"}
                )
                axes.annotate(text, (x, y), textcoords="offset points", fontsize=8, color=color, **place)
            _title(axes, study.title(metric["name"]), recipe, metric)
        figure.supxlabel("accuracy under the strongest attack found (%); numbers are K", fontsize=9.5)
        return figure


def shades(count: int) -> list[str]:
    """`count` colours from light to dark for more and more steps, ordered for any colour vision."""
    palette = mpl.colormaps["viridis_r"]
    return [to_hex(palette(0.4 + 0.55 * index / max(1, count - 1))) for index in range(count)]


def _curves(study: StudyGroups, recipe: str) -> list[tuple[Group, list[tuple[float, float]]]]:
    """Group -> (distance, value) by step, each the mean over its training seeds and the judges that count."""
    found = []
    for group in study.swept:
        by_step: dict[int, list[Entry]] = {}
        for row in study.report.rows("distance"):
            mine = (
                row["checkpoint"] in group.checkpoints
                and row["recipe"] == recipe
                and row.get("judge") not in study.report.excluded_judges
            )
            if mine and row.get("value") is not None and row.get("distance") is not None:
                by_step.setdefault(int(row["step"]), []).append(row)
        points = [
            (mean_of([row["distance"] for row in rows]), mean_of([row["value"] for row in rows]))
            for _, rows in sorted(by_step.items())
        ]
        if points:
            found.append((group, points))
    return found


def _references(axes: Axes, study: StudyGroups, metric: Entry, judge: str | None, layer: str) -> list[tuple[float, str, str]]:
    """Straight lines: grey ones that hold for every recipe, in a recipe's colour those that belong to it."""
    labels = []
    for name, dashes in REFERENCES.items():
        values = {recipe: study.report.reference(name, metric["name"], recipe, judge, layer, None) for recipe in study.recipes}
        one = len(set(values.values())) == 1
        for index, (recipe, value) in enumerate(values.items()):
            if value is None or (one and index):
                continue
            color = QUIET if one else COLORS[index % len(COLORS)]
            axes.axhline(value, color=color, linewidth=1.1, linestyle=dashes, zorder=1)
            labels.append((value, name if one else f"{name}, {recipe}", color))
    if metric.get("chance") is not None:
        axes.axhline(metric["chance"], color="#b9bec5", linewidth=0.9, zorder=0)
        axes.text(
            0.99,
            metric["chance"],
            "chance",
            transform=axes.get_yaxis_transform(),
            fontsize=7,
            color=QUIET,
            va="bottom",
            ha="right",
        )
    return labels


def _beside(panels: Sequence[tuple[Entry, str | None]]) -> int:
    """As many panels in a row as every metric has judges, if that is at most three."""
    counts = {sum(other is metric for other, _ in panels) for metric, _ in panels}
    own = counts.pop()
    return own if not counts and 1 < own <= BESIDE else min(BESIDE, len(panels))


def _panels(count: int, beside: int) -> tuple[Figure, Sequence[Axes]]:
    down = math.ceil(count / beside)
    figure = blank((max(5.2, WIDE * min(1.0, beside / 2)), 0.35 + (PANEL + MARGIN) * down), pad=0.09)
    grid = list(figure.subplots(down, beside, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid


def _finish(axes: Axes, steps: Steps, place: int, count: int, beside: int) -> None:
    _quiet(axes)
    steps.dress(axes, size=8.5)
    if place + beside >= count:
        axes.set_xlabel("attack steps K" if beside > 1 else K_AXIS, fontsize=8.5)


def _quiet(axes: Axes) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=8.5)
    axes.spines["left"].set_visible(False)


def _title(axes: Axes, title: str, below: str, metric: Entry) -> None:
    notes = [below, "lower is clearer" if metric.get("direction", 1) < 0 and metric["role"] != "diagnostic" else ""]
    second = wrapped(", ".join(note for note in notes if note), 44)
    axes.set_title(f"{wrapped(title, 44)}\n{second or ' '}", loc="left", fontsize=8.5, linespacing=1.3, pad=7)
