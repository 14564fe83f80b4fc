"""Sheets as PNG: the spritemap of a layer, an activation atlas, reconstructions of an image, and attribution maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.features.pictures import picture_inside, read_opaque
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.report.canvas import (
    DENSE,
    LABELLED,
    LEADING,
    Page,
    Pixels,
    TileGrid,
    check_png,
    header_column,
    header_height,
    largest_tile,
    scaled,
    shortened,
    text_width,
)
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.style import COLORS, FAINT, MARK, PAPER, QUIET, house_style, png_texts
from vizrobust.report.words import DEAD, SATURATED, accuracies, meaning_of_robust
from vizrobust.runs import Row, write_png

ORDERS = ("unit", "score")
FULL = 0.99  # what share of a map's pixels is not in full colour at least
DEEP = "#6d1f06"
MAPS_CAPTION = (
    "orange: pixels that the answer depends on; of a method with a sign, blue is against the class. Each map has its own scale."
)
TARGETS = ((36, 168), (160, 112), (300, 84))  # up to so many tiles are drawn about so large
SMALLEST = 64
GAP = 6
MOST_PIXELS = 60_000
LEAST_SIDE = 0.4  # of the largest picture's side, so that the pictures of sparse cells stay visible


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

    `rows` are those of one layer, recipe, objective and sign of the run in `folder`. `order` is ``unit`` or ``score``
    (the highest first, units without a picture last). `columns` None makes a near-square sheet. Pixels are enlarged or
    reduced by whole numbers. Raises ``ValueError`` for no rows, another order, or fewer than 1 column.
    """
    if order not in ORDERS:
        raise ValueError(f"no order {order!r}; there are: {', '.join(ORDERS)}")
    _check_rows(rows, folder, checkpoint)
    if columns is not None and columns < 1:
        raise ValueError(f"a sheet has at least 1 column, got {columns}")
    sprites = [_Sprite.of(row, Path(folder), checkpoint) for row in _ordered(rows, order)]
    target = _target(len(sprites))
    with house_style():
        tile = largest_tile([sprite.file for sprite in sprites if sprite.file], target)
        gap = GAP, round(DENSE.label * LEADING) + GAP
        ratio = (tile[1] + gap[1]) / (tile[0] + gap[0])
        across = min(len(sprites), columns or _near_square_columns(len(sprites), ratio))
        grid = TileGrid(across, math.ceil(len(sprites) / across), tile, gap)
        if max(grid.width, grid.height) > MOST_PIXELS:
            raise ValueError(
                f"{len(sprites)} units in {across} columns need {grid.width} x {grid.height} pixels; give other columns"
            )
        title, subtitle = _spritemap_title(rows, checkpoint, order)
        caption = _spritemap_caption(sprites, checkpoint)
        page = Page((grid.width, grid.height + gap[1]), title=title, subtitle=subtitle, caption=caption, sizes=DENSE)
        for i, sprite in enumerate(sprites):
            x, y = grid.position(i)
            x, y = page.left + x, page.top + y
            pixels = missing_tile(*tile) if sprite.file is None else scaled(read_opaque(sprite.file), target)
            page.canvas.tile(pixels, x, y, tile, DENSE, corner=sprite.status == "saturated")
            label = shortened(sprite.label, tile[0] + GAP - 2, DENSE.label, keep="start")
            below = y + tile[1] + DENSE.label * 1.1
            page.canvas.text(label, x + tile[0] / 2, below, DENSE.label, color=QUIET, align="center")
        return page.canvas.save(path, command)


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


def _check_rows(rows: Sequence[Row], folder: Path | str, checkpoint: CheckpointFacts) -> None:
    if not rows:
        raise ValueError(f"run {str(folder)!r} holds no pictures of {checkpoint.name}; run its command again to fill it")


def _file(row: Row, folder: Path) -> Path | None:
    """The picture of a row; None for a dead unit. Raises ``FileNotFoundError`` where it is missing."""
    if row["status"] == "dead":
        return None
    file = picture_inside(folder, row["image"])
    if file is None:
        missing = str(folder / str(row["image"]))
        raise FileNotFoundError(f"picture {missing!r} is missing; run the command of {str(folder)!r} again in a new folder")
    return file


