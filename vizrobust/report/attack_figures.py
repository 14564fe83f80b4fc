"""Figures of attacks: accuracy over attack steps, accuracy over training steps, adversarial examples."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vizrobust.features.pictures import in_tiles
from vizrobust.report.canvas import LABELLED, LEADING, Page, Pixels, TileGrid, scaled, shortened, text_width
from vizrobust.report.style import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    QUIET,
    Curves,
    Point,
    accuracy_axes,
    check,
    house_style,
    label_ends,
    legend_above,
    percentages,
    wrapped,
)
from vizrobust.requests.request import figure_format

BASELINE_GAP, DODGE = 0.3, 0.08


def accuracy_over_attack_steps(curves: Curves) -> Figure:
    """Draw accuracy after 0, 1, … gradient steps of an attack, one line with its interval per curve.

    `curves` are (label, points); a point has ``steps`` and, as shares, ``accuracy, ci_low, ci_high``. Raises
    ``ValueError`` where there is nothing to draw.
    """
    check(curves)
    with house_style():
        figure, axes = accuracy_axes()
        for index, (_, points) in enumerate(curves):
            color, xs = COLORS[index % len(COLORS)], [point["steps"] for point in points]
            low, high = (percentages(points, bound) for bound in ("ci_low", "ci_high"))
            axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(xs, percentages(points, "accuracy"), color=color, linewidth=1.8, clip_on=False, zorder=3)
        last = max(point["steps"] for _, points in curves for point in points)
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("gradient steps of one run (constant step size), cumulative")
        label_ends(axes, [label for label, _ in curves], [percentages(points, "accuracy")[-1] for _, points in curves])
        return figure


def accuracy_over_training_steps(series: Curves) -> Figure:
    """Draw accuracy over the number K of attack steps used in training, one line per attack.

    `series` are (label, points); a point has ``steps`` (its K), and, as shares, ``accuracy, ci_low, ci_high``. K is
    evenly spaced. A point with an ``arm`` (the name of a baseline, such as ``fgsm``) is a marker to the right of the line;
    so is every further point with the same K, under its ``name``.
    """
    check(series)
    split = [_sweep_and_baselines(points) for _, points in series]
    ks = sorted({point["steps"] for sweep, _ in split for point in sweep})
    baselines = list(dict.fromkeys(name for _, named in split for name, _ in named))
    places: dict[Any, float] = {k: float(i) for i, k in enumerate(ks)}
    places |= {name: len(ks) + BASELINE_GAP + i if ks else float(i) for i, name in enumerate(baselines)}
    with house_style():
        figure, axes = accuracy_axes()
        for index, (sweep, named) in enumerate(split):
            look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            shift = DODGE * (index - (len(series) - 1) / 2)
            _marks(axes, [places[point["steps"]] + shift for point in sweep], sweep, "-", look)
            _marks(axes, [places[name] + shift for name, _ in named], [point for _, point in named], "none", look)
        if ks and baselines:
            axes.axvline(len(ks) - 0.5 + BASELINE_GAP / 2, color=FAINT, linewidth=0.8)
        axes.set_xticks(list(places.values()), [*map(str, ks), *(wrapped(name, 14) for name in baselines)])
        axes.set_xlim(-0.35, max(places.values()) + 0.35)
        axes.set_xlabel("attack steps K used in training (0: standard training)")
        legend_above(figure, [label for label, _ in series])
        return figure


def _sweep_and_baselines(points: Sequence[Point]) -> tuple[list[Point], list[tuple[str, Point]]]:
    """The points on the line by K, and the named ones beside it.

    Of several points with one K the line takes the one that is named after it (``mnist-k1`` before ``mnist-fgsm``).
    """
    named = [(str(point["arm"]), point) for point in points if point.get("arm")]
    sweep: dict[int, Point] = {}
    for point in sorted((p for p in points if not p.get("arm")), key=lambda p: (p["steps"], not _named_after_its_k(p))):
        if point["steps"] in sweep:
            named.append((str(point.get("name") or f"K = {point['steps']}"), point))
        else:
            sweep[point["steps"]] = point
    return list(sweep.values()), named


def _named_after_its_k(point: Point) -> bool:
    return re.search(rf"k{point['steps']}(?!\d)", str(point.get("name", "")), re.IGNORECASE) is not None


def _marks(axes: Axes, xs: list[float], points: Sequence[Point], line: str, look: Mapping[str, Any]) -> None:
    """Markers with their intervals, joined by a line or not."""
    if not points:
        return
    ys, low, high = (percentages(points, key) for key in ("accuracy", "ci_low", "ci_high"))
    below = [max(0.0, y - bound) for y, bound in zip(ys, low, strict=True)]
    above = [max(0.0, bound - y) for y, bound in zip(ys, high, strict=True)]
    axes.errorbar(
        xs, ys, yerr=[below, above], linestyle=line, linewidth=1.6, elinewidth=1.2, capsize=2.5, markersize=5.5,
        markeredgewidth=0.9, clip_on=False, zorder=3, **look,
    )  # fmt: skip


TILE, PITCH, ROW_GAP = 280, 420, 56
SIGN = 52
WRONG = "#b5471b"
Line = tuple[str, str, str]  # a text that may be shortened, an end that must stay, and a colour
LABELS = ("clean image", "perturbation", "adversarial image")


def adversarial_examples(
    path: Path | str,
    x: Tensor,
    adv: Tensor,
    labels: Tensor,
    clean_probs: Tensor,
    adv_probs: Tensor,
    classes: Sequence[str],
    attack_text: str,
    name: str,
    command: str = "",
) -> Path:
    """Draw one row per image to a PNG, SVG or PDF.

    `x` and `adv` are (N, C, H, W) in [0, 1], `labels` (N,), the probabilities (N, classes). The perturbation is
    shown around grey, times one factor for all rows, so that the largest change just fills the range.
    Raises ``ValueError`` where sizes do not fit or there is no image.
    """
    figure_format(path)
    n = len(x)
    if n == 0 or x.shape != adv.shape or not n == len(labels) == len(clean_probs) == len(adv_probs):
        raise ValueError(
            f"examples need the same number of images, adversarial images, labels and probabilities, at least 1; got "
            f"{tuple(x.shape)}, {tuple(adv.shape)}, {len(labels)}, {len(clean_probs)} and {len(adv_probs)}"
        )
    delta = (adv - x).detach().cpu().double()
    factor = amplification(float(delta.abs().max()))
    tiles = [[_tile(image[i]) for image in (x, delta * factor + 0.5, adv)] for i in range(n)]
    height, width = tiles[0][0].shape[:2]
    texts = [
        (
            _said(clean_probs[i], int(labels[i]), classes),
            [(f"max |δ| = {float(delta[i].abs().max()):.3g}", "", INK), (f"L2 = {float(delta[i].norm()):.3g}", "", QUIET)],
            _said(adv_probs[i], int(labels[i]), classes),
        )
        for i in range(n)
    ]
    with house_style():
        return _draw(path, tiles, texts, (width, height), factor, name, attack_text, command)


def amplification(largest: float) -> float:
    """The factor, to two digits, at which a change of `largest` fills the range on either side of grey; 1 for none.

    >>> amplification(0.3), amplification(8 / 255), amplification(0.0)
    (1.7, 16.0, 1.0)
    """
    if largest <= 0 or not math.isfinite(largest):
        return 1.0
    return float(f"{0.5 / largest:.1e}")


def _draw(
    path: Path | str, tiles: list[list[Pixels]], texts: Sequence[tuple[list[Line], ...]], size: tuple[int, int], factor: float,
    name: str, attack: str, command: str,
) -> Path:  # fmt: skip
    column, height = size
    room = max(96, PITCH - column)  # between two images, for + and =
    widest = column + min(room - 16, 2 * (LABELLED.margin - 16))
    line, labels = LABELLED.small * LEADING, round(LABELLED.label * LEADING) + 12
    grid = TileGrid(3, len(tiles), size, (room, round(14 + 2 * line) + ROW_GAP))
    page = Page((grid.width, labels + grid.height + grid.gap[1] - ROW_GAP), title=f"{name} under attack", subtitle=[attack])
    canvas, left, top = page.canvas, (page.canvas.width - grid.width) // 2, page.top + labels
    for i, label in enumerate((LABELS[0], f"{LABELS[1]} × {factor:g}", LABELS[2])):
        middle = left + grid.position(i)[0] + column / 2
        canvas.text(label, middle, top - 20, LABELLED.label, bold=True, align="center")
    for i, (images, words) in enumerate(zip(tiles, texts, strict=True)):
        for k, (image, lines) in enumerate(zip(images, words, strict=True)):
            x, y = grid.position(3 * i + k)
            x, y = left + x, top + y
            canvas.tile(image, x, y, size)
            for n, (text, end, color) in enumerate(lines):
                fitted = shortened(text, widest - text_width(end, LABELLED.small), LABELLED.small, keep="start") + end
                below = y + height + 14 + n * line + LABELLED.small * 0.95
                canvas.text(fitted, x + column / 2, below, LABELLED.small, align="center", color=color)
            if k < 2:
                sign_x = x + column + room / 2
                canvas.text("+="[k], sign_x, y + height / 2 + SIGN * 0.35, SIGN, color=QUIET, align="center")
    return canvas.save(path, command)


def _tile(image: Tensor) -> Pixels:
    """(C, H, W), clipped to [0, 1] -> (h, w, 3) uint8 about `TILE` large."""
    shown = in_tiles(image.detach().cpu(), len(image))
    pixels = (shown.double().clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return scaled(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), TILE)


def _said(probs: Tensor, label: int, classes: Sequence[str]) -> list[Line]:
    """The predicted class with its probability, in another colour where it is wrong, and the true class."""
    said = int(probs.argmax())
    color = INK if said == label else WRONG
    return [(f"predicted {classes[said]}", f", {100 * float(probs[said]):.1f} %", color), (f"true {classes[label]}", "", QUIET)]
