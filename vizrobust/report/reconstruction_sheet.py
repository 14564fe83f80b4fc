"""The sheet of reconstructions: an image, and beside it what each layer of each checkpoint makes of it, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vizrobust.report.canvas import LEADING, Canvas, Pixels, scaled, shortened, text_width, wrapped
from vizrobust.report.style import FAINT, QUIET, house_style

MARGIN, GAP, ROW_GAP, EDGE = 72, 24, 40, 2
TITLE, NAME, LABEL, SMALL, CAPTION = 46, 31, 29, 24, 23
TARGET, MIN_TILE, HEAD_MOST, HEAD_GAP, MIN_WIDTH = 224, 190, 560, 44, 900


@dataclass(frozen=True)
class Reconstructed:
    """One picture, (H, W) or (H, W, 3) uint8, and the lines that stand below it."""

    pixels: Pixels = field(repr=False)
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class SheetRow:
    """The pictures of one checkpoint, the image itself first. `head` names it; its first line is bold."""

    head: tuple[str, ...]
    pictures: tuple[Reconstructed, ...]


def reconstruction_sheet(
    path: Path | str, title: str, columns: Sequence[str], rows: Sequence[SheetRow], caption: Sequence[str], command: str = ""
) -> Path:
    """Draw rows of pictures under the heads `columns` to a PNG, pixels enlarged by whole numbers; the PNG carries the command.

    Raises ``ValueError`` where `path` does not end in .png or a row has another number of pictures than there are columns.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot draw a sheet to {str(path)!r}; its name must end in .png")
    if not rows or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"a sheet needs rows of {len(columns)} pictures, got {[len(row.pictures) for row in rows]}")
    tiles = [[scaled(picture.pixels, TARGET) for picture in row.pictures] for row in rows]
    cell = max(MIN_TILE, *(tile.shape[1] for row in tiles for tile in row))
    with house_style():
        head = round(max(_head_width(row) for row in rows)) + HEAD_GAP
        width = max(MIN_WIDTH, 2 * MARGIN + head + len(columns) * (cell + GAP) - GAP)
        heights = [_height(row, drawn) for row, drawn in zip(rows, tiles, strict=True)]
        notes = [line for text in caption for line in wrapped(text, width - 2 * MARGIN, CAPTION)]
        top = MARGIN + round(TITLE * LEADING + 18 + LABEL * LEADING + 12)
        height = top + sum(heights) + ROW_GAP * len(rows) + len(notes) * CAPTION * LEADING + MARGIN
        canvas = Canvas(width, math.ceil(height))
        canvas.lines([shortened(title, width - 2 * MARGIN, TITLE, bold=True)], MARGIN, MARGIN, TITLE, bold=True)
        lefts = [MARGIN + head + i * (cell + GAP) for i in range(len(columns))]
        for left, column in zip(lefts, columns, strict=True):
            canvas.text(shortened(column, cell + GAP - 6, LABEL), left + cell / 2, top - 14, LABEL, align="center")
        y = top
        for row, drawn, tall in zip(rows, tiles, heights, strict=True):
            _draw_row(canvas, row, drawn, lefts, cell, y)
            y += tall + ROW_GAP
        canvas.line(MARGIN, y - ROW_GAP // 2, width - 2 * MARGIN)
        canvas.lines(notes, MARGIN, y, CAPTION, color=QUIET)
        return canvas.save(path, command)


def _draw_row(canvas: Canvas, row: SheetRow, tiles: Sequence[Pixels], lefts: Sequence[int], cell: int, y: int) -> None:
    tall = max(tile.shape[0] for tile in tiles)
    above = y + round((tall - _head_height(row)) / 2)
    after = canvas.lines([shortened(row.head[0], HEAD_MOST, NAME, bold=True)], MARGIN, above, NAME, bold=True)
    canvas.lines(list(row.head[1:]), MARGIN, after, SMALL, color=QUIET)
    for left, tile, picture in zip(lefts, tiles, row.pictures, strict=True):
        x, drop = left + (cell - tile.shape[1]) // 2, y + (tall - tile.shape[0]) // 2
        canvas.frame(x - EDGE, drop - EDGE, tile.shape[1] + 2 * EDGE, tile.shape[0] + 2 * EDGE, FAINT, EDGE)
        canvas.image(tile, x, drop)
        canvas.lines(list(picture.lines), left + cell / 2, y + tall + 10, SMALL, color=QUIET, align="center")


def _height(row: SheetRow, tiles: Sequence[Pixels]) -> int:
    below = max(len(picture.lines) for picture in row.pictures)
    return max(tile.shape[0] for tile in tiles) + (round(10 + below * SMALL * LEADING) if below else 0)


def _head_width(row: SheetRow) -> float:
    return max(min(HEAD_MOST, text_width(row.head[0], NAME, bold=True)), *(text_width(line, SMALL) for line in row.head[1:]), 0)


def _head_height(row: SheetRow) -> float:
    return NAME * LEADING + (len(row.head) - 1) * SMALL * LEADING
