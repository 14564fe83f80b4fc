"""Contact sheets, pictures in a grid of networks and units, and the natural exemplars that stand below them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.report.canvas import (
    DENSE,
    LABELLED,
    LEADING,
    Canvas,
    Page,
    Pixels,
    TileGrid,
    check_png,
    header_column,
    header_height,
    label_lines,
    labels_height,
    largest_tile,
    lines_within,
    scaled,
    shortened,
    text_width,
)
from vizrobust.report.collect import CheckpointFacts, Collection, Column, Exemplar, Exemplars, Panel, Picture
from vizrobust.report.style import MARK, QUIET, house_style
from vizrobust.report.words import DEAD, EXCITING, SATURATED, accuracies, exemplars_shown, meaning_of_robust, seeds_shown

BETWEEN, OUTLINE = 6, 2
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
        return ExemplarGrid(TileGrid(across, down, tile, (BETWEEN, BETWEEN)), target)

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


MOST_ACROSS, MOST_WITH_SEEDS, MOST_WITH_EXEMPLARS = 32, 24, 12
MIN_WIDTH = 1200
SLANTED_MOST = 320
GAP, SEED_GAP, BLOCK_GAP = 14, 8, 64
EXEMPLAR_GAP = 16  # above a grid of exemplars


def contact_sheet(path: Path | str, collection: Collection) -> Path:
    """Draw every panel of a collection to a PNG, pixels enlarged by whole numbers; the PNG carries the command.

    Raises ``ValueError`` where `path` does not end in .png.
    """
    check_png(path)
    with house_style():
        blocks = [block for panel in collection.panels for block in _blocks(panel)]
        header = max(block.header for block in blocks)
        width = math.ceil(header + max(block.width for block in blocks))
        height = math.ceil(sum(block.height for block in blocks) + BLOCK_GAP * (len(blocks) - 1) + BLOCK_GAP // 3)
        page = Page((width, height), caption=_caption(collection, blocks), min_width=MIN_WIDTH, ruled=True)
        y = page.top
        for block in blocks:
            block.draw(page.canvas, page.left, y, header)
            y += block.height + BLOCK_GAP
        return page.canvas.save(path, collection.command)


@dataclass(frozen=True)
class _Block:
    """Some columns of a panel, laid out; `tiles` are the pictures of one cell side by side, all lengths are in pixels."""

    panel: Panel
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    tiles: TileGrid
    target: int
    title: list[str]
    labels: list[list[str]] = field(repr=False)
    slanted: bool = False
    header: int = 0
    exemplars: ExemplarGrid | None = None

    @property
    def grid(self) -> TileGrid:
        """The cells: one row per checkpoint, one column per unit."""
        width = max(self.tiles.width, self.exemplars.tiles.width if self.exemplars else 0)
        gap = GAP if len(self.seeds) == 1 and self.exemplars is None else 2 * GAP
        height = self.row + (2 * (self.exemplars.tiles.height + EXEMPLAR_GAP) + 2 * GAP if self.exemplars else 0)
        return TileGrid(len(self.columns), len(self.panel.checkpoints), (width, height), (gap, GAP))

    @property
    def row(self) -> int:
        """The height of the pictures; the exemplars are below."""
        return max(self.tiles.height, *(round(header_height(_header(one))) for one in self.panel.checkpoints))

    @property
    def overhang(self) -> int:
        """How far slanted labels extend, up and to the right of the last column."""
        return round(max(text_width(lines[0], LABELLED.label) for lines in self.labels) * 0.71) if self.slanted else 0

    @property
    def width(self) -> int:
        return self.grid.width + self.overhang

    @property
    def heading(self) -> tuple[list[str], list[str]]:
        """The lines of the title and of what stands below it; neither is cut at the sheet's edge."""
        room = max(self.header + self.width, MIN_WIDTH - 2 * LABELLED.margin)
        return (
            [line for text in self.title[:1] for line in lines_within(text, room, LABELLED.title, bold=True)],
            [line for text in self.title[1:] for line in lines_within(text, room, LABELLED.small)],
        )

    @property
    def top(self) -> int:
        """From the block's top to its first row of tiles."""
        above, below = self.heading
        title = round(LABELLED.title * LEADING * len(above) + LABELLED.small * LEADING * len(below) + 18) if self.title else 0
        return title + (self.overhang + LABELLED.label if self.slanted else labels_height(self.labels)) + 10

    @property
    def height(self) -> int:
        return self.top + self.grid.height

    def draw(self, canvas: Canvas, x: int, y: int, header: int) -> None:
        if self.title:
            title, subtitle = self.heading
            after = canvas.lines(title, x, y, LABELLED.title, bold=True)
            canvas.lines(subtitle, x, after, LABELLED.small, color=QUIET)
        grid, first, left = self.grid, y + self.top, x + header
        for i, lines in enumerate(self.labels):
            middle = left + grid.position(i)[0] + grid.tile[0] / 2
            if self.slanted:
                canvas.text(lines[0], middle, first - 12, LABELLED.label, rotation=45)
            else:
                canvas.label(lines, middle, first - 10)
        for row, checkpoint in enumerate(self.panel.checkpoints):
            above = first + grid.position(row * grid.across)[1]
            canvas.header(_header(checkpoint), x, above, self.row)
            for i, column in enumerate(self.columns):
                cell = left + grid.position(i)[0]
                inset, drop = (grid.tile[0] - self.tiles.width) // 2, (self.row - self.tiles.height) // 2
                self._draw_pictures(canvas, self.panel.pictures(checkpoint, column), cell + inset, above + drop)
                self._draw_exemplars(canvas, self.panel.exemplars_of(checkpoint, column), cell, above + self.row)
            self._draw_exemplar_labels(canvas, x, above + self.row)

    def _draw_pictures(self, canvas: Canvas, pictures: tuple[Picture, ...], x: int, y: int) -> None:
        by_seed = {picture.seed: picture for picture in pictures}
        for i, seed in enumerate(self.seeds):
            picture = by_seed.get(seed)
            if picture is not None:
                pixels = None if picture.file is None else scaled(read_opaque(picture.file), self.target)
                left = x + self.tiles.position(i)[0]
                canvas.tile(pixels, left, y, self.tiles.tile, corner=picture.status == "saturated", text="dead")

    def _draw_exemplars(self, canvas: Canvas, exemplars: Exemplars | None, x: int, y: int) -> None:
        if self.exemplars is None or exemplars is None:
            return
        x += (self.grid.tile[0] - self.exemplars.tiles.width) // 2
        for sign in self.panel.signs:
            self.exemplars.draw(canvas, exemplars.of_sign(sign), x, y + EXEMPLAR_GAP)
            y += EXEMPLAR_GAP + self.exemplars.tiles.height

    def _draw_exemplar_labels(self, canvas: Canvas, x: int, y: int) -> None:
        """The names of the two grids, at the left of their rows."""
        for sign in self.panel.signs if self.exemplars else ():
            assert self.exemplars is not None
            middle = y + EXEMPLAR_GAP + self.exemplars.tiles.height / 2
            canvas.text(f"{EXCITING[sign]} images", x, middle + LABELLED.small * 0.35, LABELLED.small, color=QUIET)
            y += EXEMPLAR_GAP + self.exemplars.tiles.height


