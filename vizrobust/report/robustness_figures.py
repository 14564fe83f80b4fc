"""Figures of robustness: accuracy over eps, minimal perturbations, trained and unforeseen attacks, corruptions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vizrobust.intervals import wilson
from vizrobust.report.style import (
    COLORS,
    FAINT,
    INK,
    LABEL_SIZE,
    MARKERS,
    PAPER,
    QUIET,
    Curves,
    Point,
    accuracy_axes,
    blank,
    check,
    house_style,
    label_ends,
    legend_above,
    legend_of,
    percent_upwards,
    percentages,
    wrapped,
)

# The axis is logarithmic where half of the radii lie in this lowest part of it.
CROWDED = 1 / 8
TICKS_APART = 0.085  # of the axis
MARKED_UP_TO = 12
PANEL, PANELS_BESIDE = (1.75, 1.62), 5


def accuracy_over_eps(curves: Curves, *, training_eps: Sequence[float] = (), axis: str = "eps") -> Figure:
    """Draw accuracy over the attack's radius, one line with its interval per curve.

    `curves` are (label, points); a point has ``eps`` and, as shares, ``accuracy, ci_low, ci_high``. `training_eps` are
    marked; `axis` names the radius, such as ``eps (Linf)``. Where half of the radii lie in its lowest eighth, the axis is
    logarithmic, with 0 at its start. Raises ``ValueError`` where there is nothing to
    draw.
    """
    check(curves)
    with house_style():
        figure, axes = accuracy_axes()
        ordered = [(label, sorted(points, key=lambda point: point["eps"])) for label, points in curves]
        for index, (_, points) in enumerate(ordered):
            color, xs = COLORS[index % len(COLORS)], [point["eps"] for point in points]
            low, high = (percentages(points, bound) for bound in ("ci_low", "ci_high"))
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            marker = MARKERS[index % len(MARKERS)] if len(points) <= MARKED_UP_TO else ""
            axes.plot(
                xs, percentages(points, "accuracy"), color=color, linewidth=1.8, marker=marker, markersize=5, clip_on=False,
                zorder=3,
            )  # fmt: skip
        _radii(axes, [point["eps"] for _, points in curves for point in points])
        _mark_training(axes, training_eps)
        axes.set_xlabel(axis)
        label_ends(axes, [label for label, _ in ordered], [percentages(points, "accuracy")[-1] for _, points in ordered])
        return figure


def minimal_perturbations(
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    training_eps: Sequence[float] = (),
    axis: str = "smallest eps that breaks an image",
) -> Figure:
    """Draw the share of images that are not broken at each radius, with a band and its median, one line per series.

    `series` are (label, the smallest eps of each image): 0 for a clean error, inf for an image that was never broken.
    The line at eps is the accuracy under the attack at eps, so at 0 it is clean accuracy. Raises ``ValueError`` for a value that
    is not a number.
    """
    check(series)
    ordered = [(label, np.sort(np.asarray(radii, dtype=float))) for label, radii in series]
    finite = [radius for _, radii in ordered for radius in radii[np.isfinite(radii)]]
    if any(np.isnan(radii).any() for _, radii in ordered):
        raise ValueError("a smallest eps is not a number; give 0 for clean errors and inf for images that were never broken")
    largest = max(finite, default=0.0)
    last = 1.03 * largest or 1.0
    with house_style():
        figure, axes = accuracy_axes()
        labels = []
        for index, (label, radii) in enumerate(ordered):
            color, median = COLORS[index % len(COLORS)], _median(radii)
            xs, alive = _survivors(radii, last)
            bounds = [wilson(count, len(radii)) for count in alive]
            low, high = ([100 * bound[side] for bound in bounds] for side in (0, 1))
            axes.fill_between(xs, low, high, step="post", color=color, alpha=0.13, linewidth=0)
            axes.step(xs, [100 * count / len(radii) for count in alive], where="post", color=color, linewidth=1.8, zorder=3)
            if median <= last:
                axes.plot(median, 50, "o", color=color, markersize=6, markeredgecolor=PAPER, zorder=4, clip_on=False)
            labels.append(
                f"{label}: median {_eps_text(median) if median <= last else f'above {_eps_text(max(finite, default=0.0))}'}"
            )
        axes.axhline(50, color=FAINT, linewidth=1.2, zorder=1)
        axes.set_xlim(0, last)
        _mark_training(axes, training_eps)
        axes.set_xlabel(axis)
        axes.set_ylabel("images unbroken (%)")
        legend_above(figure, labels, markers=False)
        return figure


def accuracy_under_attacks(series: Curves) -> Figure:
    """Draw accuracy with its interval under each attack, side by side; marks are full where training used the attack.

    `series` are (label, rows); a row has ``attack``, maybe ``foreseen`` (whether training used it; None is neither) and, as
    shares, ``accuracy, ci_low, ci_high`` (the bounds may be None). Attacks keep their order, those that some
    training used first.
    """
    check(series)
    rows = [row for _, points in series for row in points]
    attacks = sorted(dict.fromkeys(str(row["attack"]) for row in rows), key=lambda name: _block(rows, name))
    blocks = [_block(rows, name) for name in attacks]
    apart = 0.62 / max(len(series), 2)
    with house_style():
        figure = blank((7.6, 1.3 + (0.24 + 0.11 * len(series)) * len(attacks)))
        axes = figure.add_subplot()
        for index, (_, points) in enumerate(series):
            shift = apart * (index - (len(series) - 1) / 2)
            for row in points:
                y = attacks.index(str(row["attack"])) + shift
                _dot(axes, y, row, COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)])
        for place in range(1, len(attacks)):
            new = blocks[place] != blocks[place - 1]
            axes.axhline(place - 0.5, color=QUIET if new else FAINT, linewidth=1.0 if new else 0.7, zorder=1)
        axes.set_yticks(range(len(attacks)), [wrapped(name, 34) for name in attacks])
        axes.set_ylim(len(attacks) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=6)
        axes.set_xlabel("accuracy (%)")
        _foreseen_legend(figure, [label for label, _ in series], any(row.get("foreseen") is not None for row in rows))
        return figure


def corruption_curves(series: Curves, *, clean: Mapping[str, float] | None = None) -> Figure:
    """Draw accuracy over the severity of each corruption in a panel of its own, one line with its interval per series.

    `series` are (label, rows); a row has ``corruption, severity`` and, as shares, ``accuracy, ci_low, ci_high``; `clean`
    is each label's accuracy on unchanged images, which stands at severity 0.
    """
    check(series)
    kinds = list(dict.fromkeys(str(row["corruption"]) for _, rows in series for row in rows))
    most = max(int(row["severity"]) for _, rows in series for row in rows)
    beside = min(PANELS_BESIDE, len(kinds))
    down = math.ceil(len(kinds) / beside)
    with house_style():
        figure = blank((max(4.6, 0.6 + PANEL[0] * beside), 1.0 + PANEL[1] * down), pad=0.07)
        panels = figure.subplots(down, beside, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(panels.flat):
            if place >= len(kinds):
                axes.set_axis_off()
                continue
            percent_upwards(axes)
            axes.tick_params(pad=3, labelsize=8)
            axes.set_title(wrapped(kinds[place].replace("_", " "), 18), loc="left", fontsize=9, pad=5)
            for index, (label, rows) in enumerate(series):
                mine = sorted((row for row in rows if str(row["corruption"]) == kinds[place]), key=lambda row: row["severity"])
                _severities(axes, mine, (clean or {}).get(label), index)
            axes.set_xlim(-0.15 if clean else 0.85, most + 0.15)
            axes.set_xticks(range(0 if clean else 1, most + 1))
            if place + beside >= len(kinds):  # also above a place that stays empty
                axes.tick_params(labelbottom=True)
        figure.supxlabel("severity (0: clean images)" if clean else "severity", fontsize=LABEL_SIZE)
        figure.supylabel("accuracy (%)", fontsize=LABEL_SIZE)
        legend_above(figure, [label for label, _ in series], markersize=4.5)
        return figure


def _severities(axes: Axes, rows: Sequence[Point], clean: float | None, index: int) -> None:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    xs, ys = [row["severity"] for row in rows], percentages(rows, "accuracy")
    if rows:
        axes.fill_between(xs, percentages(rows, "ci_low"), percentages(rows, "ci_high"), color=color, alpha=0.15, linewidth=0)
    start = ([0], [100 * clean]) if clean is not None else ([], [])
    axes.plot(start[0] + xs, start[1] + ys, color=color, linewidth=1.4, marker=marker, markersize=3.2, clip_on=False, zorder=3)


def _block(rows: Sequence[Point], attack: str) -> int:
    """Clean images first, then attacks that some training used, then the others."""
    known = [row.get("foreseen") for row in rows if str(row["attack"]) == attack]
    return 0 if all(one is None for one in known) else 1 if any(known) else 2


def _dot(axes: Axes, y: float, row: Point, color: str, marker: str) -> None:
    x = 100 * float(row["accuracy"])
    if row.get("ci_low") is not None:
        axes.plot([100 * row["ci_low"], 100 * row["ci_high"]], [y, y], color=color, linewidth=1.6, zorder=2, clip_on=False)
    face = PAPER if row.get("foreseen") is False else color
    axes.plot(
        x, y, marker=marker, markersize=5.8, markerfacecolor=face, markeredgecolor=color, markeredgewidth=1.4, zorder=3,
        clip_on=False,
    )  # fmt: skip


def _foreseen_legend(figure: Figure, labels: Sequence[str], told: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=6, linewidth=0)
        for i in range(len(labels))
    ]
    kinds = [
        Line2D([], [], color=INK, marker="o", markersize=6, linewidth=0, markeredgewidth=1.4, markerfacecolor=face)
        for face in (INK, PAPER)
        if told
    ]
    legend_of(figure, [*handles, *kinds], [*labels, "full: used in training", "hollow: unforeseen"][: len(handles) + len(kinds)])


def _radii(axes: Axes, radii: Sequence[float]) -> None:
    """A linear axis from 0, or a logarithmic one that starts at 0; ticks at the radii themselves."""
    positive = sorted({radius for radius in radii if radius > 0})
    if not positive:
        axes.set_xlim(0, 1)
        return
    shown = [*([0.0] if 0 in radii else []), *positive]
    if positive[(len(positive) - 1) // 2] <= CROWDED * positive[-1]:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    axes.set_xlim(0 if 0 in radii or len(positive) == 1 else positive[0], positive[-1])
    fractions = all(abs(radius * 255 - round(radius * 255)) < 1e-6 for radius in positive) and any(map(_is_long, positive))
    axes.xaxis.set_major_locator(FixedLocator(_ticks(axes, shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _eps_text(value, fractions)))


def _ticks(axes: Axes, values: Sequence[float]) -> list[float]:
    """The last of the values, and, from below, those others whose texts do not overlap."""
    places = (axes.transData + axes.transAxes.inverted()).transform([(value, 0) for value in values])[:, 0]
    kept: list[int] = []
    for index, place in enumerate(places[:-1]):
        if places[-1] - place >= TICKS_APART and (not kept or place - places[kept[-1]] >= TICKS_APART):
            kept.append(index)
    return [*(values[index] for index in kept), values[-1]]


def _mark_training(axes: Axes, training_eps: Sequence[float]) -> None:
    """Dashed lines where the checkpoints were trained; radii beyond the picture are left out."""
    inside = [eps for eps in sorted(set(training_eps)) if axes.get_xlim()[0] <= eps <= axes.get_xlim()[1]]
    for index, eps in enumerate(inside):
        axes.axvline(eps, color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
        axes.annotate(
            _eps_text(eps) if index else f"trained at {_eps_text(eps)}", (eps, 1), xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8.5, color=QUIET,
        )  # fmt: skip


def _survivors(radii: np.ndarray[Any, Any], last: float) -> tuple[list[float], list[int]]:
    """The radii at which the number of images that are not broken changes, and that number from there on."""
    steps = [0.0, *np.unique(radii[(radii > 0) & np.isfinite(radii)]).tolist()]
    alive = [int((radii > step).sum()) for step in steps]
    return [*steps, last], [*alive, alive[-1]]


def _median(radii: np.ndarray[Any, Any]) -> float:
    """The radius at which at most half of the images remain: always one of the radii, even where others are infinite."""
    return float(np.sort(radii)[(len(radii) - 1) // 2])


def _eps_text(value: float, fraction: bool | None = None) -> str:
    """``8/255`` where that is shorter than decimals (or `fraction` is set), three digits otherwise."""
    whole = value > 0 and abs(value * 255 - round(value * 255)) < 1e-6
    if whole and (_is_long(value) if fraction is None else fraction):
        return f"{round(value * 255)}/255"
    return f"{value:.3g}"


def _is_long(value: float) -> bool:
    return len(f"{value:.6g}") > 5