def _target(count: int) -> int:
    return next((size for most, size in TARGETS if count <= most), SMALLEST)


@dataclass(frozen=True)
class _Sprite:
    """One unit's tile; `file` is None for a dead unit."""

    label: str
    status: str
    file: Path | None

    @staticmethod
    def of(row: Row, folder: Path, checkpoint: CheckpointFacts) -> _Sprite:
        named = row["layer"] == LOGITS and row["unit"] < len(checkpoint.classes)
        return _Sprite(checkpoint.classes[row["unit"]] if named else str(row["unit"]), row["status"], _file(row, folder))


def missing_tile(width: int, height: int) -> Pixels:
    """(height, width, 3) uint8: an empty tile with two diagonals."""
    tile = np.full((height, width, 3), 255, np.uint8)
    y, x = np.indices((height, width))
    across = (x + 0.5) / width * height
    near = np.minimum(abs(y + 0.5 - across), abs(y + 0.5 - (height - across))) <= 0.75
    tile[near] = tuple(int(FAINT[i : i + 2], 16) for i in (1, 3, 5))
    return tile


def _near_square_columns(count: int, ratio: float) -> int:
    """The number of columns of a near-square sheet whose last row is fullest; tiles are `ratio` as high as wide."""
    square = math.sqrt(count * ratio)
    near = range(max(1, math.ceil(square / 1.35)), max(1, math.floor(square * 1.35)) + 1)
    return min(near, key=lambda across: (-count % across, abs(across - square)))


def _ordered(rows: Sequence[Row], order: str) -> list[Row]:
    if order == "unit":
        return sorted(rows, key=lambda row: row["unit"])
    return sorted(rows, key=lambda row: (row["status"] == "dead", -(row["score"] or 0.0), row["unit"]))


def _spritemap_title(rows: Sequence[Row], checkpoint: CheckpointFacts, order: str) -> tuple[str, list[str]]:
    """The title, and the texts below it."""
    row, count = rows[0], len(rows)
    what = "class units" if row["layer"] == LOGITS else f"units of {row['layer']}"
    what = what if count > 1 else what.replace("units", "unit", 1)
    title = f"What excites the {count} {what}" if row["sign"] > 0 else f"What the {count} {what} dislike"
    scores = [row["score"] for row in rows if row["status"] != "dead" and row["score"] is not None]
    span = f", score {max(scores):.3g} to {min(scores):.3g}" if scores else ""
    made = f"recipe {row['recipe_text']}, objective {row['objective']}, seed {row['seed']}"
    sorted_by = {"unit": f"by number{span}", "score": f"by score, the highest first{span}"}[order]
    return title, [title_line(checkpoint), f"{made}; {sorted_by}"]


