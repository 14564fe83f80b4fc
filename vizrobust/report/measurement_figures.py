"""Figures of measurements beside accuracies: predicted drops, certified radii, units, dictionaries, judges, calibrations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from vizrobust.experiments.input_dimension import LECTURE_SLOPE, Growth
from vizrobust.report.style import (
    COLORS,
    FAINT,
    LABEL_SIZE,
    MARK,
    MARKERS,
    PAPER,
    QUIET,
    PaperFigure,
    blank,
    check,
    house_style,
    legend_of,
    percent_upwards,
    wrapped,
)

Rows = Sequence[Mapping[str, Any]]

UNITS = {"margin": "logit margin", "ce": "log p(true class), nats"}
KINDS = (("pgd", "PGD"), ("fgsm", "FGSM"))
PANELS_BESIDE, DROPS_PANEL = 3, 2.55
# Drops that differ by more than this between the fifth and the ninety-fifth percentile need logarithms.
LOGARITHMIC_FROM = 30
MARGIN = 0.06  # of the axis, beyond the outermost points


def first_order_scatter(panels: Sequence[tuple[str, Rows]], *, loss: str = "margin") -> Figure:
    """Draw each image's real drop under FGSM and PGD against the predicted one, a panel for each checkpoint.

    `panels` are (label, rows) with ``predicted, fgsm, pgd`` in a row, as `FirstOrder.rows` gives them; `loss` names their
    unit. On the line, attacks cause exactly the predicted drop; far above it, the gradient underestimates them. All panels
    share their axes, which are logarithmic (linear around 0) where drops span a factor of 30. Raises
    ``ValueError`` where there is nothing to draw.
    """
    check(panels)
    beside = min(PANELS_BESIDE, len(panels))
    down = math.ceil(len(panels) / beside)
    rows = [row for _, some in panels for row in some]
    drops = np.array([[row["predicted"], row["fgsm"], row["pgd"]] for row in rows], dtype=float)
    if not np.isfinite(drops).all():
        raise ValueError("a drop is not a finite number; look at the network's logits")
    side = 3.9 if beside == 1 else DROPS_PANEL
    with house_style():
        figure = blank((0.9 + side * beside, 1.15 + (side + 0.42) * down), pad=0.08)
        grid = figure.subplots(down, beside, sharex=True, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            label, some = panels[place]
            _same_scale(axes, drops)
            for index, (key, _) in enumerate(KINDS):
                axes.plot(
                    [row["predicted"] for row in some], [row[key] for row in some], linestyle="none", color=COLORS[index],
                    marker=MARKERS[index], markersize=3.4, markeredgewidth=0, alpha=0.55, zorder=3,
                )  # fmt: skip
            axes.set_title(f"{wrapped(label, 32)}\n{_medians(some)}", loc="left", fontsize=8.5, linespacing=1.4, pad=6)
            if place + beside >= len(panels):  # also above a place that stays empty
                axes.tick_params(labelbottom=True)
        unit = UNITS.get(loss, loss)
        figure.supxlabel(f"predicted drop of the {unit}: eps × dual norm of the gradient", fontsize=LABEL_SIZE)
        figure.supylabel("drop that the attack caused", fontsize=LABEL_SIZE)
        handles = [Line2D([], [], color=COLORS[i], marker=MARKERS[i], linewidth=0, markersize=6) for i in range(len(KINDS))]
        line = Line2D([], [], color=QUIET, linewidth=1.0)
        legend_of(figure, [*handles, line], [*(name for _, name in KINDS), "as predicted"])
        return figure


def gradient_growth(series: Sequence[tuple[str, Growth]]) -> Figure:
    """Draw the mean L1 norm of the gradient over the number of values in an image, with the fitted slopes.

    `series` are (label, `Growth`); the grey line through the first series grows as sqrt(d), the lecture's prediction.
    Both axes are logarithmic.
    """
    check([(label, growth.d) for label, growth in series])
    sizes = sorted({d for _, growth in series for d in growth.d})
    ends = np.array([sizes[0] / 1.25, sizes[-1] * 1.25])
    with house_style():
        figure = blank((6.4, 4.6))
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log")
        handles, labels = [], []
        for index, (label, growth) in enumerate(series):
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5.5}
            axes.plot(growth.d, growth.mean_l1, linestyle="none", alpha=0.8, zorder=3, **look)
            axes.plot(ends, growth.factor * ends**growth.slope, color=color, linewidth=1.5, zorder=2)
            handles.append(Line2D([], [], linewidth=1.5, **look))
            labels.append(f"{label}: slope {_slope(growth)}" if label else f"slope {_slope(growth)}")
        first = series[0][1]
        middle = np.exp(np.mean(np.log(first.d))), np.exp(np.mean(np.log(first.mean_l1)))
        lecture = middle[1] * (ends / middle[0]) ** LECTURE_SLOPE
        axes.plot(ends, lecture, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
        handles.append(Line2D([], [], color=QUIET, linewidth=1.2, linestyle=(0, (4, 3))))
        labels.append("√d: slope 0.50")
        axes.set_xlim(*ends)
        _decades(axes, [*lecture, *(norm for _, growth in series for norm in growth.mean_l1)])
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, pad=6)
        axes.set_xlabel("d: values in an image (channels × height × width)")
        axes.set_ylabel("mean L1 norm of the loss's gradient")
        legend_of(figure, handles, labels)
        return figure


def _same_scale(axes: Axes, drops: np.ndarray[Any, Any]) -> None:
    """One kind of scale for both axes and all panels, so that the line of the drops that are as predicted is straight."""
    sizes = np.abs(drops[drops != 0])
    low, high = np.quantile(sizes, (0.05, 0.95)) if len(sizes) else (1.0, 1.0)
    top = max(float(drops.max()), 1e-12)
    left, bottom = (min(0.0, float(side.min())) for side in (drops[:, 0], drops))
    x_ticks: list[float] = []
    y_ticks: list[float] = []
    if high > LOGARITHMIC_FROM * low:
        linear = 10.0 ** math.floor(math.log10(low))
        if (drops > 0).all():
            axes.set_xscale("log")
            axes.set_yscale("log")
            left, bottom = float(drops[:, 0].min()), float(drops.min())
        else:
            axes.set_xscale("symlog", linthresh=linear, linscale=0.4)
            axes.set_yscale("symlog", linthresh=linear, linscale=0.4)
            left = max(left, float(drops[:, 0].min()))
        x_ticks, y_ticks = _decade_ticks(linear, left, top), _decade_ticks(linear, bottom, top)
    to, back = axes.transScale, axes.transScale.inverted()
    (x_start, y_start), (x_end, y_end) = to.transform([(left, bottom), (top, top)])
    x_spare, y_spare = MARGIN * (x_end - x_start), MARGIN * (y_end - y_start)
    ends = back.transform([(x_start - x_spare, y_start - y_spare), (x_end + x_spare, y_end + y_spare)])
    axes.set_xlim(*ends[:, 0])
    axes.set_ylim(*ends[:, 1])
    axes.set_box_aspect(1)
    for axis, ticks in ((axes.xaxis, x_ticks), (axes.yaxis, y_ticks)):
        axis.set_major_locator(FixedLocator(ticks) if ticks else MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.plot(ends[:, 1], ends[:, 1], color=QUIET, linewidth=1.0, zorder=1, scalex=False, scaley=False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4, labelsize=8)


def _decade_ticks(linear: float, bottom: float, top: float) -> list[float]:
    """About five powers of ten from `linear` to `top`, 1, 2 and 5 times them where they are few; 0 and negative ones too."""
    first, last = round(math.log10(linear)), math.floor(math.log10(top))
    if bottom > 0:
        first = min(last, math.ceil(math.log10(max(bottom, linear))))
    stride = max(1, math.ceil((last - first) / 4))
    up = [10.0**power for power in range(last, first - 1, -stride)]
    down = [] if bottom > 0 else [*(-value for value in up if -value >= bottom), 0.0]
    if len(up) + len(down) < 4:
        up = [step * 10.0**power for power in range(first - 1, last + 1) for step in (1, 2, 5)]
    return [*down, *(value for value in up if bottom <= value <= top)]


def _medians(rows: Rows) -> str:
    """The share of the predicted drop that each attack causes, for the median image."""
    texts = []
    for key, name in KINDS:
        shares = [row[key] / row["predicted"] for row in rows if row["predicted"] > 0]
        texts.append(f"{name} {_times(float(np.median(shares)))}" if shares else f"{name} without any prediction")
    return "median: " + ", ".join(texts)


def _times(ratio: float) -> str:
    return f"× {ratio:.2f}" if ratio < 10 else f"× {ratio:.2g}" if ratio < 100 else f"× {ratio:,.0f}"


def _slope(growth: Growth) -> str:
    if growth.ci_low is None or growth.ci_high is None:
        return f"{growth.slope:.2f}"
    return f"{growth.slope:.2f} [{growth.ci_low:.2f}, {growth.ci_high:.2f}]"


def _decades(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten, or at the powers alone where there are many."""
    low, high = min(values) / 1.2, max(values) * 1.2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    axes.yaxis.set_major_locator(FixedLocator([step * 10.0**power for power in powers for step in steps]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(low, high)


# Of certificates: panels side by side and their size; of interventions: rows at the most, and a cell's size.
PANEL = 2.9
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
