"""The gallery page: one index.html that shows finished runs and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vizrobust.report import words
from vizrobust.report.collect import Collection, Exemplar, Frames, Panel, Picture, collect
from vizrobust.report.contact_sheet import contact_sheet
from vizrobust.report.exemplar_views import ExemplarCells
from vizrobust.results import Table, percent
from vizrobust.runs import slug, write_atomic, write_text

Shown = Picture | Frames | Exemplar
EMBED_BELOW = 16 * 2**20
FEW, SOME = (4, 168), (8, 112)  # up to so many tiles in a line: so many CSS pixels each
MANY, SEED_GAP = 96, 3


def write_gallery(
    folder: Path | str, run_folders: Sequence[Path | str], tables: Sequence[Table] = (), title: str = "What excites the neurons"
) -> Path:
    """Write index.html and contact-sheet.png into `folder`, and return the page's path.

    Pictures and frames of less than 16 MB in total are embedded in the page. Otherwise they are linked: those below `folder`
    where they are, others as copies under ``folder/images``. Raises what `collect` raises.
    """
    folder = Path(folder)
    collection = collect(run_folders)
    contact_sheet(folder / "contact-sheet.png", collection)
    inside = _bytes(collection) < EMBED_BELOW
    source = _embedded if inside else _linked(folder, collection)
    environment = Environment(
        loader=PackageLoader("vizrobust.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    facts: list[dict[str, Any]] = []
    panels = [_panel(panel, index, collection, source, facts) for index, panel in enumerate(collection.panels)]
    page = environment.get_template("gallery.html.j2").render(
        title=title,
        lazy=not inside,
        summary=_summary(collection),
        panels=panels,
        facts=facts,
        tables=tables,
        collection=collection,
        origins=[(origin, _runs_name(origin.folder)) for origin in collection.origins],
        recipes=words.recipes(collection.panels),
        robust=words.meaning_of_robust(collection.checkpoints),
        percent=percent,
        short_name=words.short_name,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _panel(
    panel: Panel, index: int, collection: Collection, source: Callable[[Shown], str], facts: list[dict[str, Any]]
) -> dict[str, Any]:
    """A panel as the template wants it; `facts` grows by one entry per picture, which the tile names by its index."""
    exemplars = ExemplarCells.of(panel)
    tile = _tile_width(panel, exemplars.width)
    rows = []
    for checkpoint in panel.checkpoints:
        cells = []
        for column in panel.columns:
            tiles: list[dict[str, Any] | None] = []
            by_seed = {picture.seed: picture for picture in panel.pictures(checkpoint, column)}
            for seed in panel.seeds:
                picture = by_seed.get(seed)
                if picture is None:
                    tiles.append(None)
                    continue
                frames = source(picture.frames) if picture.frames else ""
                facts.append({**_facts(panel, picture, checkpoint.name, collection), "frames": frames})
                tiles.append({"index": len(facts) - 1, "source": source(picture) if picture.file else "", "picture": picture})
            grids = exemplars.grids(checkpoint, column, source, facts)
            cells.append({"label": panel.label(column), "tiles": tiles, "exemplars": grids})
        rows.append({"checkpoint": checkpoint, "cells": cells})
    return {
        "id": f"panel-{index}",
        "panel": panel,
        "button": _button(panel, collection.panels),
        "facts": panel.subtitle,
        "notes": _notes(panel),
        "rows": rows,
        "labels": [(column, panel.label(column)) for column in panel.columns],
        "tile": tile,
        "cell": max(_across(len(panel.seeds), tile), _across(min(2, len(panel.seeds)), exemplars.width)),
        "exemplars": exemplars,
        "smooth": _largest_side(panel) > tile,
    }


def _facts(panel: Panel, picture: Picture, name: str, collection: Collection) -> dict[str, Any]:
    """What the enlarged picture says about itself: title, pairs of texts, trajectory."""
    position = "" if picture.column.position is None else f", position {picture.column.place}"
    pairs = {
        "score": "-" if picture.score is None else f"{picture.score:.4g}",
        "status": picture.status,
        "near black or white": percent(picture.saturated_share),
        "layer and unit": f"{panel.layer}, unit {picture.column.unit}{position}{', negative' if panel.sign < 0 else ''}",
        "objective": picture.objective,
        "recipe": panel.recipe_text,
        "seed": str(picture.seed),
        "weights (sha256)": picture.weights_sha256,
        "file": f"{_runs_name(collection.origins[picture.origin].folder)}/{picture.name}" if picture.name else "",
    }
    return {
        "title": f"{name} · {panel.label(picture.column)}",
        "pairs": [[key, value] for key, value in pairs.items() if value],
        "trajectory": picture.trajectory,
    }


def _button(panel: Panel, panels: Sequence[Panel]) -> str:
    """A panel's short name: layer, recipe and sign, and what else tells it from its neighbours."""

    def short(one: Panel) -> str:
        return f"{one.layer} · {one.recipe}{' · negative' if one.sign < 0 else ''}"

    alike = [other for other in panels if short(other) == short(panel)]
    if len(alike) == 1:
        return short(panel)
    more = panel.objective if len({other.objective for other in alike}) > 1 else panel.recipe_text
    return f"{short(panel)} · {more}"


