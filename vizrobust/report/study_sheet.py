"""The lecture's Figure 27.4 as a picture: a row per K, a column per unit, natural exemplars as the last row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.report.canvas import LEADING, Canvas, Pixels, scaled, shortened, text_width, wrapped
from vizrobust.report.study_numbers import Group, Study
from vizrobust.report.study_units import Cell, cells, inside, units
from vizrobust.report.style import FAINT, QUIET, house_style
from vizrobust.report.wording import DEAD, SATURATED, percent

MOST_ACROSS = 12
MARGIN, GAP, HAIRLINE, HEAD_GAP = 60, 12, 2, 40
TITLE, LABEL, NAME, SMALL, CAPTION = 42, 28, 32, 26, 23
TARGET, SMALL_TARGET = 196, 140  # pixels of a tile, for up to eight and for more columns
EXEMPLARS = 4  # in a square, where they would be as large as a third of a tile or more


def study_sheet(path: Path | str, study: Study, folder: Path, recipe: str, layer: str, *, arms: bool = False) -> Path | None:
    """Draw one recipe's pictures of a layer's units to a PNG, a row per K; None where the study has no such pictures.

    `arms` adds the named arms below (they are there also where no K is known). Each cell shows the picture of the lowest
    training seed and the lowest image seed; of more than twelve units the first.
    Raises ``ValueError`` where `path` does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot draw a contact sheet to {str(path)!r}; its name must end in .png")
    found = {key: some[0] for key, some in cells(study, folder, recipe, layer).items()}
    columns = units(study, recipe, layer)
    wanted = (*study.doses, *study.arms) if arms or not study.doses else study.doses
    rows = [group for group in wanted if any((group.name, unit) in found for unit, _ in columns)]
    if not rows:
        return None
    shown = columns[:MOST_ACROSS]
    natural = {
        int(row["unit"]): [file for name in row["images"] if (file := inside(folder, name))]
        for row in study.entries("exemplars")
        if row["layer"] == layer
    }
    natural = {unit: natural[unit] for unit, _ in shown if natural.get(unit)}
    with house_style():
        return _draw(path, study, found, shown, rows, natural, recipe, layer, len(columns))


