"""Pages of image tiles: crisp pixels and text at exact positions, and the one tile grid that all sheets share."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from vizrobust.report.style import FAINT, INK, MARK, PAPER, QUIET, font_families, png_texts, save_figure
from vizrobust.requests.request import figure_format
from vizrobust.runs import write_png

DPI = 200
LEADING = 1.3
Pixels = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """The margin, the sizes of text and the width of a tile's frame on one kind of sheet, in pixels."""

    margin: int
    title: int
    name: int
    label: int
    small: int
    caption: int
    edge: int


LABELLED = Sizes(margin=72, title=46, name=31, label=29, small=25, caption=23, edge=2)  # rows and columns have names
DENSE = Sizes(margin=48, title=34, name=20, label=15, small=20, caption=18, edge=1)  # many tiles, each with its own label
HEADER_MOST, HEADER_GAP = 560, 44  # the widest name of a row, and the gap between row headers and tiles
LABEL_LINES = 3
MIN_WIDTH = 1000


class Canvas:
    """A page of `width` x `height` pixels; x runs right and y down from the upper left corner.

    >>> Canvas(40, 30).width
    40
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._pixels[:] = _rgb(PAPER)
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def image(self, pixels: Pixels, x: int, y: int) -> None:
        """Place (h, w, 3) uint8 pixels as they are."""
        self._pixels[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def frame(self, x: int, y: int, width: int, height: int, color: str = FAINT, thick: int = 2) -> None:
        """Draw an empty box."""
        box = self._pixels[y : y + height, x : x + width]
        inner = box[thick:-thick, thick:-thick].copy()
        box[:] = _rgb(color)
        box[thick:-thick, thick:-thick] = inner

    def line(self, x: int, y: int, width: int, color: str = FAINT, thick: int = 2) -> None:
        self._pixels[y : y + thick, x : x + width] = _rgb(color)

    def tile(
        self, pixels: Pixels | None, x: int, y: int, size: tuple[int, int], sizes: Sizes = LABELLED, *, corner: bool = False,
        text: str = "",
    ) -> None:  # fmt: skip
        """Draw framed pixels in the middle of a box of `size` (width, height); without pixels, an empty box with `text`.

        The frame is outside the pixels, so that a picture with a white border still has a shape. `corner` marks the upper
        right corner.
        """
        width, height = size if pixels is None else (pixels.shape[1], pixels.shape[0])
        left, top, edge = x + (size[0] - width) // 2, y + (size[1] - height) // 2, sizes.edge
        self.frame(left - edge, top - edge, width + 2 * edge, height + 2 * edge, FAINT, edge)
        if pixels is None:
            letter = min(sizes.small, round(width / 3))
            self.text(text, left + width / 2, top + height / 2 + letter * 0.35, letter, color=QUIET, align="center")
            return
        self.image(pixels, left, top)
        if corner:
            self._corner(left + width, top, max(7 * sizes.edge, width // 8))

    def header(self, lines: Sequence[str], x: int, y: int, height: int, sizes: Sizes = LABELLED) -> None:
        """Draw the header of a row of tiles, in the middle of the row's height; the first line is bold."""
        y += round((height - header_height(lines, sizes)) / 2)
        after = self.lines([shortened(lines[0], HEADER_MOST, sizes.name, bold=True)], x, y, sizes.name, bold=True)
        self.lines(lines[1:], x, after, sizes.small, color=QUIET)

    def label(self, lines: Sequence[str], middle: float, bottom: float, sizes: Sizes = LABELLED) -> None:
        """Draw the label of a column of tiles, centred above `bottom`."""
        self.lines(lines, middle, bottom - len(lines) * sizes.label * LEADING, sizes.label, align="center")

    def _corner(self, x: int, y: int, size: int) -> None:
        """A triangle in the upper right corner of the tile that ends at x, with a white edge."""
        for length, color in ((size + 3, PAPER), (size, MARK)):
            for row in range(length):
                self._pixels[y + row, x - length + row : x] = _rgb(color)

    def text(
        self, text: str, x: float, y: float, size: float, *, color: str = INK, bold: bool = False, align: str = "left",
        rotation: float = 0.0,
    ) -> None:  # fmt: skip
        """Draw a line of text of `size` pixels with its base line at y."""
        self._figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=_points(size), color=color,
            fontweight="bold" if bold else "normal", ha=align, va="baseline", rotation=rotation, rotation_mode="anchor",
        )  # fmt: skip

    def lines(self, lines: Sequence[str], x: float, y: float, size: float, **how: Any) -> float:
        """Draw lines of text from y downwards; returns the y of the next line."""
        for line in lines:
            self.text(line, x, y + size * 0.95, size, **how)
            y += size * LEADING
        return y

    def save(self, path: Path | str, command: str = "") -> Path:
        """Write the page. A PNG is composed here, which is many times faster than matplotlib's resampling."""
        if figure_format(path) == "png":
            agg: Any = FigureCanvasAgg(self._figure)
            agg.draw()
            lettering = np.asarray(agg.buffer_rgba())[..., :3]
            write_png(path, np.minimum(self._pixels, lettering), png_texts(command))  # all text stands on white
            return Path(path)
        self._figure.figimage(self._pixels, 0, 0, zorder=-1)
        return save_figure(self._figure, path, command)


