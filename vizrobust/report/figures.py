"""Accuracy curves: over the gradient steps of one attack, and over the attack steps used in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vizrobust.report.style import COLORS, FAINT, MARKERS, format_of, house_style, save_figure

Point = Mapping[str, Any]
Curves = Sequence[tuple[str, Sequence[Point]]]
DPI, SIZE = 200, (7.6, 4.4)
LABEL, LABEL_APART, LABEL_WIDTH = 9.5, 5.4, 30
TITLE_WIDTH, LEGEND_WIDTH = 90, 84  # in characters
ARM_GAP, DODGE = 0.3, 0.08


def accuracy_over_attack_steps(path: Path | str, curves: Curves, command: str = "") -> Path:
    """Draw accuracy after 0, 1, … gradient steps of an attack, one line with its interval per curve.

    `curves` are (label, points); a point has ``steps`` and, as shares, ``accuracy, ci_low, ci_high``. PNG, SVG or
    PDF by the file name's ending. Raises ``ValueError`` for another ending and where there is nothing to draw.
    """
    format_of(path)
    _check(curves)
    with house_style():
        figure, axes = _axes()
        for index, (_, points) in enumerate(curves):
            color, xs = COLORS[index % len(COLORS)], [point["steps"] for point in points]
            low, high = (_percent(points, bound) for bound in ("ci_low", "ci_high"))
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(xs, _percent(points, "accuracy"), color=color, linewidth=1.8, clip_on=False, zorder=3)
        last = max(point["steps"] for _, points in curves for point in points)
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("gradient steps of one run (constant step size), cumulative")
        _label_ends(axes, curves, [_percent(points, "accuracy")[-1] for _, points in curves])
        return save_figure(figure, path, command)


def accuracy_over_training_steps(path: Path | str, series: Curves, command: str = "") -> Path:
    """Draw accuracy over the number K of attack steps used in training, one line per attack.

    `series` are (label, points); a point has ``steps`` (its K), and, as shares, ``accuracy, ci_low, ci_high``. K is
    evenly spaced. A point with an ``arm`` (a name such as ``fgsm``) is a marker of its own to the right of the line;
    so is every further point of one K, under its ``name``. Formats and errors as in `accuracy_over_attack_steps`.
    """
    format_of(path)
    _check(series)
    split = [_dose_and_arms(points) for _, points in series]
    doses = sorted({point["steps"] for dose, _ in split for point in dose})
    arms = list(dict.fromkeys(name for _, named in split for name, _ in named))
    places: dict[Any, float] = {dose: float(i) for i, dose in enumerate(doses)}
    places |= {arm: len(doses) + ARM_GAP + i if doses else float(i) for i, arm in enumerate(arms)}
    with house_style():
        figure, axes = _axes()
        for index, (dose, named) in enumerate(split):
            look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            shift = DODGE * (index - (len(series) - 1) / 2)
            _marks(axes, [places[point["steps"]] + shift for point in dose], dose, "-", look)
            _marks(axes, [places[name] + shift for name, _ in named], [point for _, point in named], "none", look)
        if doses and arms:
            axes.axvline(len(doses) - 0.5 + ARM_GAP / 2, color=FAINT, linewidth=0.8)
        axes.set_xticks(list(places.values()), [*map(str, doses), *(_broken(arm, 14) for arm in arms)])
        axes.set_xlim(-0.35, max(places.values()) + 0.35)
        axes.set_xlabel("attack steps K used in training (0: standard training)")
        _legend(figure, [label for label, _ in series])
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
    ys, low, high = (_percent(points, key) for key in ("accuracy", "ci_low", "ci_high"))
    below = [max(0.0, y - bound) for y, bound in zip(ys, low, strict=True)]
    above = [max(0.0, bound - y) for y, bound in zip(ys, high, strict=True)]
    axes.errorbar(
        xs, ys, yerr=[below, above], linestyle=line, linewidth=1.6, elinewidth=1.2, capsize=2.5, markersize=5.5,
        markeredgewidth=0.9, clip_on=False, zorder=3, **look,
    )  # fmt: skip


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    """The attacks above the picture: beside the last K there may be named points."""
    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=6, linewidth=1.6)
        for i in range(len(labels))
    ]
    texts = [_broken(label, TITLE_WIDTH) for label in labels]
    beside = max(1, min(len(labels), LEGEND_WIDTH // (max(map(len, texts)) + 6)))
    figure.legend(handles, texts, loc="outside upper left", ncols=beside, frameon=False, fontsize=LABEL, handlelength=2.2)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12))
    axes = figure.add_subplot()
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.labelpad = axes.yaxis.labelpad = 8
    return figure, axes


def _label_ends(axes: Axes, curves: Curves, ends: Sequence[float]) -> None:
    """Each line's label at the right edge, at the height where it ends, moved apart where they would touch."""
    shared, labels = _shared([label for label, _ in curves])
    if shared:
        axes.set_title(_broken(shared, TITLE_WIDTH), loc="left", fontsize=10, pad=12)
    texts = [_broken(label, LABEL_WIDTH) for label in labels]
    heights = [LABEL_APART * (1 + text.count("\n")) for text in texts]
    for index, y in enumerate(_apart(ends, heights)):
        color = COLORS[index % len(COLORS)]
        axes.plot([1, 1.025], [ends[index], y], transform=axes.get_yaxis_transform(), color=color, linewidth=1.2, clip_on=False)
        axes.text(1.033, y, texts[index], transform=axes.get_yaxis_transform(), va="center", fontsize=LABEL, linespacing=1.15)


