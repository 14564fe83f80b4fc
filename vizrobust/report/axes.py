"""Axes in the house style: accuracy in percent upwards, quiet lines, legends above the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from vizrobust.report.labels import SIZE as LABEL
from vizrobust.report.labels import TITLE_WIDTH, broken
from vizrobust.report.style import COLORS, MARKERS

Point = Mapping[str, Any]
Curves = Sequence[tuple[str, Sequence[Point]]]

DPI, SIZE = 200, (7.6, 4.4)
LEGEND_WIDTH = 84  # in characters


def blank(size: tuple[float, float] = SIZE, pad: float = 0.13) -> Figure:
    """An empty figure that leaves room for whatever stands in it, and `pad` inches around each of its axes."""
    return Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))


def accuracy_axes() -> tuple[Figure, Axes]:
    """A figure with one pair of axes, accuracy from 0 to 100 % upwards."""
    figure = blank()
    axes = figure.add_subplot()
    percent_upwards(axes)
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.labelpad = axes.yaxis.labelpad = 8
    return figure, axes


def percent_upwards(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)


def percent(points: Sequence[Point], key: str) -> list[float]:
    return [100 * float(point[key]) for point in points]


def legend_above(figure: Figure, labels: Sequence[str], markers: bool = True, **look: Any) -> None:
    """The series by colour (and marker) above the picture, where the ends of lines cannot carry their names."""
    look = {"markersize": 6, "linewidth": 1.6, **look}
    handles = []
    for index in range(len(labels)):
        marker = MARKERS[index % len(MARKERS)] if markers else ""
        handles.append(Line2D([], [], color=COLORS[index % len(COLORS)], marker=marker, **look))
    legend_of(figure, handles, labels)


def legend_of(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    texts = [broken(label, TITLE_WIDTH) for label in labels]
    beside = max(1, min(len(labels), LEGEND_WIDTH // (max(map(len, texts)) + 6)))
    beside = math.ceil(len(labels) / math.ceil(len(labels) / beside))  # rows of about the same length
    figure.legend(handles, texts, loc="outside upper left", ncols=beside, frameon=False, fontsize=LABEL, handlelength=2.2)


def check(curves: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """``ValueError`` where there is nothing to draw."""
    if not curves or not all(len(points) for _, points in curves):
        raise ValueError("there is no curve to draw: give at least one label with at least one point each")
