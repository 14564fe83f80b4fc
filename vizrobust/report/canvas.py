"""A page measured in pixels: crisp image tiles and text at exact places, saved through matplotlib."""

from __future__ import annotations

import math
from bisect import bisect
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from vizrobust.report.style import FAINT, INK, MARK, PAPER, font_families, format_of, png_texts, save_figure
from vizrobust.runs import write_png

DPI = 200
LEADING = 1.3
Pixels = np.ndarray[Any, Any]


class Canvas:
    """`width` x `height` pixels; x runs right and y down from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._pixels[:] = _rgb(PAPER)
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def image(self, pixels: Pixels, x: int, y: int) -> None:
        """Place (h, w, 3) uint8 pixels as they are."""
        self._pixels[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def frame(self, x: int, y: int, width: int, height: int, color: str = FAINT, thick: int = 2) -> None:
        """An empty box."""
        box = self._pixels[y : y + height, x : x + width]
        inner = box[thick:-thick, thick:-thick].copy()
        box[:] = _rgb(color)
        box[thick:-thick, thick:-thick] = inner

    def line(self, x: int, y: int, width: int, color: str = FAINT, thick: int = 2) -> None:
        self._pixels[y : y + thick, x : x + width] = _rgb(color)

    def corner(self, x: int, y: int, size: int, color: str = MARK) -> None:
        """A triangle in the upper right corner of the tile that ends at x, set off by a white edge."""
        for row in range(size + 3):
            self._pixels[y + row, x - (size + 3) + row : x] = _rgb(PAPER)
        for row in range(size):
            self._pixels[y + row, x - size + row : x] = _rgb(color)

    def text(
        self, text: str, x: float, y: float, size: float, *, color: str = INK, bold: bool = False, align: str = "left",
        rotation: float = 0.0,
    ) -> None:  # fmt: skip
        """A line of text of `size` pixels whose base line is at y."""
        self._figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=_points(size), color=color,
            fontweight="bold" if bold else "normal", ha=align, va="baseline", rotation=rotation, rotation_mode="anchor",
        )  # fmt: skip

    def lines(self, lines: list[str], x: float, y: float, size: float, **how: Any) -> float:
        """Lines of text, the first one's top at y; returns where the next block may begin."""
        for line in lines:
            self.text(line, x, y + size * 0.95, size, **how)
            y += size * LEADING
        return y

    def save(self, path: Path | str, command: str = "") -> Path:
        """Write the page; a PNG is put together here, which is many times faster than matplotlib's resampling."""
        if format_of(path) == "png":
            agg: Any = FigureCanvasAgg(self._figure)
            agg.draw()
            lettering = np.asarray(agg.buffer_rgba())[..., :3]
            write_png(path, np.minimum(self._pixels, lettering), png_texts(command))  # all text stands on white
            return Path(path)
        self._figure.figimage(self._pixels, 0, 0, zorder=-1)
        return save_figure(self._figure, path, command)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """How many pixels wide a line of text is."""
    font = FontProperties(family=font_families(), size=_points(size), weight="bold" if bold else "normal")
    width, _, _ = _MEASURE.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def shortened(text: str, width: float, size: float, bold: bool = False, keep: str = "ends") -> str:
    """The text, with an ellipsis in it where it is too wide: `keep` both "ends" (of a path the last one) or the "start"."""
    if text_width(text, size, bold) <= width:
        return text

    def short(kept: int) -> str:
        left = kept if keep == "start" else 0 if "/" in text else (kept + 1) // 2
        return f"{text[:left]}…{text[len(text) - (kept - left) :]}" if kept > left else f"{text[:left]}…"

    too_wide = bisect(range(len(text)), width, key=lambda kept: text_width(short(kept), size, bold))
    return short(max(0, too_wide - 1))


def lines_within(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """The text in lines no wider than `width`, broken at spaces; a word that is too wide is broken in itself."""
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
    """How many letters of a word fit; at least one, so that breaking it comes to an end."""
    return max(1, bisect(range(len(word)), width, key=lambda n: text_width(word[:n], size, bold)) - 1)


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


def _points(size: float) -> float:
    return size * 72 / DPI


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(color))


def _measure() -> Any:
    with mpl.rc_context({"text.hinting": "no_hinting"}):
        canvas: Any = FigureCanvasAgg(Figure(dpi=DPI))
        return canvas.get_renderer()


_MEASURE = _measure()