def _shared(labels: Sequence[str]) -> tuple[str, list[str]]:
    """What all labels ``name, attack`` have in common, which is said once, and what tells them apart.

    >>> _shared(["k1, PGD()", "k2, PGD()"]), _shared(["k1, FGSM()", "k1, PGD()"]), _shared(["k1, FGSM()"])
    (('PGD()', ['k1', 'k2']), ('k1', ['FGSM()', 'PGD()']), ('k1, FGSM()', ['']))
    """
    if len(labels) == 1:
        return labels[0], [""]
    pairs = [label.partition(", ") for label in labels]
    names, rest = [name for name, _, _ in pairs], [rest for _, _, rest in pairs]
    if len(set(rest)) == 1 and rest[0]:
        return rest[0], names
    if len(set(names)) == 1 and all(rest):
        return names[0], rest
    return "", list(labels)


def _apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres as near to the wanted ones as they can be without overlap, in the same order from below."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float]] = []  # members from below, and the group's centre
    for i in order:
        groups.append(([i], wanted[i]))
        while len(groups) > 1 and _top(groups[-2], heights) > _bottom(groups[-1], heights):
            (upper, _), (lower, _) = groups.pop(), groups.pop()
            members = lower + upper
            groups.append((members, sum(wanted[m] for m in members) / len(members)))
    placed = [0.0] * len(wanted)
    for members, centre in groups:
        y = centre - sum(heights[m] for m in members) / 2
        for m in members:
            placed[m] = y + heights[m] / 2
            y += heights[m]
    return placed


def _top(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] + sum(heights[m] for m in group[0]) / 2


def _bottom(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] - sum(heights[m] for m in group[0]) / 2


def _broken(text: str, width: int) -> str:
    """The text in lines of about `width` characters, broken after spaces, commas and hyphens where there are any."""
    lines = [""]
    for part in re.findall(r"[^\s,\-]+[,\-]*\s*|\S+\s*", text):
        while part:
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part[: width + 1]
            part = part[width + 1 :]
    return "\n".join(line.strip() for line in lines)


def _percent(points: Sequence[Point], key: str) -> list[float]:
    return [100 * float(point[key]) for point in points]


def _check(curves: Curves) -> None:
    if not curves or not all(points for _, points in curves):
        raise ValueError("there is no curve to draw: give at least one label with at least one point each")
