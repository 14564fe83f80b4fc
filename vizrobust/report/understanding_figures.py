"""Figures of what networks compute: certified radii, classes without a unit, units of a dictionary, judges, calibrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vizrobust.report.style import (
    COLORS,
    FAINT,
    LABEL_SIZE,
    MARK,
    MARKERS,
    PAPER,
    PaperFigure,
    blank,
    check,
    house_style,
    legend_of,
    percent_upwards,
    wrapped,
)

# Of certificates: panels side by side and their size; of interventions: rows at the most, and a cell's size.
PANELS_BESIDE, PANEL = 3, 2.9
MOST_UNITS, CELL = 20, 0.26
# Of calibrations: the sizes of more attacks would overlap at their points.
NAMED_SIZES = 1
Panel = tuple[str, Sequence[str], Sequence[str], np.ndarray[Any, Any]]


def brackets(panels: Sequence[tuple[str, Sequence[float], Sequence[float] | None]], norm: str) -> PaperFigure:
    """A line for each image, from its certified radius to its smallest attack, in the order of the radius.

    `panels` are (label, certified radii, smallest attacks or None); inf is an image that no attack broke, drawn to the top.
    Reading across at a radius gives certified accuracy on the left and accuracy under the attack on the right.
    Raises ``ValueError`` where there is nothing to draw.
    """
    check([(label, radii) for label, radii, _ in panels])
    finite = [value for _, low, high in panels for value in (*low, *(high or ())) if math.isfinite(value)]
    top = 1.06 * (max(finite) or 1.0)
    beside = min(PANELS_BESIDE, len(panels))
    down = math.ceil(len(panels) / beside)
    with house_style():
        figure = blank((0.9 + PANEL * beside + (1.2 if beside == 1 else 0), 1.2 + 3.2 * down), pad=0.08)
        grid = figure.subplots(down, beside, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            label, low, high = panels[place]
            lower = np.asarray(low)
            upper = lower if high is None else np.asarray(high)
            order = np.lexsort((-upper, -lower))
            lower, upper = lower[order], upper[order]
            xs = 100 * (np.arange(len(lower)) + 0.5) / len(lower)
            axes.vlines(xs, lower, np.minimum(upper, top), color=FAINT, linewidth=max(0.6, 60 / len(xs)), zorder=1)
            size = 3.2 if len(xs) > 40 else 4.5
            if high is not None:
                shown = np.isfinite(upper)
                axes.plot(xs[shown], upper[shown], "s", color=COLORS[1], markersize=size, markeredgewidth=0, zorder=2)
            axes.plot(xs, lower, "o", color=COLORS[0], markersize=size, markeredgewidth=0, zorder=3)
            axes.set_title(wrapped(label, 34), loc="left", fontsize=9.5, pad=6)
            axes.set_xlim(0, 100)
            axes.set_ylim(0, top)
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.tick_params(length=0, pad=5)
        figure.supxlabel("images, by certified radius (%)", fontsize=LABEL_SIZE)
        figure.supylabel(f"{norm} size of the change", fontsize=LABEL_SIZE)
        handles = [Line2D([], [], color=COLORS[i], marker=marker, linewidth=0, markersize=6) for i, marker in enumerate("os")]
        names = ["certified: no change up to here matters", "attack: this change is enough"]
        several = any(high is not None for *_, high in panels)
        legend_of(figure, handles if several else handles[:1], names if several else names[:1])
        return figure


def class_changes(panels: Sequence[Panel], what: str) -> PaperFigure:
    """A grid for each checkpoint: units down, classes across, the change of a class's accuracy as a colour.

    `panels` are (checkpoint, units, classes, changes (units, classes) as shares), the units in the order to be drawn; at
    most 20 are. `what` says what was done to them. All panels share their scale. Raises ``ValueError``
    where there is nothing to draw.
    """
    check([(label, units) for label, units, _, _ in panels])
    down = min(MOST_UNITS, max(len(units) for _, units, _, _ in panels))
    across = max(len(classes) for _, _, classes, _ in panels)
    largest = max(0.01, *(float(np.abs(values[:MOST_UNITS]).max()) for *_, values in panels))
    colors = LinearSegmentedColormap.from_list("change", [MARK, PAPER, COLORS[0]])
    longest = max(len(name) for _, _, classes, _ in panels for name in classes)
    with house_style():
        size = (1.6 + len(panels) * (across * CELL + 0.7), 1.5 + down * CELL + (0.07 * min(longest, 16) if longest > 2 else 0.1))
        figure = blank(size, pad=0.08)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, units, classes, values) in zip(grid, panels, strict=True):
            drawn = 100 * values[:MOST_UNITS]
            image = axes.imshow(drawn, cmap=colors, norm=Normalize(-100 * largest, 100 * largest), aspect="equal")
            axes.set_xticks(range(len(classes)), [name[:16] for name in classes], rotation=90 if longest > 2 else 0)
            axes.set_yticks(range(len(drawn)), units[:MOST_UNITS])
            axes.tick_params(length=0, labelsize=7.5, pad=3)
            axes.set_title(wrapped(label, 30), loc="left", fontsize=9.5, pad=6)
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
        grid[0].set_ylabel(f"{what}, the most harmful first", fontsize=LABEL_SIZE)
        bar = figure.colorbar(image, ax=list(grid), fraction=0.05, pad=0.02)
        bar.set_label("change of the class's accuracy (points)", fontsize=LABEL_SIZE)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8)
        return figure


def unit_shares(shares: Sequence[float], activity: Sequence[float], effective: float, title: str) -> PaperFigure:
    """Units in the order of their share of all contributions; beside it how often each is active. `effective` is marked.

    Raises ``ValueError`` where there is no unit.
    """
    if not len(shares):
        raise ValueError("there are no units to draw")
    share = np.asarray(shares)
    order = np.argsort(-share, kind="stable")
    ranks = np.arange(1, len(share) + 1)
    with house_style():
        figure = blank((7.4, 3.1), pad=0.08)
        left, right = figure.subplots(1, 2)
        left.bar(ranks, 100 * share[order], width=0.8, color=COLORS[0], linewidth=0)
        left.axvline(effective, color=COLORS[1], linewidth=1.2)
        left.annotate(
            f"{effective:.1f} effective units", (effective, 1), xycoords=("data", "axes fraction"), xytext=(-5, -4),
            textcoords="offset points", ha="right", va="top", fontsize=8.5, color=COLORS[1],
        )  # fmt: skip
        left.set_ylabel("share of all contributions (%)", fontsize=LABEL_SIZE)
        right.bar(ranks, 100 * np.asarray(activity)[order], width=0.8, color=COLORS[0], linewidth=0)
        right.set_ylabel("places at which it is active (%)", fontsize=LABEL_SIZE)
        for axes in (left, right):
            axes.set_xlabel("units, the largest share first", fontsize=LABEL_SIZE)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        left.set_title(wrapped(title, 44), loc="left", fontsize=9.5, pad=6)
        return figure


def natural_curves(scales: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> PaperFigure:
    """Judges (name, shares of phase coherence, mean log-odds): how their scores rise from scrambled images to photographs."""
    check([(name, scores) for name, _, scores in scales])
    with house_style():
        figure = blank((5.6, 3.4), pad=0.1)
        axes = figure.add_subplot()
        for number, (name, shares, scores) in enumerate(scales):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            axes.plot(shares, scores, color=color, marker=marker, markersize=5, linewidth=1.6, label=name)
        axes.set_xlabel("phase coherence kept (0 scrambled, 1 photograph)", fontsize=LABEL_SIZE)
        axes.set_ylabel("mean log-odds of the class", fontsize=LABEL_SIZE)
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=8)
        return figure


def equally_hard_sizes(attacks: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> PaperFigure:
    """Attacks (name, six sizes, ATA at each): the accuracy of the network trained against each, with every size named."""
    check([(name, values) for name, _, values in attacks])
    with house_style():
        figure = blank((1.1 + 0.95 * max(len(sizes) for _, sizes, _ in attacks), 3.6), pad=0.1)
        axes = figure.add_subplot()
        percent_upwards(axes)
        for number, (name, sizes, values) in enumerate(attacks):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            places, shown = range(1, len(sizes) + 1), [100 * value for value in values]
            axes.plot(places, shown, color=color, marker=marker, markersize=5, linewidth=1.6, label=name)
            if len(attacks) <= NAMED_SIZES:
                for place, size, value in zip(places, sizes, shown, strict=True):
                    axes.annotate(
                        f"{size:.3g}",
                        (place, value),
                        xytext=(0, 7),
                        textcoords="offset points",
                        ha="center",
                        fontsize=7.5,
                        color=color,
                    )
        axes.set_xlim(0.6, max(len(sizes) for _, sizes, _ in attacks) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("size" + (", with its eps" if len(attacks) <= NAMED_SIZES else ""), fontsize=LABEL_SIZE)
        axes.set_ylabel("ATA (%)", fontsize=LABEL_SIZE)
        axes.legend(frameon=False, fontsize=8)
        return figure
