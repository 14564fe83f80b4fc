"""The figure of certificates: each image between the radius that is certified and the smallest attack that was found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from vizrobust.report.style import (
    COLORS,
    FAINT,
    LABEL_SIZE,
    PaperFigure,
    blank,
    check,
    house_style,
    legend_of,
    wrapped,
)

PANELS_BESIDE, PANEL = 3, 2.9


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
