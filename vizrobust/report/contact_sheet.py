"""The contact sheet: one row per checkpoint, one column per unit, as a PNG."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.report.canvas import LEADING, Canvas, lines_within, scaled, shortened, text_width
from vizrobust.report.collect import CheckpointFacts, Collection, Column, Exemplars, Panel, Picture
from vizrobust.report.exemplar_views import Grid
from vizrobust.report.style import FAINT, QUIET, house_style
from vizrobust.report.words import DEAD, EXCITING, SATURATED, accuracies, exemplars_shown, meaning_of_robust, seeds_shown

MOST_ACROSS, MOST_WITH_SEEDS, MOST_WITH_EXEMPLARS = 32, 24, 12
MARGIN, MIN_WIDTH = 72, 1200
TITLE, SECTION, LABEL, NAME, SMALL, CAPTION = 46, 36, 29, 31, 26, 23
HEAD_MOST, HEAD_GAP, SLANTED_MOST = 560, 44, 320
GAP, SEED_GAP, BLOCK_GAP, HAIRLINE = 14, 8, 64, 2
EXEMPLAR_GAP = 16  # above a grid of natural images


def contact_sheet(path: Path | str, collection: Collection) -> Path:
    """Draw every panel of a collection to a PNG, pixels enlarged by whole numbers; the PNG carries the command.

    Raises ``ValueError`` where `path` does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot draw a contact sheet to {str(path)!r}; its name must end in .png")
    with house_style():
        blocks = [block for panel in collection.panels for block in _blocks(panel)]
        head = max(block.head for block in blocks)
        width = max(MIN_WIDTH, 2 * MARGIN + head + max(block.width for block in blocks))
        caption = [line for text in _caption(collection, blocks) for line in lines_within(text, width - 2 * MARGIN, CAPTION)]
        height = 2 * MARGIN + sum(block.height for block in blocks) + BLOCK_GAP * len(blocks)
        canvas = Canvas(math.ceil(width), math.ceil(height + len(caption) * CAPTION * LEADING))
        y = MARGIN
        for block in blocks:
            block.draw(canvas, MARGIN, y, head)
            y += block.height + BLOCK_GAP
        canvas.line(MARGIN, y - BLOCK_GAP // 3, canvas.width - 2 * MARGIN)
        canvas.lines(caption, MARGIN, y, CAPTION, color=QUIET)
        return canvas.save(path, collection.command)


@dataclass(frozen=True)
class _Block:
    """Some columns of a panel, laid out; all lengths in pixels."""

    panel: Panel
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    tile: tuple[int, int]
    target: int
    title: list[str]
    title_size: int
    labels: list[list[str]] = field(repr=False)
    rotated: bool = False
    head: int = 0
    grid: Grid | None = None

    @property
    def pictures(self) -> int:
        return len(self.seeds) * self.tile[0] + (len(self.seeds) - 1) * SEED_GAP

    @property
    def cell(self) -> int:
        return max(self.pictures, self.grid.width if self.grid else 0)

    @property
    def gap(self) -> int:
        return GAP if len(self.seeds) == 1 and self.grid is None else 2 * GAP

    @property
    def top_row(self) -> int:
        """The pictures' own height; those of natural images come below."""
        return max(self.tile[1], round(NAME * LEADING + 2 * SMALL * LEADING))

    @property
    def row(self) -> int:
        below = 2 * (self.grid.height + EXEMPLAR_GAP) + 2 * GAP if self.grid else 0
        return self.top_row + below

    @property
    def overhang(self) -> int:
        """How far rotated labels reach, up and to the right of the last column."""
        return round(max(text_width(lines[0], LABEL) for lines in self.labels) * 0.71) if self.rotated else 0

    @property
    def width(self) -> int:
        return len(self.columns) * (self.cell + self.gap) - self.gap + self.overhang

    @property
    def top(self) -> int:
        """From the block's top to its first row of tiles."""
        title = round(len(self.title) and self.title_size * LEADING + SMALL * LEADING * (len(self.title) - 1) + 18)
        labels = self.overhang + LABEL if self.rotated else max(map(len, self.labels)) * round(LABEL * LEADING)
        return title + labels + 10

    @property
    def height(self) -> int:
        return self.top + len(self.panel.checkpoints) * (self.row + GAP) - GAP

    def draw(self, canvas: Canvas, x: int, y: int, head: int) -> None:
        if self.title:
            after = canvas.lines(self.title[:1], x, y, self.title_size, bold=True)
            canvas.lines(self.title[1:], x, after, SMALL, color=QUIET)
        first = y + self.top
        lefts = [x + head + i * (self.cell + self.gap) for i in range(len(self.columns))]
        for left, lines in zip(lefts, self.labels, strict=True):
            if self.rotated:
                canvas.text(lines[0], left + self.cell / 2, first - 12, LABEL, rotation=45)
            else:
                top = first - 10 - len(lines) * LABEL * LEADING
                canvas.lines(lines, left + self.cell / 2, top, LABEL, align="center")
        for i, checkpoint in enumerate(self.panel.checkpoints):
            above = first + i * (self.row + GAP)
            self._draw_head(canvas, checkpoint, x, above)
            for left, column in zip(lefts, self.columns, strict=True):
                inset, drop = (self.cell - self.pictures) // 2, (self.top_row - self.tile[1]) // 2
                self._draw_cell(canvas, self.panel.pictures(checkpoint, column), left + inset, above + drop)
                self._draw_exemplars(canvas, self.panel.exemplars_of(checkpoint, column), left, above + self.top_row)
            self._draw_exemplar_labels(canvas, x, above + self.top_row)

    def _draw_exemplars(self, canvas: Canvas, exemplars: Exemplars | None, x: int, y: int) -> None:
        if self.grid is None or exemplars is None:
            return
        x += (self.cell - self.grid.width) // 2
        for sign in self.panel.signs:
            self.grid.draw(canvas, exemplars.of_sign(sign), x, y + EXEMPLAR_GAP)
            y += EXEMPLAR_GAP + self.grid.height

    def _draw_exemplar_labels(self, canvas: Canvas, x: int, y: int) -> None:
        """What the two grids are, at the head of their rows."""
        for sign in self.panel.signs if self.grid else ():
            assert self.grid is not None
            middle = y + EXEMPLAR_GAP + self.grid.height / 2
            canvas.text(f"{EXCITING[sign]} images", x, middle + SMALL * 0.35, SMALL, color=QUIET)
            y += EXEMPLAR_GAP + self.grid.height

    def _draw_head(self, canvas: Canvas, checkpoint: CheckpointFacts, x: int, y: int) -> None:
        lines = _head_lines(checkpoint)
        y += round((self.top_row - NAME * LEADING - SMALL * LEADING * (len(lines) - 1)) / 2)
        after = canvas.lines([shortened(lines[0], HEAD_MOST, NAME, bold=True)], x, y, NAME, bold=True)
        canvas.lines(lines[1:], x, after, SMALL, color=QUIET)

    def _draw_cell(self, canvas: Canvas, pictures: tuple[Picture, ...], x: int, y: int) -> None:
        by_seed = {picture.seed: picture for picture in pictures}
        width, height = self.tile
        for i, seed in enumerate(self.seeds):
            left = x + i * (width + SEED_GAP)
            picture = by_seed.get(seed)
            if picture is None:
                continue
            edge = HAIRLINE  # outside the pixels: a picture that is white at its border still has a shape
            if picture.file is None:
                canvas.frame(left - edge, y - edge, width + 2 * edge, height + 2 * edge, FAINT, edge)
                size = min(SMALL, round(width / 3))
                canvas.text("dead", left + width / 2, y + height / 2 + size * 0.35, size, color=QUIET, align="center")
                continue
            pixels = scaled(read_opaque(picture.file), self.target)
            inset, drop = (width - pixels.shape[1]) // 2, (height - pixels.shape[0]) // 2
            canvas.frame(
                left + inset - edge, y + drop - edge, pixels.shape[1] + 2 * edge, pixels.shape[0] + 2 * edge, FAINT, edge
            )
            canvas.image(pixels, left + inset, y + drop)
            if picture.status == "saturated":
                canvas.corner(left + width, y, max(14, width // 8))


def _blocks(panel: Panel) -> list[_Block]:
    """A panel as blocks of about equal width."""
    seeds = panel.seeds if len(panel.columns) * len(panel.seeds) <= MOST_WITH_SEEDS else panel.seeds[:1]
    count = math.ceil(len(panel.columns) / (MOST_WITH_EXEMPLARS if panel.exemplars else MOST_ACROSS))
    per = math.ceil(len(panel.columns) / count)
    across = per * len(seeds)
    target = 280 if across <= 3 else 168 if across <= 16 or panel.exemplars else 112
    tile = _tile(panel, target)
    grid = Grid.of(panel.exemplars.values(), tile[0])
    head = max(_head_width(checkpoint) for checkpoint in panel.checkpoints) + HEAD_GAP
    if grid is not None:
        head = max(head, text_width(f"{EXCITING[-1]} images", SMALL) + HEAD_GAP)
    cell = max(len(seeds) * tile[0] + (len(seeds) - 1) * SEED_GAP, grid.width if grid else 0)
    labels, rotated = _labels([panel.label(column) for column in panel.columns], cell + GAP - 4)
    title = [panel.title, panel.subtitle]
    return [
        _Block(
            panel, panel.columns[i : i + per], seeds, tile, target, title if i == 0 else [], TITLE,
            labels[i : i + per], rotated, round(head), grid,
        )
        for i in range(0, len(panel.columns), per)
    ]  # fmt: skip


def _labels(labels: list[str], width: int) -> tuple[list[list[str]], bool]:
    """Column heads in at most three lines each, or, where a word is too wide for that, all of them slanted."""
    lines = [lines_within(label, width, LABEL) for label in labels]
    if all(" ".join(parts) == " ".join(label.split()) for label, parts in zip(labels, lines, strict=True)):
        return [
            [*parts[:2], *([shortened(" ".join(parts[2:]), width, LABEL, keep="start")] if parts[2:] else [])] for parts in lines
        ], False
    return [[shortened(label, SLANTED_MOST, LABEL)] for label in labels], True


def _tile(panel: Panel, target: int) -> tuple[int, int]:
    """Width and height of the largest picture of a panel once it is scaled."""
    sizes = set()
    for cell in panel.cells.values():
        for picture in cell:
            if picture.file is not None:
                with Image.open(picture.file) as image:
                    sizes.add(image.size)
    shapes = [scaled(np.zeros((height, width), np.uint8), target).shape for width, height in sizes] or [(target, target)]
    return max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)


def _head_lines(checkpoint: CheckpointFacts) -> list[str]:
    return [line for line in (checkpoint.name, checkpoint.training_words, accuracies(checkpoint)) if line]


def _head_width(checkpoint: CheckpointFacts) -> float:
    lines = _head_lines(checkpoint)
    return max(min(HEAD_MOST, text_width(lines[0], NAME, bold=True)), *(text_width(line, SMALL) for line in lines[1:]))


def _caption(collection: Collection, blocks: list[_Block]) -> list[str]:
    """What a reader must know: one entry a paragraph."""
    texts = [meaning_of_robust(collection.checkpoints)]
    texts += [
        f"recipe {name}: {text}" for text, name in {p.recipe_text: p.recipe for p in collection.panels}.items() if text != name
    ]
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
