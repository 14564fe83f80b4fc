"""Sheets as PNG: the spritemap of a layer, an activation atlas, and reconstructions of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.features.pictures import read_opaque
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.report.canvas import LEADING, Canvas, Pixels, lines_within, scaled, shortened, text_width
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.style import FAINT, QUIET, house_style
from vizrobust.report.words import DEAD, SATURATED, accuracies, meaning_of_robust
from vizrobust.runs import Row

ORDERS = ("unit", "score")
SPRITE_MARGIN, SPRITE_MIN_WIDTH, MOST_PIXELS = 48, 900, 60_000
SPRITE_TITLE, SPRITE_SMALL, SPRITE_CAPTION, SPRITE_LABEL = 34, 20, 18, 15
SPRITE_GAP = 6
# Up to so many tiles are drawn about so large.
SPRITE_TARGETS = ((36, 168), (160, 112), (300, 84))
SPRITE_SMALLEST = 64


def spritemap_sheet(
    path: Path | str,
    folder: Path | str,
    rows: Sequence[Row],
    checkpoint: CheckpointFacts,
    *,
    order: str = "unit",
    columns: int | None = None,
    command: str = "",
) -> Path:
    """Draw the pictures of one checkpoint's units to a PNG, each with its number; the PNG carries the command.

    `rows` are those of one layer, recipe, objective and sign of the run in `folder`. `order` is ``unit`` or ``score``,
    the highest first and units without a picture last. `columns` is a near-square sheet's unless told otherwise. Pixels
    are enlarged or reduced by whole numbers. Raises ``ValueError`` for no rows, another order, or fewer than 1 column.
    """
    if order not in ORDERS:
        raise ValueError(f"no order {order!r}; there are: {', '.join(ORDERS)}")
    if not rows:
        raise ValueError(f"run {str(folder)!r} holds no pictures of {checkpoint.name}; run its command again to fill it")
    if columns is not None and columns < 1:
        raise ValueError(f"a sheet has at least 1 column, got {columns}")
    sprites = [_Sprite.of(row, Path(folder), checkpoint) for row in _ordered(rows, order)]
    target = next((size for most, size in SPRITE_TARGETS if len(sprites) <= most), SPRITE_SMALLEST)
    with house_style():
        tiles = [sprite.shape(target) for sprite in sprites]
        tile = max(width for _, width in tiles), max(height for height, _ in tiles)
        step = tile[0] + SPRITE_GAP, tile[1] + round(SPRITE_LABEL * LEADING) + SPRITE_GAP
        across = min(len(sprites), columns or _columns(len(sprites), step[1] / step[0]))
        down = math.ceil(len(sprites) / across)
        width = max(SPRITE_MIN_WIDTH, 2 * SPRITE_MARGIN + across * step[0] - SPRITE_GAP)
        head = _head(rows, checkpoint, order, width - 2 * SPRITE_MARGIN)
        foot = [
            line
            for text in _spritemap_caption(sprites, checkpoint)
            for line in lines_within(text, width - 2 * SPRITE_MARGIN, SPRITE_CAPTION)
        ]
        top = SPRITE_MARGIN + round(SPRITE_TITLE * LEADING + len(head[1]) * SPRITE_SMALL * LEADING + SPRITE_SMALL)
        height = top + down * step[1] + round(SPRITE_CAPTION + len(foot) * SPRITE_CAPTION * LEADING) + SPRITE_MARGIN
        if max(width, height) > MOST_PIXELS:
            raise ValueError(
                f"{len(sprites)} units in {across} columns make a sheet of {width} x {height} pixels; give other --columns"
            )
        canvas = Canvas(width, height)
        after = canvas.lines([head[0]], SPRITE_MARGIN, SPRITE_MARGIN, SPRITE_TITLE, bold=True)
        canvas.lines(head[1], SPRITE_MARGIN, after, SPRITE_SMALL, color=QUIET)
        for i, sprite in enumerate(sprites):
            sprite.draw(canvas, SPRITE_MARGIN + i % across * step[0], top + i // across * step[1], tile, target)
        canvas.lines(foot, SPRITE_MARGIN, top + down * step[1] + SPRITE_CAPTION, SPRITE_CAPTION, color=QUIET)
        return canvas.save(path, command)


def facts_of(checkpoint: Checkpoint) -> CheckpointFacts:
    """A checkpoint as reports know it."""
    facts = checkpoint_facts(checkpoint)
    own = {name: facts[name] for name in CheckpointFacts.__dataclass_fields__ if facts.get(name) is not None}
    return CheckpointFacts(**{**own, "id": checkpoint.id, "classes": checkpoint.info.classes})


def title_line(checkpoint: CheckpointFacts) -> str:
    """A checkpoint in one line: name, training, accuracies as far as they are known."""
    known = checkpoint.clean is not None or checkpoint.robust is not None
    return ", ".join(
        text
        for text in (checkpoint.name, checkpoint.training_words, *(accuracies(checkpoint).split("   ") if known else ()))
        if text
    )


@dataclass(frozen=True)
class _Sprite:
    """One unit's tile; `file` is None where there is nothing to show."""

    label: str
    status: str
    file: Path | None

    @staticmethod
    def of(row: Row, folder: Path, checkpoint: CheckpointFacts) -> _Sprite:
        named = row["layer"] == LOGITS and row["unit"] < len(checkpoint.classes)
        file = None if row["status"] == "dead" else folder / row["image"]
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"picture {str(file)!r} is missing; run the command of {str(folder)!r} again in a new folder")
        return _Sprite(checkpoint.classes[row["unit"]] if named else str(row["unit"]), row["status"], file)

    def shape(self, target: int) -> tuple[int, int]:
        """Height and width of its tile; nothing but the file's header is read."""
        if self.file is None:
            return 0, 0
        with Image.open(self.file) as image:
            return scaled(np.zeros((image.height, image.width), np.uint8), target).shape[:2]

    def draw(self, canvas: Canvas, x: int, y: int, tile: tuple[int, int], target: int) -> None:
        width, height = tile
        pixels = missing_tile(width, height) if self.file is None else scaled(read_opaque(self.file), target)
        left, top = x + (width - pixels.shape[1]) // 2, y + (height - pixels.shape[0]) // 2
        canvas.frame(left - 1, top - 1, pixels.shape[1] + 2, pixels.shape[0] + 2, FAINT, 1)
        canvas.image(pixels, left, top)
        if self.status == "saturated":
            canvas.corner(x + width, y, max(8, width // 8))
        label = shortened(self.label, width + SPRITE_GAP - 2, SPRITE_LABEL, keep="start")
        canvas.text(label, x + width / 2, y + height + SPRITE_LABEL * 1.1, SPRITE_LABEL, color=QUIET, align="center")


def missing_tile(width: int, height: int) -> Pixels:
    """(height, width, 3) uint8: an empty tile with its two diagonals."""
    tile = np.full((height, width, 3), 255, np.uint8)
    y, x = np.indices((height, width))
    across = (x + 0.5) / width * height
    near = np.minimum(abs(y + 0.5 - across), abs(y + 0.5 - (height - across))) <= 0.75
    tile[near] = tuple(int(FAINT[i : i + 2], 16) for i in (1, 3, 5))
    return tile


def _columns(count: int, ratio: float) -> int:
    """The columns of a near-square sheet of tiles `ratio` as high as wide, of these the one whose last row is fullest."""
    square = math.sqrt(count * ratio)
    near = range(max(1, math.ceil(square / 1.35)), max(1, math.floor(square * 1.35)) + 1)
    return min(near, key=lambda across: (-count % across, abs(across - square)))


def _ordered(rows: Sequence[Row], order: str) -> list[Row]:
    if order == "unit":
        return sorted(rows, key=lambda row: row["unit"])
    return sorted(rows, key=lambda row: (row["status"] == "dead", -row["score"], row["unit"]))


def _head(rows: Sequence[Row], checkpoint: CheckpointFacts, order: str, width: int) -> tuple[str, list[str]]:
    """The title, and what stands below it in lines."""
    row, count = rows[0], len(rows)
    what = "class units" if row["layer"] == LOGITS else f"units of {row['layer']}"
    what = what if count > 1 else what.replace("units", "unit", 1)
    title = f"What excites the {count} {what}" if row["sign"] > 0 else f"What the {count} {what} dislike"
    scores = [row["score"] for row in rows if row["status"] != "dead"]
    span = f", score {max(scores):.3g} to {min(scores):.3g}" if scores else ""
    made = f"recipe {row['recipe_text']}, objective {row['objective']}, seed {row['seed']}"
    sorted_by = {"unit": f"by number{span}", "score": f"by score, the highest first{span}"}[order]
    texts = [title_line(checkpoint), f"{made}; {sorted_by}"]
    return shortened(title, width, SPRITE_TITLE, bold=True), [
        line for text in texts for line in lines_within(text, width, SPRITE_SMALL)
    ]


def _spritemap_caption(sprites: Sequence[_Sprite], checkpoint: CheckpointFacts) -> list[str]:
    """What a reader must know: one entry a paragraph."""
    count = {status: sum(sprite.status == status for sprite in sprites) for status in ("dead", "saturated")}
    texts = [meaning_of_robust([checkpoint])]
    if count["dead"]:
        texts.append(f"crossed, {count['dead']} of {len(sprites)}, {DEAD}")
    if count["saturated"]:
        texts.append(f"orange corner, {count['saturated']} of {len(sprites)}, {SATURATED}")
    return [text for text in texts if text]


ATLAS_MARGIN, ATLAS_MIN_WIDTH = 48, 1000
ATLAS_TITLE, ATLAS_SMALL, ATLAS_CAPTION, ATLAS_LABEL = 34, 20, 18, 15
ATLAS_GAP = 8
ATLAS_TARGETS = ((6, 168), (12, 112))  # up to so many cells a side are drawn about so large
ATLAS_SMALLEST = 64
LEAST_SIDE = 0.4  # of the largest picture's side, so that the pictures of sparse cells can still be seen


def atlas_sheet(
    path: Path | str,
    folder: Path | str,
    rows: Sequence[Row],
    checkpoint: CheckpointFacts,
    about: Sequence[str],
    grid: int,
    command: str = "",
) -> Path:
    """Draw the `grid` x `grid` atlas of one checkpoint to a PNG; the PNG carries the command.

    `rows` are its cells in the run in `folder`; `about` are sentences that say what was laid out and how. Cells that
    have no row stay empty. The area of a picture is proportional to its cell's count, from a least size on.
    """
    if not rows:
        raise ValueError(f"run {str(folder)!r} holds no pictures of {checkpoint.name}; run its command again to fill it")
    target = next((size for most, size in ATLAS_TARGETS if grid <= most), ATLAS_SMALLEST)
    pictures = {(row["row"], row["column"]): _picture(row, Path(folder)) for row in rows}
    full = [scaled(one, target).shape for one in pictures.values() if one is not None] or [(target, target)]
    tile = max(shape[1] for shape in full), max(shape[0] for shape in full)
    step = tile[0] + ATLAS_GAP, tile[1] + round(2 * ATLAS_LABEL * LEADING) + ATLAS_GAP
    densest = max(row["count"] for row in rows)
    with house_style():
        width = max(ATLAS_MIN_WIDTH, 2 * ATLAS_MARGIN + grid * step[0] - ATLAS_GAP)
        head = [
            line
            for text in (title_line(checkpoint), *about)
            for line in lines_within(text, width - 2 * ATLAS_MARGIN, ATLAS_SMALL)
        ]
        foot = [
            line
            for text in _atlas_caption(rows, checkpoint)
            for line in lines_within(text, width - 2 * ATLAS_MARGIN, ATLAS_CAPTION)
        ]
        top = ATLAS_MARGIN + round(ATLAS_TITLE * LEADING + len(head) * ATLAS_SMALL * LEADING + ATLAS_SMALL)
        height = top + grid * step[1] + round(ATLAS_CAPTION + len(foot) * ATLAS_CAPTION * LEADING) + ATLAS_MARGIN
        canvas = Canvas(width, height)
        after = canvas.lines([f"Activation atlas of {rows[0]['layer']}"], ATLAS_MARGIN, ATLAS_MARGIN, ATLAS_TITLE, bold=True)
        canvas.lines(head, ATLAS_MARGIN, after, ATLAS_SMALL, color=QUIET)
        left = (width - (grid * step[0] - ATLAS_GAP)) // 2
        for row in rows:
            x, y = left + row["column"] * step[0], top + row["row"] * step[1]
            share = max(LEAST_SIDE, (row["count"] / densest) ** 0.5)
            _draw(canvas, row, pictures[row["row"], row["column"]], x, y, tile, share)
        canvas.lines(foot, ATLAS_MARGIN, top + grid * step[1] + ATLAS_CAPTION, ATLAS_CAPTION, color=QUIET)
        return canvas.save(path, command)


def _draw(canvas: Canvas, row: Row, picture: Pixels | None, x: int, y: int, tile: tuple[int, int], share: float) -> None:
    """One cell: its picture in the middle of the tile, below it the most frequent class and how frequent it is."""
    width, height = (max(1, round(side * share)) for side in tile)
    pixels = missing_tile(width, height) if picture is None else resized(picture, width, height)
    left, above = x + (tile[0] - width) // 2, y + (tile[1] - height) // 2
    canvas.frame(left - 1, above - 1, width + 2, height + 2, FAINT, 1)
    canvas.image(pixels, left, above)
    if row["status"] == "saturated":
        canvas.corner(left + width, above, max(8, width // 8))
    name, count = next(iter(row["classes"].items()))
    middle, first = x + tile[0] / 2, above + height + ATLAS_LABEL * 1.1
    canvas.text(shortened(name, tile[0] + ATLAS_GAP - 2, ATLAS_LABEL, keep="start"), middle, first, ATLAS_LABEL, align="center")
    canvas.text(
        f"{count} of {row['count']}", middle, first + ATLAS_LABEL * LEADING, ATLAS_LABEL * 0.85, color=QUIET, align="center"
    )


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """(H, W) or (H, W, 3) uint8 -> (height, width, 3): pixels repeated where it grows, averaged where it shrinks."""
    image = Image.fromarray(pixels).convert("RGB")
    grows = width >= image.width and height >= image.height
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST if grows else Image.Resampling.BOX))


def about_atlas(atlas: Any, facts: Mapping[str, Any], images: Mapping[str, Any], row: Row) -> list[str]:
    """What was laid out and how, in sentences: `facts` and `images` as run.json holds them, `row` any of the rows."""
    ways = {"tsne": "t-SNE of their directions", "pca": "the first two principal components of their directions"}
    whitened = ", whitened" if atlas.whiten else ""
    cells = f"{facts['cells']} of {atlas.grid} x {atlas.grid} cells"
    laid_out = f"one activation vector each of {facts['images']:,} images of {images['data']} ({images['split']}), laid out by "
    kept = f"have at least {atlas.min_activations} of them, {facts['images'] - facts['left_out']:,} in all"
    made = f"recipe {row['recipe_text']}, along a cell's mean{whitened}: dot product x cosine^{atlas.power:g}, seed {atlas.seed}"
    return [f"{laid_out}{ways[atlas.layout]}; {cells} {kept}", made]


def _picture(row: Row, folder: Path) -> Pixels | None:
    if row["status"] == "dead":
        return None
    file = folder / row["image"]
    if not file.is_file():
        raise FileNotFoundError(f"picture {str(file)!r} is missing; run the command of {str(folder)!r} again in a new folder")
    return read_opaque(file)


def _atlas_caption(rows: Sequence[Row], checkpoint: CheckpointFacts) -> list[str]:
    """What a reader must know: one entry a paragraph."""
    most = max(row["count"] for row in rows)
    texts = [
        f"area: how many activations a picture's cell averages, at most {most}; below: the most frequent class of their images"
    ]
    count = {status: sum(row["status"] == status for row in rows) for status in ("dead", "saturated")}
    if count["dead"]:
        texts.append(f"crossed, {count['dead']} of {len(rows)}, {DEAD.replace('unit', 'direction')}")
    if count["saturated"]:
        texts.append(f"orange corner, {count['saturated']} of {len(rows)}, {SATURATED}")
    return [text for text in (*texts, meaning_of_robust([checkpoint])) if text]


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
        notes = [line for text in caption for line in lines_within(text, width - 2 * MARGIN, CAPTION)]
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
