"""How a training went: loss, clean and robust accuracy over its epochs, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from vizrobust.report.axes import SIZE, blank, legend_of, percent, percent_upwards
from vizrobust.report.style import COLORS, INK, house_style, save_figure

Row = dict[str, Any]
SERIES = (("val_clean", "clean"), ("val_robust", "ten steps of PGD"), ("val_attack", "training attack"))


def training_curves(path: Path | str, rows: Sequence[Row], command: str = "") -> Path:
    """Draw the rows of a run's ``metrics.jsonl``: accuracies on the watched validation images above, the loss below.

    An epoch in which robust accuracy collapsed has a line through both. Raises ``ValueError`` without rows.
    """
    if not rows:
        raise ValueError("there is no epoch to draw yet")
    with house_style():
        figure = blank((SIZE[0], 1.25 * SIZE[1]))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        epochs = [row["epoch"] for row in rows]
        series = [(key, name) for key, name in SERIES if all(key in row for row in rows)]
        percent_upwards(above)
        above.set_ylabel("accuracy (%)")
        lines = [
            above.plot(epochs, percent(rows, key), color=COLORS[index], marker="o", markersize=3)[0]
            for index, (key, _) in enumerate(series)
        ]
        below.plot(epochs, [row["loss"] for row in rows], color=INK)
        below.set_ylabel("training loss")
        below.set_xlabel("epoch")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for row in rows:
            if "collapse" in row:
                for axes in (above, below):
                    axes.axvline(row["epoch"], color=COLORS[3], linewidth=1, linestyle="--")
        legend_of(figure, lines, [name for _, name in series])
        return save_figure(figure, path, command)
