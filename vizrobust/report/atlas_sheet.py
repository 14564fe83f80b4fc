"""The sheet of an activation atlas: its cells where they lie, each as large as it is dense, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.report.canvas import LEADING, Canvas, Pixels, scaled, shortened, wrapped
from vizrobust.report.collect import Subject
from vizrobust.report.spritemap_sheet import crossed, introduced
from vizrobust.report.style import FAINT, QUIET, house_style
from vizrobust.report.wording import DEAD, SATURATED, meaning_of_robust
from vizrobust.runs import Row

MARGIN, MIN_WIDTH = 48, 1000
TITLE, SMALL, CAPTION, LABEL = 34, 20, 18, 15
GAP = 8
TARGETS = ((6, 168), (12, 112))  # up to so many cells a side are drawn about so large
SMALLEST = 64
LEAST_SIDE = 0.4  # of the largest picture's side, so that the pictures of sparse cells can still be seen


def atlas_sheet(
    path: Path | str,
    folder: Path | str,
    rows: Sequence[Row],
    subject: Subject,
    about: Sequence[str],
    grid: int,
    command: str = "",
) -> Path:
    """Draw the `grid` x `grid` atlas of one checkpoint to a PNG; the PNG carries the command.

    `rows` are its cells in the run in `folder`; `about` are sentences that say what was laid out and how. Cells that
    have no row stay empty. The area of a picture is proportional to its cell's count, from a least size on.
    """
    if not rows:
        raise ValueError(f"run {str(folder)!r} holds no pictures of {subject.name}; run its command again to fill it")
    target = next((size for most, size in TARGETS if grid <= most), SMALLEST)
    pictures = {(row["row"], row["column"]): _picture(row, Path(folder)) for row in rows}
    full = [scaled(one, target).shape for one in pictures.values() if one is not None] or [(target, target)]
    tile = max(shape[1] for shape in full), max(shape[0] for shape in full)
    step = tile[0] + GAP, tile[1] + round(2 * LABEL * LEADING) + GAP
    densest = max(row["count"] for row in rows)
    with house_style():
        width = max(MIN_WIDTH, 2 * MARGIN + grid * step[0] - GAP)
        head = [line for text in (introduced(subject), *about) for line in wrapped(text, width - 2 * MARGIN, SMALL)]
        foot = [line for text in _foot(rows, subject) for line in wrapped(text, width - 2 * MARGIN, CAPTION)]
        top = MARGIN + round(TITLE * LEADING + len(head) * SMALL * LEADING + SMALL)
        height = top + grid * step[1] + round(CAPTION + len(foot) * CAPTION * LEADING) + MARGIN
        canvas = Canvas(width, height)
        after = canvas.lines([f"Activation atlas of {rows[0]['layer']}"], MARGIN, MARGIN, TITLE, bold=True)
        canvas.lines(head, MARGIN, after, SMALL, color=QUIET)
        left = (width - (grid * step[0] - GAP)) // 2
        for row in rows:
            x, y = left + row["column"] * step[0], top + row["row"] * step[1]
            share = max(LEAST_SIDE, (row["count"] / densest) ** 0.5)
            _draw(canvas, row, pictures[row["row"], row["column"]], x, y, tile, share)
        canvas.lines(foot, MARGIN, top + grid * step[1] + CAPTION, CAPTION, color=QUIET)
        return canvas.save(path, command)


def _draw(canvas: Canvas, row: Row, picture: Pixels | None, x: int, y: int, tile: tuple[int, int], share: float) -> None:
    """One cell: its picture in the middle of the tile, below it the most frequent class and how frequent it is."""
    width, height = (max(1, round(side * share)) for side in tile)
    pixels = crossed(width, height) if picture is None else resized(picture, width, height)
    left, above = x + (tile[0] - width) // 2, y + (tile[1] - height) // 2
    canvas.frame(left - 1, above - 1, width + 2, height + 2, FAINT, 1)
    canvas.image(pixels, left, above)
    if row["status"] == "saturated":
        canvas.corner(left + width, above, max(8, width // 8))
    name, count = next(iter(row["classes"].items()))
    middle, first = x + tile[0] / 2, above + height + LABEL * 1.1
    canvas.text(shortened(name, tile[0] + GAP - 2, LABEL, keep="start"), middle, first, LABEL, align="center")
    canvas.text(f"{count} of {row['count']}", middle, first + LABEL * LEADING, LABEL * 0.85, color=QUIET, align="center")


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
    kept = f"have at least {atlas.fewest} of them, {facts['images'] - facts['left_out']:,} in all"
    made = f"recipe {row['recipe_text']}, along a cell's mean{whitened}: dot product x cosine^{atlas.power:g}, seed {atlas.seed}"
    return [f"{laid_out}{ways[atlas.layout]}; {cells} {kept}", made]


def _picture(row: Row, folder: Path) -> Pixels | None:
    if row["status"] == "dead":
        return None
    file = folder / row["image"]
    if not file.is_file():
        raise FileNotFoundError(f"picture {str(file)!r} is gone; run the command of {str(folder)!r} again in a new folder")
    return read_opaque(file)


def _foot(rows: Sequence[Row], subject: Subject) -> list[str]:
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
    return [text for text in (*texts, meaning_of_robust([subject])) if text]