def _blocks(panel: Panel) -> list[_Block]:
    """A panel as blocks of about equal width."""
    seeds = panel.seeds if len(panel.columns) * len(panel.seeds) <= MOST_WITH_SEEDS else panel.seeds[:1]
    count = math.ceil(len(panel.columns) / (MOST_WITH_EXEMPLARS if panel.exemplars else MOST_ACROSS))
    per = math.ceil(len(panel.columns) / count)
    across = per * len(seeds)
    target = 280 if across <= 3 else 168 if across <= 16 or panel.exemplars else 112
    tile = largest_tile({picture.file for cell in panel.cells.values() for picture in cell if picture.file}, target)
    tiles = TileGrid(len(seeds), 1, tile, (SEED_GAP, 0))
    exemplars = ExemplarGrid.of(panel.exemplars.values(), tile[0])
    headers = [_header(checkpoint) for checkpoint in panel.checkpoints]
    if exemplars is not None:
        headers.append(["", f"{EXCITING[-1]} images"])
    cell = max(tiles.width, exemplars.tiles.width if exemplars else 0)
    labels, slanted = _labels([panel.label(column) for column in panel.columns], cell + GAP - 4)
    return [
        _Block(
            panel, panel.columns[i : i + per], seeds, tiles, target, [panel.title, panel.subtitle] if i == 0 else [],
            labels[i : i + per], slanted, header_column(headers), exemplars,
        )
        for i in range(0, len(panel.columns), per)
    ]  # fmt: skip


def _labels(labels: list[str], width: int) -> tuple[list[list[str]], bool]:
    """Column labels in at most three lines each, or all of them slanted where a word is too wide for that."""
    lines = [lines_within(label, width, LABELLED.label) for label in labels]
    if all(" ".join(parts) == " ".join(label.split()) for label, parts in zip(labels, lines, strict=True)):
        return [label_lines(label, width, LABELLED.label) for label in labels], False
    return [[shortened(label, SLANTED_MOST, LABELLED.label)] for label in labels], True


def _header(checkpoint: CheckpointFacts) -> list[str]:
    return [line for line in (checkpoint.name, checkpoint.training_words, accuracies(checkpoint)) if line]


def _caption(collection: Collection, blocks: list[_Block]) -> list[str]:
    """What a reader must know, one entry per paragraph."""
    texts = [meaning_of_robust(collection.checkpoints)]
    named = {panel.recipe: panel.recipe_text for panel in collection.panels}
    if any(name != text for name, text in named.items()):
        texts.append(f"recipe {', '.join(named)}; each picture's metadata has its whole text")
    for panel, shown in {block.panel.title: (block.panel, block.seeds) for block in blocks}.values():
        if len(shown) > 1:
            texts.append(f"{panel.title}: the pictures of a unit have, from left to right, the seeds {seeds_shown(shown)}")
        elif len(panel.seeds) > 1:
            texts.append(f"{panel.title}: seed {shown[0]} is shown, of {seeds_shown(panel.seeds)}")
    texts += dict.fromkeys(exemplars_shown(panel) for panel in collection.panels)
    statuses = {picture.status for panel in collection.panels for cell in panel.cells.values() for picture in cell}
    if "saturated" in statuses:
        texts.append(f"orange corner, {SATURATED}")
    if "dead" in statuses:
        texts.append(DEAD)
    return [text for text in texts if text]