def _draw(
    path: Path | str,
    study: Study,
    found: Mapping[tuple[str, int], Cell],
    shown: Sequence[tuple[int, str]],
    rows: Sequence[Group],
    natural: Mapping[int, list[Path]],
    recipe: str,
    layer: str,
    units_in_all: int,
) -> Path:
    target = TARGET if len(shown) <= 8 else SMALL_TARGET
    tile = _side(found, target)
    heads = [_head(study, group, found) for group in rows]
    head = (
        max(
            [
                text_width("natural", NAME, bold=True),
                *(text_width(line, SMALL) for lines in heads for line in lines[1:]),
                *(text_width(lines[0], NAME, bold=True) for lines in heads),
            ]
        )
        + HEAD_GAP
    )
    names = [wrapped(name, tile, LABEL)[:3] for _, name in shown]
    names = [[shortened(line, tile + GAP, LABEL) for line in lines] for lines in names]
    width = max(900, math.ceil(2 * MARGIN + head + len(shown) * (tile + GAP) - GAP))
    caption = _caption(study, found, rows, recipe, layer, len(shown), units_in_all)
    lines = [line for text in caption for line in wrapped(text, width - 2 * MARGIN, CAPTION)]
    top = MARGIN + max(map(len, names)) * round(LABEL * LEADING) + 12
    below = top + len(rows) * (tile + GAP) + (GAP + tile + GAP if natural else 0)
    canvas = Canvas(width, math.ceil(below + 14 + len(lines) * CAPTION * LEADING + MARGIN / 2))
    lefts = [round(MARGIN + head) + i * (tile + GAP) for i in range(len(shown))]
    for left, some in zip(lefts, names, strict=True):
        canvas.lines(some, left + tile / 2, top - 12 - len(some) * LABEL * LEADING, LABEL, align="center")
    for place, (group, texts) in enumerate(zip(rows, heads, strict=True)):
        y = top + place * (tile + GAP)
        _draw_head(canvas, texts, y, tile)
        for left, (unit, _) in zip(lefts, shown, strict=True):
            if (group.name, unit) in found:
                _draw_cell(canvas, found[group.name, unit], left, y, tile, target)
    if natural:
        y = below - tile - GAP
        canvas.line(MARGIN, y - GAP - HAIRLINE // 2, width - 2 * MARGIN)
        _draw_head(canvas, ["natural", "most exciting", "images"], y, tile)
        for left, (unit, _) in zip(lefts, shown, strict=True):
            _draw_exemplars(canvas, natural.get(unit, []), left, y, tile)
    canvas.lines(lines, MARGIN, below + 14, CAPTION, color=QUIET)
    return canvas.save(path, str(study.report.get("command") or ""))


def _draw_head(canvas: Canvas, texts: Sequence[str], y: int, tile: int) -> None:
    y += round((tile - NAME * LEADING - SMALL * LEADING * (len(texts) - 1)) / 2)
    after = canvas.lines([texts[0]], MARGIN, y, NAME, bold=True)
    canvas.lines(list(texts[1:]), MARGIN, after, SMALL, color=QUIET)


def _draw_cell(canvas: Canvas, cell: Cell, x: int, y: int, tile: int, target: int) -> None:
    if cell.file is None:
        canvas.frame(x, y, tile, tile, FAINT, HAIRLINE)
        canvas.text(
            "dead" if cell.status == "dead" else "no picture", x + tile / 2, y + tile / 2, SMALL, color=QUIET, align="center"
        )
        return
    _place(canvas, scaled(read_opaque(cell.file), target), x, y, tile)
    if cell.status == "saturated":
        canvas.corner(x + tile, y, max(14, tile // 8))


def _draw_exemplars(canvas: Canvas, files: Sequence[Path], x: int, y: int, tile: int) -> None:
    """Four in a square, or one where that is all."""
    if len(files) < EXEMPLARS:
        for file in files[:1]:
            _place(canvas, scaled(read_opaque(file), tile)[:tile, :tile], x, y, tile)
        return
    half = (tile - HAIRLINE * 2) // 2
    for place, file in enumerate(files[:EXEMPLARS]):
        with Image.open(file) as image:
            pixels = np.asarray(
                image.convert("RGB").resize(
                    (half, half), Image.Resampling.BOX if image.width > half else Image.Resampling.LANCZOS
                )
            )
        canvas.image(pixels, x + (place % 2) * (tile - half), y + (place // 2) * (tile - half))


def _place(canvas: Canvas, pixels: Pixels, x: int, y: int, tile: int) -> None:
    height, width = pixels.shape[:2]
    left, above = x + (tile - width) // 2, y + (tile - height) // 2
    canvas.frame(left - HAIRLINE, above - HAIRLINE, width + 2 * HAIRLINE, height + 2 * HAIRLINE, FAINT, HAIRLINE)
    canvas.image(pixels, left, above)


def _side(found: Mapping[tuple[str, int], Cell], target: int) -> int:
    sizes = set()
    for cell in found.values():
        if cell.file is not None:
            with Image.open(cell.file) as image:
                sizes.add((image.height, image.width))
    return max([max(scaled(np.zeros(size, np.uint8), target).shape[:2]) for size in sizes], default=target)


def _head(study: Study, group: Group, found: Mapping[tuple[str, int], Cell]) -> list[str]:
    """K, and the accuracies of the very checkpoint whose pictures stand in the row."""
    name = next(cell.checkpoint for (of, _), cell in found.items() if of == group.name)
    clean, robust = study.accuracy_of("clean").get(name), study.accuracy_of("strongest").get(name)
    texts = [shortened(group.label, 420, NAME, bold=True)]
    texts += [f"clean {percent(clean)}"] if clean is not None else []
    texts += [f"attacked {percent(robust)}"] if robust is not None else []
    return texts + (["masked"] if group.masked else [])


def _caption(
    study: Study,
    found: Mapping[tuple[str, int], Cell],
    rows: Sequence[Group],
    recipe: str,
    layer: str,
    shown: int,
    units_in_all: int,
) -> list[str]:
    data = study.table("data").get("name") or "the data"
    texts = [f"What excites the units of layer {layer} most, under the recipe {recipe}, on {data}; K attack steps in training."]
    seeds = sorted({cell.training_seed for cell in found.values() if cell.training_seed is not None})
    if study.seeds > 1 and seeds:
        texts[0] += f" Training seed {seeds[0]} of {study.seeds}."
    if any(study.accuracy_of("strongest")):
        texts.append("“Attacked” is accuracy under the strongest attack found.")
    if units_in_all > shown:
        texts.append(f"The first {shown} of {units_in_all} units.")
    statuses = {found[key].status for key in found if key[0] in {group.name for group in rows}}
    texts += [f"Orange corner, {SATURATED}."] if "saturated" in statuses else []
    texts += [f"{DEAD}."] if "dead" in statuses else []
    return [" ".join(texts)]