def _spritemap_caption(sprites: Sequence[_Sprite], checkpoint: CheckpointFacts) -> list[str]:
    """What a reader must know, one entry per paragraph."""
    return [text for text in (meaning_of_robust([checkpoint]), *_status_notes([sprite.status for sprite in sprites])) if text]


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
    have no row stay empty. The area of a picture is proportional to its cell's count, down to a smallest size.
    """
    _check_rows(rows, folder, checkpoint)
    target = _target(grid**2)
    files = [_file(row, Path(folder)) for row in rows]
    densest = max(row["count"] for row in rows)
    with house_style():
        tile = largest_tile([file for file in files if file], target)
        tiles = TileGrid(grid, grid, tile, (GAP, round(2 * DENSE.label * LEADING) + GAP))
        page = Page(
            (tiles.width, tiles.height + tiles.gap[1]), title=f"Activation atlas of {rows[0]['layer']}",
            subtitle=[title_line(checkpoint), *about], caption=_atlas_caption(rows, checkpoint), sizes=DENSE,
        )  # fmt: skip
        left = (page.canvas.width - tiles.width) // 2
        for row, file in zip(rows, files, strict=True):
            x, y = tiles.position(row["row"] * grid + row["column"])
            share = max(LEAST_SIDE, (row["count"] / densest) ** 0.5)
            _atlas_cell(page, row, file, left + x, page.top + y, tile, share)
        return page.canvas.save(path, command)


def beside(path: Path, sheets: Sequence[Path], command: str = "") -> Path:
    """Put finished sheets side by side on one PNG, which carries the command."""
    opened = []
    for sheet in sheets:
        with Image.open(sheet) as image:
            opened.append(image.convert("RGB"))
    page = Image.new("RGB", (sum(one.width for one in opened), max(one.height for one in opened)), "white")
    left = 0
    for one in opened:
        page.paste(one, (left, 0))
        left += one.width
    write_png(path, np.asarray(page), png_texts(command))
    return path


def _atlas_cell(page: Page, row: Row, file: Path | None, x: int, y: int, tile: tuple[int, int], share: float) -> None:
    """One cell: its picture in the middle of the tile, below it the most frequent class and how frequent it is."""
    width, height = (max(1, round(side * share)) for side in tile)
    pixels = missing_tile(width, height) if file is None else resized(read_opaque(file), width, height)
    page.canvas.tile(pixels, x, y, tile, DENSE, corner=row["status"] == "saturated")
    name, count = next(iter(row["classes"].items()))
    middle, first = x + tile[0] / 2, y + (tile[1] + height) / 2 + DENSE.label * 1.1
    label = shortened(name, tile[0] + GAP - 2, DENSE.label, keep="start")
    page.canvas.text(label, middle, first, DENSE.label, align="center")
    below = first + DENSE.label * LEADING
    page.canvas.text(f"{count} of {row['count']}", middle, below, DENSE.label * 0.85, color=QUIET, align="center")


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """(H, W) or (H, W, 3) uint8 -> (height, width, 3): pixels repeated where it grows, averaged where it shrinks."""
    image = Image.fromarray(pixels).convert("RGB")
    grows = width >= image.width and height >= image.height
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST if grows else Image.Resampling.BOX))


def about_atlas(
    atlas: Any, facts: Mapping[str, Any], images: Mapping[str, Any], row: Row, together: Sequence[str] = ()
) -> list[str]:
    """Sentences that say what was laid out and how; `facts` and `images` are those of run.json, `row` is any row.

    `together` are the names of the checkpoints that have one layout.
    """
    ways = {"tsne": "t-SNE of their directions", "pca": "the first two principal components of their directions"}
    whitened = ", whitened" if atlas.whiten else ""
    cells = f"{facts['cells']} of {atlas.grid} x {atlas.grid} cells"
    laid_out = f"one activation vector each of {facts['images']:,} images of {images['data']} ({images['split']}), laid out by "
    kept = f"have at least {atlas.min_activations} of them, {facts['images'] - facts['left_out']:,} in all"
    made = f"recipe {row['recipe_text']}, along a cell's mean{whitened}: dot product x cosine^{atlas.power:g}, seed {atlas.seed}"
    shared = [f"one layout of {' and '.join(together)}: a cell averages the same images on each sheet"] if together else []
    return [f"{laid_out}{ways[atlas.layout]}; {cells} {kept}", *shared, made]


def _atlas_caption(rows: Sequence[Row], checkpoint: CheckpointFacts) -> list[str]:
    """What a reader must know, one entry per paragraph."""
    most = max(row["count"] for row in rows)
    area = f"area: the number of activations that a cell averages, at most {most}; below: the most frequent class of their images"
    notes = [note.replace("unit", "direction") for note in _status_notes([row["status"] for row in rows])]
    return [text for text in (area, *notes, meaning_of_robust([checkpoint])) if text]


def _status_notes(statuses: Sequence[str]) -> list[str]:
    """What crossed tiles and orange corners mean, and how many there are."""
    known = {"dead": f"crossed, {{}}, {DEAD}", "saturated": f"orange corner, {{}}, {SATURATED}"}
    counts = {status: statuses.count(status) for status in known}
    return [text.format(f"{counts[status]} of {len(statuses)}") for status, text in known.items() if counts[status]]


TARGET, MIN_TILE, RECONSTRUCTION_GAP = 224, 190, (24, 40)


@dataclass(frozen=True)
class Reconstructed:
    """One picture, (H, W) or (H, W, 3) uint8, and the lines below it."""

    pixels: Pixels = field(repr=False)
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class SheetRow:
    """The pictures of one checkpoint, the image itself first. The first line of `header` is bold."""

    header: tuple[str, ...]
    pictures: tuple[Reconstructed, ...]


def reconstruction_sheet(
    path: Path | str, title: str, columns: Sequence[str], rows: Sequence[SheetRow], caption: Sequence[str], command: str = ""
) -> Path:
    """Draw rows of pictures below the labels `columns` to a PNG; the PNG carries the command.

    Pixels are enlarged by whole numbers. Raises ``ValueError`` where `path` does not end in .png or a row has another
    number of pictures than there are columns.
    """
    check_png(path)
    if not rows or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"a sheet needs rows of {len(columns)} pictures, got {[len(row.pictures) for row in rows]}")
    tiles = [[scaled(picture.pixels, TARGET) for picture in row.pictures] for row in rows]
    drawn = [tile for row in tiles for tile in row]
    small = LABELLED.small
    with house_style():
        header = header_column([row.header for row in rows])
        below = max(len(picture.lines) for row in rows for picture in row.pictures)
        size = max(MIN_TILE, *(tile.shape[1] for tile in drawn)), max(tile.shape[0] for tile in drawn)
        size = size[0], max(size[1], round(max(header_height(row.header) for row in rows)))
        gap = RECONSTRUCTION_GAP[0], RECONSTRUCTION_GAP[1] + round(10 + below * small * LEADING if below else 0)
        grid = TileGrid(len(columns), len(rows), size, gap)
        labels, room = round(LABELLED.label * LEADING) + 12, size[0] + gap[0] - 6
        # One size for all, the largest at which no name has to be cut.
        sizes = [LABELLED.label - step for step in range(round(LABELLED.label - small))]
        label = next((one for one in sizes if all(text_width(column, one) <= room for column in columns)), small)
        page = Page(
            (header + grid.width, labels + grid.height + gap[1] - RECONSTRUCTION_GAP[1]), title=title, caption=caption, ruled=True
        )
        canvas, left, top = page.canvas, page.left + header, page.top + labels
        for i, column in enumerate(columns):
            x = left + grid.position(i)[0] + size[0] / 2
            canvas.text(shortened(column, room, label), x, top - 14, label, align="center")
        for i, (row, images) in enumerate(zip(rows, tiles, strict=True)):
            y = top + grid.position(i * len(columns))[1]
            canvas.header(row.header, page.left, y, size[1])
            for k, (picture, image) in enumerate(zip(row.pictures, images, strict=True)):
                x = left + grid.position(k)[0]
                canvas.tile(image, x, y, size)
                canvas.lines(picture.lines, x + size[0] / 2, y + size[1] + 10, small, color=QUIET, align="center")
        return canvas.save(path, command)


def map_pixels(values: Tensor, signed: bool) -> Pixels:
    """A map (H, W) as (H, W, 3) uint8: white for nothing, orange for, and with a sign blue against.

    >>> import torch
    >>> map_pixels(torch.tensor([[0.0, 1.0]]), signed=False)[0, 0].tolist()
    [255, 255, 255]
    """
    array = values.double().numpy()
    sizes = np.abs(array)
    largest = float(np.quantile(sizes, FULL)) or float(sizes.max()) or 1.0
    scaled = np.clip((array if signed else sizes) / largest, -1, 1)
    stops = (-1.0, 0.0, 0.6, 1.0)
    colors = np.array([to_rgb(color) for color in (COLORS[0], PAPER, MARK, DEEP)])
    channels = [np.interp(scaled, stops, colors[:, channel]) for channel in range(3)]
    return (255 * np.stack(channels, -1)).round().astype(np.uint8)


def explanation_sheet(path: Path | str, methods: Sequence[str], rows: Sequence[SheetRow], command: str = "") -> Path:
    """Draw rows of an image and its maps to a PNG; the PNG carries the command."""
    return reconstruction_sheet(path, "Which pixels the answer depends on", ["image", *methods], rows, [MAPS_CAPTION], command)
