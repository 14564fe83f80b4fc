"""Accuracy curves: over the gradient steps of one attack, and over the attack steps used in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vizrobust.report.axes import Curves, Point, accuracy_axes, check, legend_above, percent
from vizrobust.report.labels import broken, label_ends
from vizrobust.report.style import COLORS, FAINT, MARKERS, format_of, house_style, save_figure

ARM_GAP, DODGE = 0.3, 0.08


def accuracy_over_attack_steps(path: Path | str, curves: Curves, command: str = "") -> Path:
    """Draw accuracy after 0, 1, … gradient steps of an attack, one line with its interval per curve.

    `curves` are (label, points); a point has ``steps`` and, as shares, ``accuracy, ci_low, ci_high``. PNG, SVG or
    PDF by the file name's ending. Raises ``ValueError`` for another ending and where there is nothing to draw.
    """
    format_of(path)
    check(curves)
    with house_style():
        figure, axes = accuracy_axes()
        for index, (_, points) in enumerate(curves):
            color, xs = COLORS[index % len(COLORS)], [point["steps"] for point in points]
            low, high = (percent(points, bound) for bound in ("ci_low", "ci_high"))
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(xs, percent(points, "accuracy"), color=color, linewidth=1.8, clip_on=False, zorder=3)
        last = max(point["steps"] for _, points in curves for point in points)
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("gradient steps of one run (constant step size), cumulative")
        label_ends(axes, [label for label, _ in curves], [percent(points, "accuracy")[-1] for _, points in curves])
        return save_figure(figure, path, command)


def accuracy_over_training_steps(path: Path | str, series: Curves, command: str = "") -> Path:
    """Draw accuracy over the number K of attack steps used in training, one line per attack.

    `series` are (label, points); a point has ``steps`` (its K), and, as shares, ``accuracy, ci_low, ci_high``. K is
    evenly spaced. A point with an ``arm`` (a name such as ``fgsm``) is a marker of its own to the right of the line;
    so is every further point of one K, under its ``name``. Formats and errors as in `accuracy_over_attack_steps`.
    """
    format_of(path)
    check(series)
    split = [_dose_and_arms(points) for _, points in series]
    doses = sorted({point["steps"] for dose, _ in split for point in dose})
    arms = list(dict.fromkeys(name for _, named in split for name, _ in named))
    places: dict[Any, float] = {dose: float(i) for i, dose in enumerate(doses)}
    places |= {arm: len(doses) + ARM_GAP + i if doses else float(i) for i, arm in enumerate(arms)}
    with house_style():
        figure, axes = accuracy_axes()
        for index, (dose, named) in enumerate(split):
            look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            shift = DODGE * (index - (len(series) - 1) / 2)
            _marks(axes, [places[point["steps"]] + shift for point in dose], dose, "-", look)
            _marks(axes, [places[name] + shift for name, _ in named], [point for _, point in named], "none", look)
        if doses and arms:
            axes.axvline(len(doses) - 0.5 + ARM_GAP / 2, color=FAINT, linewidth=0.8)
        axes.set_xticks(list(places.values()), [*map(str, doses), *(broken(arm, 14) for arm in arms)])
        axes.set_xlim(-0.35, max(places.values()) + 0.35)
        axes.set_xlabel("attack steps K used in training (0: standard training)")
        legend_above(figure, [label for label, _ in series])
        return save_figure(figure, path, command)


def _dose_and_arms(points: Sequence[Point]) -> tuple[list[Point], list[tuple[str, Point]]]:
    """The points on the line by K, and the named ones beside it.

    Of several points with one K the line takes the one that is called by it (``mnist-k1`` before ``mnist-fgsm``).
    """
    named = [(str(point["arm"]), point) for point in points if point.get("arm")]
    dose: dict[int, Point] = {}
    for point in sorted((p for p in points if not p.get("arm")), key=lambda p: (p["steps"], not _called_by_its_dose(p))):
        if point["steps"] in dose:
            named.append((str(point.get("name") or f"K = {point['steps']}"), point))
        else:
            dose[point["steps"]] = point
    return list(dose.values()), named


def _called_by_its_dose(point: Point) -> bool:
    return re.search(rf"k{point['steps']}(?!\d)", str(point.get("name", "")), re.IGNORECASE) is not None


def _marks(axes: Axes, xs: list[float], points: Sequence[Point], line: str, look: Mapping[str, Any]) -> None:
    """Markers with their intervals, joined by a line or not."""
    if not points:
        return
    ys, low, high = (percent(points, key) for key in ("accuracy", "ci_low", "ci_high"))
    below = [max(0.0, y - bound) for y, bound in zip(ys, low, strict=True)]
    above = [max(0.0, bound - y) for y, bound in zip(ys, high, strict=True)]
    axes.errorbar(
        xs, ys, yerr=[below, above], linestyle=line, linewidth=1.6, elinewidth=1.2, capsize=2.5, markersize=5.5,
        markeredgewidth=0.9, clip_on=False, zorder=3, **look,
    )  # fmt: skip
