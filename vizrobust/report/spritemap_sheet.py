"""The spritemap: the pictures of all units of a layer on one sheet, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.features.session import checkpoint_facts
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.report.canvas import LEADING, Canvas, Pixels, scaled, shortened, wrapped
from vizrobust.report.collect import Subject
from vizrobust.report.style import FAINT, QUIET, house_style
from vizrobust.report.wording import DEAD, SATURATED, accuracies, meaning_of_robust
from vizrobust.runs import Row

ORDERS = ("unit", "score")
MARGIN, MIN_WIDTH, MOST_PIXELS = 48, 900, 60_000
TITLE, SMALL, CAPTION, LABEL = 34, 20, 18, 15
GAP = 6
# Up to so many tiles are drawn about so large.
TARGETS = ((36, 168), (160, 112), (300, 84))
SMALLEST = 64


def spritemap_sheet(
    path: Path | str,
    folder: Path | str,
    rows: Sequence[Row],
    subject: Subject,
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
        raise ValueError(f"run {str(folder)!r} holds no pictures of {subject.name}; run its command again to fill it")
    if columns is not None and columns < 1:
        raise ValueError(f"a sheet has at least 1 column, got {columns}")
    sprites = [_Sprite.of(row, Path(folder), subject) for row in _ordered(rows, order)]
    target = next((size for most, size in TARGETS if len(sprites) <= most), SMALLEST)
    with house_style():
        tiles = [sprite.shape(target) for sprite in sprites]
        tile = max(width for _, width in tiles), max(height for height, _ in tiles)
        step = tile[0] + GAP, tile[1] + round(LABEL * LEADING) + GAP
        across = min(len(sprites), columns or _columns(len(sprites), step[1] / step[0]))
        down = math.ceil(len(sprites) / across)
        width = max(MIN_WIDTH, 2 * MARGIN + across * step[0] - GAP)
        head = _head(rows, subject, order, width - 2 * MARGIN)
        foot = [line for text in _foot(sprites, subject) for line in wrapped(text, width - 2 * MARGIN, CAPTION)]
        top = MARGIN + round(TITLE * LEADING + len(head[1]) * SMALL * LEADING + SMALL)
        height = top + down * step[1] + round(CAPTION + len(foot) * CAPTION * LEADING) + MARGIN
        if max(width, height) > MOST_PIXELS:
            raise ValueError(
                f"{len(sprites)} units in {across} columns make a sheet of {width} x {height} pixels; give other --columns"
            )
        canvas = Canvas(width, height)
        after = canvas.lines([head[0]], MARGIN, MARGIN, TITLE, bold=True)
        canvas.lines(head[1], MARGIN, after, SMALL, color=QUIET)
        for i, sprite in enumerate(sprites):
            sprite.draw(canvas, MARGIN + i % across * step[0], top + i // across * step[1], tile, target)
        canvas.lines(foot, MARGIN, top + down * step[1] + CAPTION, CAPTION, color=QUIET)
        return canvas.save(path, command)


def subject_of(checkpoint: Checkpoint) -> Subject:
    """A checkpoint as reports know it."""
    facts = checkpoint_facts(checkpoint)
    own = {name: facts[name] for name in Subject.__dataclass_fields__ if facts.get(name) is not None}
    return Subject(**{**own, "id": checkpoint.id, "classes": checkpoint.about.classes})


def introduced(subject: Subject) -> str:
    """A checkpoint in one line: name, training, accuracies as far as they are known."""
    known = subject.clean is not None or subject.robust is not None
    return ", ".join(
        text for text in (subject.name, subject.training_words, *(accuracies(subject).split("   ") if known else ())) if text
    )


@dataclass(frozen=True)
class _Sprite:
    """One unit's tile; `file` is None where there is nothing to show."""

    label: str
    status: str
    file: Path | None

    @staticmethod
    def of(row: Row, folder: Path, subject: Subject) -> _Sprite:
        named = row["layer"] == LOGITS and row["unit"] < len(subject.classes)
        file = None if row["status"] == "dead" else folder / row["image"]
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"picture {str(file)!r} is gone; run the command of {str(folder)!r} again in a new folder")
        return _Sprite(subject.classes[row["unit"]] if named else str(row["unit"]), row["status"], file)

    def shape(self, target: int) -> tuple[int, int]:
        """Height and width of its tile; nothing but the file's header is read."""
        if self.file is None:
            return 0, 0
        with Image.open(self.file) as image:
            return scaled(np.zeros((image.height, image.width), np.uint8), target).shape[:2]

    def draw(self, canvas: Canvas, x: int, y: int, tile: tuple[int, int], target: int) -> None:
        width, height = tile
        pixels = crossed(width, height) if self.file is None else scaled(read_opaque(self.file), target)
        left, top = x + (width - pixels.shape[1]) // 2, y + (height - pixels.shape[0]) // 2
        canvas.frame(left - 1, top - 1, pixels.shape[1] + 2, pixels.shape[0] + 2, FAINT, 1)
        canvas.image(pixels, left, top)
        if self.status == "saturated":
            canvas.corner(x + width, y, max(8, width // 8))
        label = shortened(self.label, width + GAP - 2, LABEL, keep="start")
        canvas.text(label, x + width / 2, y + height + LABEL * 1.1, LABEL, color=QUIET, align="center")


def crossed(width: int, height: int) -> Pixels:
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


def _head(rows: Sequence[Row], subject: Subject, order: str, width: int) -> tuple[str, list[str]]:
    """The title, and what stands below it in lines."""
    row, count = rows[0], len(rows)
    what = "class units" if row["layer"] == LOGITS else f"units of {row['layer']}"
    what = what if count > 1 else what.replace("units", "unit", 1)
    title = f"What excites the {count} {what}" if row["sign"] > 0 else f"What the {count} {what} dislike"
    scores = [row["score"] for row in rows if row["status"] != "dead"]
    span = f", score {max(scores):.3g} to {min(scores):.3g}" if scores else ""
    made = f"recipe {row['recipe_text']}, objective {row['objective']}, seed {row['seed']}"
    sorted_by = {"unit": f"by number{span}", "score": f"by score, the highest first{span}"}[order]
    texts = [introduced(subject), f"{made}; {sorted_by}"]
    return shortened(title, width, TITLE, bold=True), [line for text in texts for line in wrapped(text, width, SMALL)]


def _foot(sprites: Sequence[_Sprite], subject: Subject) -> list[str]:
    """What a reader must know: one entry a paragraph."""
    count = {status: sum(sprite.status == status for sprite in sprites) for status in ("dead", "saturated")}
    texts = [meaning_of_robust([subject])]
    if count["dead"]:
        texts.append(f"crossed, {count['dead']} of {len(sprites)}, {DEAD}")
    if count["saturated"]:
        texts.append(f"orange corner, {count['saturated']} of {len(sprites)}, {SATURATED}")
    return [text for text in texts if text]
