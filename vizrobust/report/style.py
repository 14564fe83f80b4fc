"""The style that all figures share: fonts, colours, axes, labels at the ends of lines, and how a figure is saved."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from vizrobust.requests.request import figure_format
from vizrobust.runs import write_atomic

INK, QUIET, FAINT, PAPER = "#1a1c1f", "#5f6670", "#d9dce0", "#ffffff"
MARK = "#e0662f"
# Paul Tol's "bright" scheme, reordered: told apart by people with any kind of colour vision.
COLORS = ("#33658f", "#d1495b", "#2f8f5b", "#c08a1e", "#8a4f9e", "#3aa6b9", "#6b6f76")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FAMILIES = ("Helvetica Neue", "Helvetica", "Arial", "Liberation Sans")
_EAST_ASIAN = ("Noto Sans CJK JP", "Noto Sans CJK SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "WenQuanYi Micro Hei")


@cache
def font_families() -> list[str]:
    """An installed sans-serif font, then DejaVu, which comes with matplotlib and covers most scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return [
        *[name for name in _FAMILIES if name in installed][:1],
        "DejaVu Sans",
        *[name for name in _EAST_ASIAN if name in installed],
    ]


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Set matplotlib to the house style; text is never read as a formula, and a missing glyph is not an error."""
    settings: Any = {
        "font.family": font_families(),
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": "#e6e8eb",
        "grid.linewidth": 0.8,
        "svg.hashsalt": "vizrobust",
        "pdf.fonttype": 42,  # TrueType, which journals take and programs can edit
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


class PaperFigure(Figure):
    """A figure in the house style wherever it is drawn; notebooks show it, and its PDF embeds its fonts as TrueType."""

    def draw(self, renderer: Any) -> None:
        with house_style():
            super().draw(renderer)

    def savefig(self, *args: Any, **how: Any) -> None:
        with house_style():
            super().savefig(*args, **how)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()

    def html(self) -> str:
        """The figure as an image element that needs no file, for a result that shows tables too."""
        return f'<img src="data:image/png;base64,{b64encode(self._repr_png_()).decode()}" style="max-width: 100%">'


def png_texts(command: str) -> dict[str, str]:
    """The text chunks of a PNG."""
    return {"Software": "vizrobust", **({"Command": command} if command else {})}


def save_figure(figure: Figure, path: Path | str, command: str = "") -> Path:
    """Write a figure completely or not at all, with its command and no date in the file's metadata."""
    kind = figure_format(path)
    if kind == "png":
        metadata: dict[str, str | None] = {**png_texts(command)}
    elif kind == "svg":
        metadata = {"Creator": "vizrobust", "Date": None, "Description": command or None}
    else:
        metadata = {"Creator": "vizrobust", "CreationDate": None, "Subject": command or None}
    write_atomic(path, lambda file: figure.savefig(file, format=kind, dpi=figure.dpi, metadata=metadata))
    return Path(path)


LABEL_SIZE, APART, WIDTH = 9.5, 5.4, 30
TITLE_WIDTH = 90  # in characters


def label_ends(axes: Axes, labels: Sequence[str], ends: Sequence[float]) -> None:
    """Label each line at the right edge, at the height (0 to 100) where it ends, without overlap."""
    title, names = shared(labels)
    if title:
        axes.set_title(wrapped(title, TITLE_WIDTH), loc="left", fontsize=10, pad=12)
    texts = [wrapped(label, WIDTH) for label in names]
    heights = [APART * (1 + text.count("\n")) for text in texts]
    for index, y in enumerate(spread_labels(ends, heights)):
        if not texts[index]:
            continue  # a single line's label is the title
        color = COLORS[index % len(COLORS)]
        axes.plot([1, 1.025], [ends[index], y], transform=axes.get_yaxis_transform(), color=color, linewidth=1.2, clip_on=False)
        axes.text(
            1.033, y, texts[index], transform=axes.get_yaxis_transform(), va="center", fontsize=LABEL_SIZE, linespacing=1.15
        )


