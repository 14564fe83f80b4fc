"""A small grid of natural exemplars on a canvas, each with the place that did it outlined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vizrobust.report.canvas import Canvas, Pixels, scaled
from vizrobust.report.naturals import Natural, Naturals
from vizrobust.report.style import FAINT, MARK

GAP, HAIRLINE, OUTLINE = 6, 1, 2
CROSS = 12  # how large the cross is that stands for a place that sees the whole image, as a part of the image's side


@dataclass(frozen=True)
class Grid:
    """How exemplars are laid out: `deep` x `across` tiles of width and height `tile`, drawn about `target` large."""

    deep: int
    across: int
    tile: tuple[int, int]
    target: int

    @staticmethod
    def of(units: Iterable[Naturals], width: int) -> Grid | None:
        """The grid that holds those of every unit in about `width` pixels; None where there are none."""
        units = [unit for unit in units if unit.count]
        if not units:
            return None
        deep, across = max(units, key=lambda unit: unit.count).shape
        target = max(16, width // across)
        sizes = set()
        for file in {natural.file for unit in units for end in unit.ends.values() for natural in end}:
            with Image.open(file) as image:
                sizes.add(image.size)
        shapes = [scaled(np.zeros((height, width), np.uint8), target).shape for width, height in sizes]
        return Grid(deep, across, (max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)), target)

    @property
    def width(self) -> int:
        return self.across * (self.tile[0] + GAP) - GAP

    @property
    def height(self) -> int:
        return self.deep * (self.tile[1] + GAP) - GAP

    def draw(self, canvas: Canvas, end: tuple[Natural, ...], x: int, y: int) -> None:
        for i, natural in enumerate(end):
            left, top = x + i % self.across * (self.tile[0] + GAP), y + i // self.across * (self.tile[1] + GAP)
            with Image.open(natural.file) as image:
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            shown = marked(scaled(pixels, self.target), natural, pixels.shape[1])
            left, top = left + (self.tile[0] - shown.shape[1]) // 2, top + (self.tile[1] - shown.shape[0]) // 2
            edge = HAIRLINE
            canvas.frame(left - edge, top - edge, shown.shape[1] + 2 * edge, shown.shape[0] + 2 * edge, FAINT, edge)
            canvas.image(shown, left, top)


def marked(pixels: Pixels, natural: Natural, width: int) -> Pixels:
    """(h, w, 3) uint8 with the receptive field outlined, or a cross where that is the whole image.

    `width` is that of the image before it was scaled to these pixels.
    """
    color = tuple(int(MARK[i : i + 2], 16) for i in (1, 3, 5))
    height, across = pixels.shape[:2]
    shown = pixels.copy()
    if natural.box is not None:
        scale = across / width
        top, left = (round(side * scale) for side in natural.box[:2])
        bottom, right = (round((at + size) * scale) for at, size in zip(natural.box[:2], natural.box[2:], strict=True))
        outline = np.zeros((height, across), bool)
        outline[top:bottom, left:right] = True
        outline[top + OUTLINE : bottom - OUTLINE, left + OUTLINE : right - OUTLINE] = False
        shown[outline] = color
    elif natural.center is not None:
        y, x = round(natural.center[0] * height), round(natural.center[1] * across)
        arm = max(3, min(height, across) // CROSS)
        shown[max(0, y - 1) : y + 1, max(0, x - arm) : x + arm] = color
        shown[max(0, y - arm) : y + arm, max(0, x - 1) : x + 1] = color
    return shown
