"""Write the page of a study (verdict, figures and every unit at every K) and its contact sheets (Figure 27.4)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vizrobust.features.pictures import read_opaque
from vizrobust.report import study_sections
from vizrobust.report import study_tables as tables
from vizrobust.report.canvas import (
    LABELLED,
    Canvas,
    Page,
    TileGrid,
    check_png,
    header_column,
    label_lines,
    labels_height,
    largest_tile,
    scaled,
    text_width,
)
from vizrobust.report.study_clarity_figures import (
    clarity_against_accuracy,
    clarity_distance,
    clarity_over_k,
    controls_over_k,
    natural_scale_over_k,
)
from vizrobust.report.study_data import METRIC_ROLES, Group, StudyGroups
from vizrobust.report.study_figures import accuracy_over_k, corruptions_over_k, unforeseen_over_k
from vizrobust.report.study_sections import Cell, cells, inside, measures, panels, secondary_over_k, units
from vizrobust.report.style import house_style, save_figure
from vizrobust.report.viewer import embedded, environment, without_folders
from vizrobust.report.words import DEAD, SATURATED, key_word
from vizrobust.results import percent
from vizrobust.runs import slug, write_text
from vizrobust.spec import number_text
from vizrobust.study.report import READABLE

MOST_ACROSS = 12
GAP = 12
TARGET, SMALL_TARGET = 196, 140  # pixels of a tile, for up to eight and for more columns
EXEMPLARS = 4  # in a square, where they would be as large as a third of a tile or more


def study_sheet(
    path: Path | str, study: StudyGroups, folder: Path, recipe: str, layer: str, *, baselines: bool = False
) -> Path | None:
    """Draw one recipe's pictures of a layer's units to a PNG, a row per K; None where the study has no such pictures.

    `baselines` adds the named baselines below; they are also shown where no K is known. Each cell shows the picture of the
    lowest training seed and image seed. At most the first twelve units are shown.
    Raises ``ValueError`` where `path` does not end in .png.
    """
    check_png(path)
    found = {key: some[0] for key, some in cells(study, folder, recipe, layer).items()}
    columns = units(study, recipe, layer)
    wanted = (*study.swept, *study.baselines) if baselines or not study.swept else study.swept
    rows = [group for group in wanted if any((group.name, unit) in found for unit, _ in columns)]
    if not rows:
        return None
    shown = columns[:MOST_ACROSS]
    natural = {
        int(row["unit"]): [file for name in row["images"] if (file := inside(folder, name))]
        for row in study.report.rows("exemplars")
        if row["layer"] == layer
    }
    natural = {unit: natural[unit] for unit, _ in shown if natural.get(unit)}
    with house_style():
        return _draw(path, study, found, shown, rows, natural, recipe, layer, len(columns))


def _draw(
    path: Path | str,
    study: StudyGroups,
    found: Mapping[tuple[str, int], Cell],
    shown: Sequence[tuple[int, str]],
    rows: Sequence[Group],
    natural: Mapping[int, list[Path]],
    recipe: str,
    layer: str,
    units_in_all: int,
) -> Path:
    target = TARGET if len(shown) <= 8 else SMALL_TARGET
    files = [cell.file for cell in found.values() if cell.file]
    # Larger tiles where the longest word of a name would be broken, up to half as large again.
    words = [word for _, name in shown for word in name.split()]
    needed = max((text_width(word, LABELLED.label) for word in words), default=0) - GAP + 4
    targets = range(target, 3 * target // 2 + 1, 14)
    target = next((one for one in targets if max(largest_tile(files, one)) >= needed), target)
    side = max(largest_tile(files, target))
    headers = [_header(study, group, found) for group in rows]
    exemplar_header = ["natural", "most exciting", "images"]
    header = header_column([*headers, exemplar_header])
    names = [label_lines(name, side + GAP - 4, LABELLED.label) for _, name in shown]
    labels = labels_height(names) + 12
    grid = TileGrid(len(shown), len(rows) + bool(natural), (side, side), (GAP, GAP))
    caption = _caption(study, found, rows, recipe, layer, len(shown), units_in_all)
    page = Page((header + grid.width, labels + grid.height + (GAP if natural else 0)), caption=caption)
    canvas, left, top = page.canvas, page.left + header, page.top + labels
    for i, lines in enumerate(names):
        canvas.label(lines, left + grid.position(i)[0] + side / 2, top - 12)
    for row, (group, lines) in enumerate(zip(rows, headers, strict=True)):
        y = top + grid.position(row * grid.across)[1]
        canvas.header(lines, page.left, y, side)
        for i, (unit, _) in enumerate(shown):
            if (group.name, unit) in found:
                cell = found[group.name, unit]
                pixels = None if cell.file is None else scaled(read_opaque(cell.file), target)
                text = "dead" if cell.status == "dead" else "no picture"
                x = left + grid.position(i)[0]
                canvas.tile(pixels, x, y, grid.tile, corner=cell.status == "saturated", text=text)
    if natural:
        y = top + grid.position(len(rows) * grid.across)[1] + GAP
        canvas.line(page.left, y - GAP - LABELLED.edge // 2, canvas.width - 2 * page.left)
        canvas.header(exemplar_header, page.left, y, side)
        for i, (unit, _) in enumerate(shown):
            _draw_exemplars(canvas, natural.get(unit, []), left + grid.position(i)[0], y, side)
    return canvas.save(path, str(study.report.get("command") or ""))


def _draw_exemplars(canvas: Canvas, files: Sequence[Path], x: int, y: int, side: int) -> None:
    """Four in a square, or one where there are fewer."""
    if len(files) < EXEMPLARS:
        for file in files[:1]:
            canvas.tile(scaled(read_opaque(file), side)[:side, :side], x, y, (side, side))
        return
    gap = 2 * LABELLED.edge
    half = (side - gap) // 2
    grid = TileGrid(2, 2, (half, half), (gap, gap))
    for i, file in enumerate(files[:EXEMPLARS]):
        with Image.open(file) as image:
            smooth = Image.Resampling.BOX if image.width > half else Image.Resampling.LANCZOS
            pixels = np.asarray(image.convert("RGB").resize((half, half), smooth))
        left, top = grid.position(i)
        canvas.image(pixels, x + left, y + top)


def _header(study: StudyGroups, group: Group, found: Mapping[tuple[str, int], Cell]) -> list[str]:
    """K, and the accuracies of the very checkpoint whose pictures stand in the row."""
    name = next(cell.checkpoint for (of, _), cell in found.items() if of == group.name)
    clean, robust = study.accuracy_of("clean").get(name), study.accuracy_of("strongest").get(name)
    texts = [group.label]
    texts += [f"clean {percent(clean)}"] if clean is not None else []
    texts += [f"attacked {percent(robust)}"] if robust is not None else []
    return texts + ([group.diagnosed] if group.masked else [])


def _caption(
    study: StudyGroups,
    found: Mapping[tuple[str, int], Cell],
    rows: Sequence[Group],
    recipe: str,
    layer: str,
    shown: int,
    units_in_all: int,
) -> list[str]:
    data = without_folders(str(study.report.facts("data").get("name") or "the data"))
    texts = [f"What excites the units of layer {layer} most, under the recipe {recipe}, on {data}; K attack steps in training."]
    seeds = sorted({cell.training_seed for cell in found.values() if cell.training_seed is not None})
    if study.seeds > 1 and seeds:
        counts = sorted({len(group.checkpoints) for group in study.swept or study.groups})
        texts[0] += f" Training seed {seeds[0]}, one of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}."
    if any(study.accuracy_of("strongest")):
        texts.append("“Attacked” is accuracy under the strongest attack found.")
    if units_in_all > shown:
        texts.append(f"The first {shown} of {units_in_all} units.")
    statuses = {found[key].status for key in found if key[0] in {group.name for group in rows}}
    texts += [f"Orange corner, {SATURATED}."] if "saturated" in statuses else []
    texts += [f"{DEAD}."] if "dead" in statuses else []
    return [" ".join(texts)]


EMBED_BELOW = 30 * 2**20
FIGURES, SHEET = "figures", "contact-sheet"
TITLE = "Do feature images get clearer with more attack steps?"
SHOWN_AS_IS = ("scope", "quick", "left_out", "command", "versions", "device", "threads", "rows_sha256", "recipes")
CLARITY_NOTES = {
    "primary": "Primary metrics: the verdict is based on these.",
    "secondary": "Secondary metrics: reported beside the verdict, not part of it.",
    "diagnostic": "Diagnostics: they describe the pictures and do not measure clarity.",
}


def write_study(folder: Path | str, report: Mapping[str, Any]) -> Path:
    """Write index.html, figures/*.svg and *.png and the contact sheets of a study's `report`; returns the page's path.

    `folder` holds the pictures that the report names. The page embeds everything that it shows; pictures that would make
    it larger than about 30 MB are linked instead, where they are. The page says what was not measured.
    Raises ``ValueError`` for an unknown format.
    """
    if report.get("format") not in READABLE:
        reads = " and ".join(map(str, READABLE))
        raise ValueError(
            f"the report has format {report.get('format')!r}, this vizrobust reads {reads}; run vizrobust study again"
        )
    folder, study = Path(folder), StudyGroups(report)
    drawn = _figures(folder, study)
    sheets = _sheets(folder, study)
    inside = _embedded_bytes(study, folder) < EMBED_BELOW
    facts: list[dict[str, Any]] = []
    found = panels(study, folder, embedded if inside else _linked(folder), facts)
    templates = environment()
    templates.filters["plainly"] = _plainly
    templates.filters["key_word"] = key_word
    templates.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    verdict = {"sentences": (), "overall": "", **study.report.facts("verdict")}
    finding = next((text for text in verdict["sentences"] if not text.startswith("Descriptive")), "")
    page = templates.get_template("study.html.j2").render(
        study=study,
        report={key: report.get(key) for key in SHOWN_AS_IS},
        title=TITLE,
        summary=_summary(study),
        intervals=_intervals(study),
        finding=finding,
        verdict=verdict,
        prereg={"sha256": "", "departures": (), "content": None, **study.report.facts("prereg")},
        data=study.report.facts("data"),
        figures=drawn,
        sheets=sheets,
        tables=tables,
        secondary=study_sections,
        panels=found,
        facts=facts,
        measures=measures(study, facts),
        groups=[(group.name, group.label) for group in study.groups],
        training_seeds=sorted(set().union(*(panel["training_seeds"] for panel in found))),
        image_seeds=sorted(set().union(*(panel["image_seeds"] for panel in found))),
        lazy=not inside,
        roles=METRIC_ROLES,
        notes=CLARITY_NOTES,
        suffix=layer_suffix,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _figures(folder: Path, study: StudyGroups) -> dict[str, dict[str, str]]:
    """Draw what there are numbers for: name -> the SVG as a data URI, its width, and the paths of both files."""
    wanted: dict[str, Callable[[], Figure | None]] = {
        "natural-scale": lambda: natural_scale_over_k(study),
        "accuracy-over-k": lambda: accuracy_over_k(study),
        "clarity-distance": lambda: clarity_distance(study),
        "unforeseen-ratio": lambda: unforeseen_over_k(study),
        "corruptions-over-k": lambda: corruptions_over_k(study),
        "secondary-over-k": lambda: secondary_over_k(study),
    }
    for layer in study.layers:
        end = layer_suffix(study, layer)
        for role in METRIC_ROLES:
            name = f"clarity-over-k{'' if role == 'primary' else f'-{role}'}{end}"
            wanted[name] = lambda role=role, layer=layer: clarity_over_k(study, role, layer)  # type: ignore[misc]
        wanted[f"clarity-controls{end}"] = lambda layer=layer: controls_over_k(study, layer)  # type: ignore[misc]
        wanted[f"clarity-against-accuracy{end}"] = lambda layer=layer: clarity_against_accuracy(study, layer)  # type: ignore[misc]
    drawn = {}
    for name, draw in wanted.items():
        figure = draw()
        paths = {kind: Path(FIGURES, f"{name}.{kind}") for kind in ("svg", "png")}
        if figure is None:
            for path in paths.values():  # of an earlier state of the study
                (folder / path).unlink(missing_ok=True)
            continue
        with house_style():
            for path in paths.values():
                save_figure(figure, folder / path, str(study.report.get("command") or ""))
                figure.set_layout_engine("none")  # the second file has the first one's places
        content = base64.b64encode((folder / paths["svg"]).read_bytes()).decode()
        links = {kind: quote(path.as_posix()) for kind, path in paths.items()}
        inches = f"{figure.get_size_inches()[0]:g}"
        drawn[name] = {"source": f"data:image/svg+xml;base64,{content}", "inches": inches, **links}
    return drawn


def _sheets(folder: Path, study: StudyGroups) -> list[tuple[str, str]]:
    """(what it shows, its file) of each contact sheet; the first recipe at the first layer is contact-sheet.png."""
    found = []
    for layer in study.layers:
        for recipe in study.recipes:
            recipes = "" if recipe == study.recipes[0] else f"-{slug(recipe)}"
            name = f"{SHEET}{recipes}{layer_suffix(study, layer)}.png"
            if study_sheet(folder / name, study, folder, recipe, layer):
                found.append((f"{layer}, {recipe}", quote(name)))
    return found


def layer_suffix(study: StudyGroups, layer: str) -> str:
    """What the names of a layer's files end in; nothing for the first layer."""
    return "" if layer == study.layers[0] else f"-{slug(layer)}"


def _embedded_bytes(study: StudyGroups, folder: Path) -> float:
    """How large all pictures of the page are as data URIs; base64 takes four bytes for three."""
    sizes = []

    def weigh(file: Path) -> str:
        sizes.append(file.stat().st_size)
        return ""

    panels(study, folder, weigh, [])
    return sum(sizes) * 4 / 3


def _linked(folder: Path) -> Callable[[Path], str]:
    return lambda file: quote(file.relative_to(folder.resolve()).as_posix())


def _plainly(value: Any) -> str:
    """A value of the report in words: lists with commas, tables as `key: value`, 4/255 for what it is.

    >>> _plainly({"eps": 4 / 255, "tried": [0.1, 0.2], "why": "given"})
    'eps: 4/255; tried: 0.1, 0.2; why: given'
    """
    if isinstance(value, Mapping):
        return "; ".join(f"{key_word(str(key))}: {_plainly(one)}" for key, one in value.items() if one not in (None, [], ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(_plainly, value))
    return number_text(value) if isinstance(value, float) else without_folders(str(value))


def _summary(study: StudyGroups) -> str:
    counts = {
        "checkpoint": len(study.report.rows("checkpoints")), "training seed": study.seeds,
        "picture": len(study.report.rows("pictures")),
        "test image": int(study.report.facts("data").get("test_images") or 0),
    }  # fmt: skip
    data = without_folders(str(study.report.facts("data").get("name") or ""))
    return (f"{data}: " if data else "") + ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for word, n in counts.items())


def _intervals(study: StudyGroups) -> str:
    """What the bands of the figures of clarity are."""
    if study.seeds >= 3:
        return f"Bands: 95 % t intervals over {study.seeds} training seeds."
    if study.seeds == 2:
        return "Bands: the range of two training seeds."
    return "One training seed: there is no interval over training runs; these lines describe these checkpoints only."
