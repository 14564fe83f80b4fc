"""The figure of interventions: how much each class's accuracy changes when a unit is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize

from vizrobust.report.style import COLORS, LABEL_SIZE, MARK, PAPER, PaperFigure, blank, check, house_style, wrapped

Panel = tuple[str, Sequence[str], Sequence[str], np.ndarray[Any, Any]]
MOST_UNITS = 20
CELL = 0.26


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
