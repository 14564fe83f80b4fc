"""The figure of a dictionary: how the contributions are shared among its units, and how often each is active."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from vizrobust.report.style import COLORS, LABEL_SIZE, PaperFigure, blank, house_style, wrapped


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
