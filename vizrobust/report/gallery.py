"""The gallery page: one index.html that shows finished runs and loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vizrobust.report import words
from vizrobust.report.collect import Collection, Exemplar, Frames, Panel, Picture, collect
from vizrobust.report.contact_sheet import contact_sheet, exemplar_grids
from vizrobust.report.viewer import embedded, environment, tile_style
from vizrobust.results import Table, percent
from vizrobust.runs import slug, write_atomic, write_json, write_text

Shown = Picture | Frames | Exemplar
EMBED_BELOW = 16 * 2**20
ACTIVATION, TABLES = "activation", "tables.json"


def write_gallery(
    folder: Path | str, run_folders: Sequence[Path | str], tables: Sequence[Table] = (), title: str | None = None
) -> Path:
    """Write index.html and contact-sheet.png into `folder`, and return the page's path.

    Pictures and frames of less than 16 MB in total are embedded in the page. Otherwise they are linked: those below `folder`
    where they are, others as copies under ``folder/images``. `tables` are kept in the folder, so that a gallery that joins
    it with others shows them again. The title is by default that of the only panel. Raises what `collect` raises.
    """
    folder = Path(folder)
    if tables:
        write_json(folder / TABLES, [asdict(table) for table in tables])
    shown = tables or _tables_of(run_folders)
    collection = collect(run_folders)
    contact_sheet(folder / "contact-sheet.png", collection)
    inside = _bytes(collection) < EMBED_BELOW
    source = _embedded if inside else _linked(folder, collection)
    facts: list[dict[str, Any]] = []
    panels = [_panel(panel, index, collection, source, facts) for index, panel in enumerate(collection.panels)]
    page = (
        environment()
        .get_template("gallery.html.j2")
        .render(
            title=title or (panels[0]["title"] if len(panels) == 1 else "What excites the neurons"),
            lazy=not inside,
            summary=_summary(collection),
            panels=panels,
            measures=[(ACTIVATION, ACTIVATION)],
            groups=[(checkpoint.id, words.short_name(checkpoint.name)) for checkpoint in collection.checkpoints],
            seeds=sorted({seed for panel in collection.panels for seed in panel.seeds}),
            facts=facts,
            tables=shown,
            collection=collection,
            origins=[(origin, _runs_name(origin.folder)) for origin in collection.origins],
            recipes=words.recipes(collection.panels),
            robust=words.meaning_of_robust(collection.checkpoints),
            percent=words.unbroken,
            short_name=words.short_name,
        )
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _panel(
    panel: Panel, index: int, collection: Collection, source: Callable[[Shown], str], facts: list[dict[str, Any]]
) -> dict[str, Any]:
    """A panel as the template wants it; `facts` grows by one entry per picture, which the tile names by its index."""
    lines = []
    for column in panel.columns:
        cells = []
        for checkpoint in panel.checkpoints:
            by_seed = {picture.seed: picture for picture in panel.pictures(checkpoint, column)}
            tiles: list[dict[str, Any] | None] = []
            for seed in panel.seeds if by_seed else ():
                picture = by_seed.get(seed)
                if picture is None:
                    tiles.append(None)
                    continue
                frames = source(picture.frames) if picture.frames else ""
                facts.append({**_facts(panel, picture, checkpoint.name, collection, index), "frames": frames})
                tiles.append({
                    "index": len(facts) - 1, "source": source(picture) if picture.file else "", "status": picture.status,
                    "seed": seed, "training": "", "alt": _alt(panel, picture, checkpoint.name),
                })  # fmt: skip
            scores = [picture.score for picture in by_seed.values() if picture.score is not None]
            cells.append({
                "key": checkpoint.id, "label": words.short_name(checkpoint.name), "k": checkpoint.attack_steps,
                "title": ", ".join(filter(None, (checkpoint.name, checkpoint.training_words))),
                "told": f"score {sum(scores) / len(scores):.3g}" if scores else "", "tiles": tiles,
                "exemplars": exemplar_grids(panel, checkpoint, column, source, facts),
            })  # fmt: skip
        lines.append({"unit": column.unit, "name": panel.label(column), "cells": cells, "exemplars": ()})
    pictures = [picture for cell in panel.cells.values() for picture in cell]
    more = f", seeds {words.seeds_shown(panel.seeds)}" if len(panel.seeds) > 1 else ""
    return {
        "id": f"panel-{index}",
        "title": panel.title,
        "button": _button(panel, collection.panels),
        "subtitle": panel.subtitle + more,
        "notes": _notes(panel),
        "lines": lines,
        **tile_style((picture.file for picture in pictures), len(panel.checkpoints)),
    }


def _alt(panel: Panel, picture: Picture, name: str) -> str:
    """Unit, network and score, for those who do not see the picture."""
    parts = [name, panel.layer, f"unit {panel.label(picture.column)}", f"seed {picture.seed}"]
    parts += ["what it dislikes"] if panel.sign < 0 else []
    parts += [picture.status] if picture.status != "ok" else []
    return ", ".join([*parts, "no score" if picture.score is None else f"score {picture.score:.4g}"])


def _facts(panel: Panel, picture: Picture, name: str, collection: Collection, index: int) -> dict[str, Any]:
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
        "key": f"{index}/{picture.column.unit}{picture.column.place}/{picture.checkpoint}/{picture.seed}",
        "title": f"{name} · {'unit ' * panel.label(picture.column).isdecimal()}{panel.label(picture.column)}",
        "pairs": [[key, value] for key, value in pairs.items() if value],
        "trajectory": picture.trajectory,
        "scores": {} if picture.score is None else {ACTIVATION: picture.score},
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


def _bytes(collection: Collection) -> int:
    files = [picture.file for picture in _pictures(collection)]
    files += [picture.frames.file for picture in _pictures(collection) if picture.frames]
    files += [image.file for panel in collection.panels for one in panel.exemplars.values() for image in one.images]
    return sum(file.stat().st_size for file in files if file is not None)


def _pictures(collection: Collection) -> list[Picture]:
    return [picture for panel in collection.panels for cell in panel.cells.values() for picture in cell]


def _embedded(picture: Shown) -> str:
    assert picture.file is not None
    return embedded(picture.file)


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


def _tables_of(run_folders: Sequence[Path | str]) -> list[Table]:
    """The tables that were shown with the runs, named after their run where there are several."""
    found = []
    for folder in map(Path, run_folders):
        if (folder / TABLES).is_file():
            kept = [Table(**entry) for entry in json.loads((folder / TABLES).read_text(encoding="utf-8"))]
            several = len(run_folders) > 1
            found += [replace(one, title=f"{_runs_name(folder)}: {one.title}") if several else one for one in kept]
    return found


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