class Page:
    """A sheet with its title, subtitle and caption drawn; the tiles go between them, from (`left`, `top`) on.

    `body` is the (width, height) of the tiles. Titles are wrapped, never cut. `ruled` draws a line above the caption.
    """

    def __init__(
        self, body: tuple[int, int], *, title: str = "", subtitle: Sequence[str] = (), caption: Sequence[str] = (),
        sizes: Sizes = LABELLED, min_width: int = MIN_WIDTH, ruled: bool = False,
    ) -> None:  # fmt: skip
        margin = sizes.margin
        width = max(min_width, 2 * margin + body[0])
        inner = width - 2 * margin
        titles = lines_within(title, inner, sizes.title, bold=True) if title else []
        below = [line for text in subtitle for line in lines_within(text, inner, sizes.small)]
        notes = [line for text in caption for line in lines_within(text, inner, sizes.caption)]
        self.left = margin
        self.top = margin + round(len(titles) * sizes.title * LEADING + len(below) * sizes.small * LEADING)
        self.top += sizes.small if titles or below else 0
        bottom = self.top + body[1] + (2 if ruled else 1) * sizes.caption
        height = math.ceil(bottom + len(notes) * sizes.caption * LEADING + margin)
        self.canvas = Canvas(width, height)
        after = self.canvas.lines(titles, margin, margin, sizes.title, bold=True)
        self.canvas.lines(below, margin, after, sizes.small, color=QUIET)
        if ruled:
            self.canvas.line(margin, bottom - sizes.caption, inner)
        self.canvas.lines(notes, margin, bottom, sizes.caption, color=QUIET)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of `tile` (width, height) in rows of `across`, `down` rows, with `gap` pixels to the right and below.

    >>> grid = TileGrid(across=2, down=2, tile=(10, 20), gap=(2, 5))
    >>> grid.width, grid.height, grid.position(3)
    (22, 45, (12, 25))
    """

    across: int
    down: int
    tile: tuple[int, int]
    gap: tuple[int, int]

    @property
    def width(self) -> int:
        return self.across * (self.tile[0] + self.gap[0]) - self.gap[0]

    @property
    def height(self) -> int:
        return self.down * (self.tile[1] + self.gap[1]) - self.gap[1]

    def position(self, index: int) -> tuple[int, int]:
        """(x, y) of a tile from the upper left corner of the grid; the index counts along the rows."""
        row, column = divmod(index, self.across)
        return column * (self.tile[0] + self.gap[0]), row * (self.tile[1] + self.gap[1])


def header_width(lines: Sequence[str], sizes: Sizes = LABELLED) -> float:
    """The width of a row's header, without the gap to the tiles."""
    name = min(HEADER_MOST, text_width(lines[0], sizes.name, bold=True))
    return max([name, *(text_width(line, sizes.small) for line in lines[1:])])


def header_column(headers: Iterable[Sequence[str]]) -> int:
    """The width that the headers of rows need, with the gap to the tiles."""
    return round(max(header_width(lines) for lines in headers)) + HEADER_GAP


def labels_height(labels: Iterable[Sequence[str]]) -> int:
    """The height that the labels of columns need."""
    return max(map(len, labels)) * round(LABELLED.label * LEADING)


def header_height(lines: Sequence[str], sizes: Sizes = LABELLED) -> float:
    return LEADING * (sizes.name + (len(lines) - 1) * sizes.small)