def shared(labels: Sequence[str]) -> tuple[str, list[str]]:
    """Split labels ``name, attack`` into the part that all share and the parts that differ.

    >>> shared(["k1, PGD()", "k2, PGD()"]), shared(["k1, FGSM()", "k1, PGD()"]), shared(["k1, FGSM()"])
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


def spread_labels(wanted: Sequence[float], heights: Sequence[float], within: tuple[float, float] = (-1, 101)) -> list[float]:
    """Centres as near to the wanted ones as possible without overlap, in the same order from below.

    They stay `within` these bounds, so that labels of lines that end at 0 do not overlap the text below the axis.

    >>> spread_labels([50, 50], [4.0, 4.0])
    [48.0, 52.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float]] = []  # members from below, and the group's centre

    def placed_group(members: list[int]) -> tuple[list[int], float]:
        half = sum(heights[m] for m in members) / 2
        centre = sum(wanted[m] for m in members) / len(members)
        return members, max(within[0] + half, min(within[1] - half, centre))

    for i in order:
        groups.append(placed_group([i]))
        while len(groups) > 1 and _top(groups[-2], heights) > _bottom(groups[-1], heights):
            (upper, _), (lower, _) = groups.pop(), groups.pop()
            groups.append(placed_group(lower + upper))
    placed = [0.0] * len(wanted)
    for members, centre in groups:
        y = centre - sum(heights[m] for m in members) / 2
        for m in members:
            placed[m] = y + heights[m] / 2
            y += heights[m]
    return placed


def wrapped(text: str, width: int) -> str:
    """The text in lines of about `width` characters, broken after spaces, commas and hyphens if possible.

    >>> wrapped("standard training", 10)
    'standard\\ntraining'
    """
    lines = [""]
    for part in re.findall(r"[^\s,\-]+[,\-]*\s*|\S+\s*", text):
        while part:
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part[: width + 1]
            part = part[width + 1 :]
    return "\n".join(line.strip() for line in lines)


def _top(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] + sum(heights[m] for m in group[0]) / 2


def _bottom(group: tuple[list[int], float], heights: Sequence[float]) -> float:
    return group[1] - sum(heights[m] for m in group[0]) / 2


Point = Mapping[str, Any]
Curves = Sequence[tuple[str, Sequence[Point]]]

DPI, FIGURE_SIZE = 200, (7.6, 4.4)
LEGEND_WIDTH = 84  # in characters


def blank(size: tuple[float, float] = FIGURE_SIZE, pad: float = 0.13) -> PaperFigure:
    """An empty figure with constrained layout and `pad` inches around each of its axes."""
    return PaperFigure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))


def sheet_figure(sheet: Any) -> Figure:
    """A finished sheet (an image) as a figure of its own size."""
    figure = PaperFigure(figsize=(sheet.width / DPI, sheet.height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="none", aspect="auto")
    axes.set_axis_off()
    return figure


def picture_grid(rows: Sequence[Sequence[tuple[str, Any, str]]]) -> Figure:
    """Pictures (title, pixels, text below) in rows, each 1.1 inches wide; titles stand above the first row, whole."""
    across = max(map(len, rows))
    with house_style():
        figure = blank((1.1 * across, 1.38 * len(rows) + 0.2), pad=0.04)
        grid = figure.subplots(len(rows), across, squeeze=False)
        for number, (line, row) in enumerate(zip(grid, rows, strict=True)):
            for axes in line:
                axes.set_axis_off()
            for axes, (title, pixels, below) in zip(line, row, strict=False):
                axes.imshow(pixels, interpolation="none", cmap="gray", vmin=0, vmax=255)
                axes.set_title(wrapped(title, 13) if number == 0 else "", fontsize=8)
                axes.text(0.5, -0.04, below, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=QUIET)
        return figure


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


def percentages(points: Sequence[Point], key: str) -> list[float]:
    return [100 * float(point[key]) for point in points]


def legend_above(figure: Figure, labels: Sequence[str], markers: bool = True, **look: Any) -> None:
    """Name the series by colour (and marker) above the picture, where the ends of lines have no room for labels."""
    look = {"markersize": 6, "linewidth": 1.6, **look}
    handles = []
    for index in range(len(labels)):
        marker = MARKERS[index % len(MARKERS)] if markers else ""
        handles.append(Line2D([], [], color=COLORS[index % len(COLORS)], marker=marker, **look))
    legend_of(figure, handles, labels)


def legend_of(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    texts = [wrapped(label, TITLE_WIDTH) for label in labels]
    beside = max(1, min(len(labels), LEGEND_WIDTH // (max(map(len, texts)) + 6)))
    beside = math.ceil(len(labels) / math.ceil(len(labels) / beside))  # rows of about the same length
    figure.legend(handles, texts, loc="outside upper left", ncols=beside, frameon=False, fontsize=LABEL_SIZE, handlelength=2.2)


def check(curves: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """Raise ``ValueError`` where there is nothing to draw."""
    if not curves or not all(len(points) for _, points in curves):
        raise ValueError("there is no curve to draw: give at least one label with at least one point each")
