"""Draw exemplars on a sheet and lay them out in the gallery page, each with its receptive field outlined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.report.canvas import DENSE, Canvas, Pixels, TileGrid, largest_tile, scaled
from vizrobust.report.collect import CheckpointFacts, Column, Exemplar, Exemplars, Panel, Picture
from vizrobust.report.style import MARK
from vizrobust.report.words import EXCITING

GAP, OUTLINE = 6, 2
CROSS = 12  # an arm of the cross is this part of the image's side


@dataclass(frozen=True)
class ExemplarGrid:
    """The layout of a unit's exemplars on a sheet; images are drawn about `target` pixels large."""

    tiles: TileGrid
    target: int

    @staticmethod
    def of(units: Iterable[Exemplars], width: int) -> ExemplarGrid | None:
        """The grid that holds those of every unit in about `width` pixels; None where there are none."""
        units = [unit for unit in units if unit.count]
        if not units:
            return None
        down, across = max(units, key=lambda unit: unit.count).shape
        target = max(16, width // across)
        tile = largest_tile({exemplar.file for unit in units for exemplar in unit.images}, target)
        return ExemplarGrid(TileGrid(across, down, tile, (GAP, GAP)), target)

    def draw(self, canvas: Canvas, exemplars: tuple[Exemplar, ...], x: int, y: int) -> None:
        for i, exemplar in enumerate(exemplars):
            with Image.open(exemplar.file) as image:
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            left, top = self.tiles.position(i)
            shown = marked(scaled(pixels, self.target), exemplar, pixels.shape[1])
            canvas.tile(shown, x + left, y + top, self.tiles.tile, DENSE)


def marked(pixels: Pixels, exemplar: Exemplar, width: int) -> Pixels:
    """(h, w, 3) uint8 with the receptive field outlined, or a cross where that is the whole image.

    `width` is that of the image before it was scaled to these pixels.
    """
    color = tuple(int(MARK[i : i + 2], 16) for i in (1, 3, 5))
    height, across = pixels.shape[:2]
    shown = pixels.copy()
    if exemplar.box is not None:
        scale = across / width
        top, left = (round(side * scale) for side in exemplar.box[:2])
        bottom, right = (round((at + size) * scale) for at, size in zip(exemplar.box[:2], exemplar.box[2:], strict=True))
        outline = np.zeros((height, across), bool)
        outline[top:bottom, left:right] = True
        outline[top + OUTLINE : bottom - OUTLINE, left + OUTLINE : right - OUTLINE] = False
        shown[outline] = color
    elif exemplar.center is not None:
        y, x = round(exemplar.center[0] * height), round(exemplar.center[1] * across)
        arm = max(3, min(height, across) // CROSS)
        shown[max(0, y - 1) : y + 1, max(0, x - arm) : x + arm] = color
        shown[max(0, y - arm) : y + arm, max(0, x - 1) : x + 1] = color
    return shown


def exemplar_grids(
    panel: Panel,
    checkpoint: CheckpointFacts,
    column: Column,
    source: Callable[[Picture | Exemplar], str],
    facts: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """A unit's exemplars at both ends as the gallery's template wants them; `facts` grows by one entry per image."""
    exemplars = panel.exemplars_of(checkpoint, column)
    if exemplars is None:
        return []
    grids = []
    for sign in panel.signs:
        images = []
        for exemplar in exemplars.of_sign(sign):
            facts.append(_facts(panel, exemplar, exemplars, checkpoint, column))
            with Image.open(exemplar.file) as image:
                width, height = image.size
            images.append({
                "index": len(facts) - 1, "source": source(exemplar), "mark": exemplar_mark(exemplar, width, height),
                "alt": f"natural image {exemplar.rank}, {EXCITING[sign]} for {panel.label(column)}: {exemplar.label}",
            })  # fmt: skip
        if images:
            grids.append({"title": EXCITING[sign], "images": images, "across": exemplars.shape[1]})
    return grids


def exemplar_mark(exemplar: Exemplar, width: int, height: int) -> dict[str, Any] | None:
    """Class and style of the outline or the cross."""
    if exemplar.box is not None:
        top, left, tall, wide = exemplar.box
        shares = {"top": top / height, "left": left / width, "height": tall / height, "width": wide / width}
        return {"kind": "box", "style": "; ".join(f"{name}: {100 * share:.2f}%" for name, share in shares.items())}
    if exemplar.center is not None:
        return {"kind": "cross", "style": f"top: {100 * exemplar.center[0]:.2f}%; left: {100 * exemplar.center[1]:.2f}%"}
    return None


def _facts(panel: Panel, exemplar: Exemplar, exemplars: Exemplars, checkpoint: CheckpointFacts, column: Column) -> dict[str, Any]:
    """What the enlarged image says about itself."""
    pairs = {
        "activation": f"{exemplar.value:.4g}",
        "rank": f"{exemplar.rank} from the {'top' if exemplar.sign > 0 else 'bottom'} of {exemplars.source}",
        "label": exemplar.label,
        "index": str(exemplar.index),
        "layer and unit": f"{panel.layer}, unit {column.unit}{f', position {column.place}' if column.position else ''}",
        "position": _position(exemplar),
        "file": exemplar.name,
    }
    return {
        "key": f"{panel.layer}/{column.unit}{column.place}/{checkpoint.id}/{exemplar.sign * exemplar.rank:+d}",
        "title": f"{checkpoint.name} · {panel.label(column)} · {EXCITING[exemplar.sign]}",
        "pairs": [[key, value] for key, value in pairs.items() if value],
        "trajectory": (),
        "frames": "",
        "scores": {},
    }


def _position(exemplar: Exemplar) -> str:
    if exemplar.position is None or exemplar.map is None:
        return "" if exemplar.map is None else "several positions share this value"
    return f"row {exemplar.position[0]}, column {exemplar.position[1]} of {exemplar.map[0]} x {exemplar.map[1]}"