def label_lines(label: str, width: float, size: float) -> list[str]:
    """A column's label in at most three lines; the last one is shortened where there is more text."""
    lines = lines_within(label, width, size)
    if len(lines) <= LABEL_LINES:
        return lines
    kept = lines[: LABEL_LINES - 1]
    return [*kept, shortened(" ".join(lines[LABEL_LINES - 1 :]), width, size, keep="start")]


def largest_tile(files: Iterable[Path], target: int) -> tuple[int, int]:
    """(width, height) of the largest picture after scaling; only the headers of the files are read."""
    sizes = set()
    for file in files:
        with Image.open(file) as image:
            sizes.add(image.size)
    shapes = [scaled(np.zeros((height, width), np.uint8), target).shape for width, height in sizes] or [(target, target)]
    return max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line of text in pixels."""
    font = FontProperties(family=font_families(), size=_points(size), weight="bold" if bold else "normal")
    width, _, _ = _MEASURE.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def shortened(text: str, width: float, size: float, bold: bool = False, keep: str = "ends") -> str:
    """The text, cut with an ellipsis where it is too wide; `keep` the "start", or both "ends" (of a path only the last)."""
    if text_width(text, size, bold) <= width:
        return text

    def short(kept: int) -> str:
        left = kept if keep == "start" else 0 if "/" in text else (kept + 1) // 2
        return f"{text[:left]}…{text[len(text) - (kept - left) :]}" if kept > left else f"{text[:left]}…"

    too_wide = bisect(range(len(text)), width, key=lambda kept: text_width(short(kept), size, bold))
    return short(max(0, too_wide - 1))


def lines_within(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """The text in lines no wider than `width` pixels, broken at spaces, and within a word that is too wide.

    >>> lines_within("one two", 10_000, 20)
    ['one two']
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size, bold) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        while text_width(word, size, bold) > width and len(word) > 1:
            fits = _letters_that_fit(word, width, size, bold)
            lines[-1:] = [word[:fits], ""]
            word = word[fits:]
        lines[-1] = word
    return lines


def _letters_that_fit(word: str, width: float, size: float, bold: bool) -> int:
    """How many letters of a word fit, up to a sign after which it may break; at least one, so that breaking it ends."""
    fits = max(1, bisect(range(len(word)), width, key=lambda n: text_width(word[:n], size, bold)) - 1)
    return max(word.rfind(sign, 0, fits) for sign in "/-_,") + 1 or fits


def scaled(pixels: Pixels, target: int) -> Pixels:
    """(H, W) or (H, W, 3 or 4) uint8 -> (h, w, 3) about `target` large: whole-number enlargement or reduction only."""
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
    side = max(rgb.shape[:2])
    if side <= 1.5 * target:
        factor = max(1, round(target / side))
        return rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = math.ceil(side / (1.5 * target))
    height, width = (size // factor * factor for size in rgb.shape[:2])
    blocks = rgb[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def side_by_side(rows: Sequence[Sequence[Pixels]], target: int = 112, gap: int = 4) -> Image.Image:
    """Pictures (H, W) or (H, W, 3) uint8 in rows on white, each about `target` pixels large, for a notebook.

    >>> side_by_side([[np.zeros((28, 28), np.uint8)] * 2, [np.zeros((28, 28), np.uint8)]]).size
    (228, 228)
    """
    tiles = [[scaled(pixels, target) for pixels in row] for row in rows]
    width = max(sum(tile.shape[1] + gap for tile in row) - gap for row in tiles)
    heights = [max(tile.shape[0] for tile in row) for row in tiles]
    page, y = Image.new("RGB", (width, sum(heights) + gap * (len(rows) - 1)), "white"), 0
    for row, height in zip(tiles, heights, strict=True):
        x = 0
        for tile in row:
            page.paste(Image.fromarray(np.ascontiguousarray(tile)), (x, y))
            x += tile.shape[1] + gap
        y += height + gap
    return page


def check_png(path: Path | str) -> None:
    """Raise ``ValueError`` unless the file's name ends in .png.

    >>> check_png("sheet.jpg")
    Traceback (most recent call last):
    ValueError: cannot draw a sheet to 'sheet.jpg'; its name must end in .png
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot draw a sheet to {str(path)!r}; its name must end in .png")


def _points(size: float) -> float:
    return size * 72 / DPI


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(color))


def _measure() -> Any:
    with mpl.rc_context({"text.hinting": "no_hinting"}):
        canvas: Any = FigureCanvasAgg(Figure(dpi=DPI))
        return canvas.get_renderer()


_MEASURE = _measure()