def _across(count: int, width: int) -> int:
    return count * width + SEED_GAP * (count - 1)


def _tile_width(panel: Panel, least: int) -> int:
    """CSS pixels, about `least` at least: a whole multiple of small pictures, so that every pixel is a square."""
    side = _largest_side(panel)
    across = len(panel.columns) * len(panel.seeds)
    aim = max(least, next((aim for most, aim in (FEW, SOME) if across <= most), MANY))
    return aim // side * side if side <= aim else aim


def _largest_side(panel: Panel) -> int:
    for cell in panel.cells.values():
        for picture in cell:
            if picture.file is not None:
                with Image.open(picture.file) as image:
                    return max(image.size)
    return MANY


def _bytes(collection: Collection) -> int:
    files = [picture.file for picture in _pictures(collection)]
    files += [picture.frames.file for picture in _pictures(collection) if picture.frames]
    files += [image.file for panel in collection.panels for one in panel.exemplars.values() for image in one.images]
    return sum(file.stat().st_size for file in files if file is not None)


def _pictures(collection: Collection) -> list[Picture]:
    return [picture for panel in collection.panels for cell in panel.cells.values() for picture in cell]


def _embedded(picture: Shown) -> str:
    assert picture.file is not None
    return f"data:image/{picture.file.suffix[1:]};base64," + base64.b64encode(picture.file.read_bytes()).decode()


def _linked(folder: Path, collection: Collection) -> Callable[[Shown], str]:
    """Pictures below `folder` by their relative path, others as copies."""

    def source(picture: Shown) -> str:
        assert picture.file is not None
        if picture.file.resolve().is_relative_to(folder.resolve()):
            return _url(picture.file.resolve().relative_to(folder.resolve()))
        origin = collection.origins[picture.origin]
        copy = Path("images", f"{slug(origin.folder.resolve().name)}-{origin.identity}", picture.name.removeprefix("images/"))
        content = picture.file.read_bytes()
        write_atomic(folder / copy, lambda file: file.write(content))
        return _url(copy)

    return source


def _url(path: Path) -> str:
    from urllib.parse import quote

    return quote(path.as_posix())


def _runs_name(folder: Path) -> str:
    return folder.resolve().name


def _summary(collection: Collection) -> str:
    count = sum(picture.file is not None for picture in _pictures(collection))
    parts: Mapping[str, int] = {"checkpoint": len(collection.checkpoints), "picture": count}
    return ", ".join(f"{number:,} {word}{'' if number == 1 else 's'}" for word, number in parts.items())


def _notes(panel: Panel) -> list[str]:
    statuses = {picture.status for cell in panel.cells.values() for picture in cell}
    known = {"saturated": f"Orange corner, {words.SATURATED}.", "dead": f"{words.DEAD.capitalize()}."}
    shown = words.exemplars_shown(panel)
    exemplars = [f"{shown[0].upper()}{shown[1:]}."] if shown else []
    return [*exemplars, *(text for status, text in known.items() if status in statuses)]
