"""The page of a study: index.html with the verdict, the figures and every unit at every K, and nothing from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from vizrobust.report import study_tables as tables
from vizrobust.report.study_clarity_figures import clarity_against_accuracy, clarity_distance, clarity_over_k, controls_over_k
from vizrobust.report.study_figures import accuracy_over_k, corruptions_over_k, unforeseen_over_k
from vizrobust.report.study_numbers import METRIC_ROLES, Study
from vizrobust.report.study_sheet import study_sheet
from vizrobust.report.study_units import measures, panels
from vizrobust.report.style import house_style, save_figure
from vizrobust.runs import slug, write_text
from vizrobust.spec import number_text

EMBED_BELOW = 30 * 2**20
FIGURES, SHEET = "figures", "contact-sheet"
TITLE = "Do feature images get clearer with more attack steps?"
SHOWN_AS_IS = ("scope", "quick", "left_out", "command", "versions", "device", "threads", "rows_sha256", "recipes")
CLARITY_NOTES = {
    "primary": "Primary metrics: the verdict rests on these.",
    "secondary": "Secondary metrics: beside the verdict, not in it.",
    "diagnostic": "Diagnostics: they describe the pictures and say nothing of clarity.",
}


def write_study(folder: Path | str, report: Mapping[str, Any]) -> Path:
    """Write index.html, figures/*.svg and *.png and the contact sheets of a study's `report` (format 1); returns the page's path.

    `folder` holds the pictures that the report names. The page embeds everything that it shows; pictures that would make
    it larger than about 30 MB are linked instead, where they are. What the report leaves empty is said to be unmeasured.
    Raises ``ValueError`` for another format.
    """
    if report.get("format") != 1:
        raise ValueError(f"the report has format {report.get('format')!r}, not 1; write it with this version of vizrobust study")
    folder, study = Path(folder), Study(report)
    drawn = _figures(folder, study)
    sheets = _sheets(folder, study)
    inside = _embedded_bytes(study, folder) < EMBED_BELOW
    facts: list[dict[str, Any]] = []
    found = panels(study, folder, _embedded if inside else _linked(folder), facts)
    environment = Environment(
        loader=PackageLoader("vizrobust.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plainly"] = _plainly
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    page = environment.get_template("study.html.j2").render(
        study=study,
        report={key: report.get(key) for key in SHOWN_AS_IS},
        title=TITLE,
        summary=_summary(study),
        intervals=_intervals(study),
        verdict={"sentences": (), "overall": "", **study.table("verdict")},
        prereg={"sha256": "", "departures": (), "content": None, **study.table("prereg")},
        data=study.table("data"),
        figures=drawn,
        sheets=sheets,
        tables=tables,
        panels=found,
        facts=facts,
        measures=measures(study, facts),
        lazy=not inside,
        roles=METRIC_ROLES,
        notes=CLARITY_NOTES,
        suffix=layer_suffix,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _figures(folder: Path, study: Study) -> dict[str, dict[str, str]]:
    """Draw what there are numbers for: name -> the SVG as a data URI, its width, and the paths of both files."""
    wanted: dict[str, Callable[[], Figure | None]] = {
        "accuracy-over-k": lambda: accuracy_over_k(study),
        "clarity-distance": lambda: clarity_distance(study),
        "unforeseen-ratio": lambda: unforeseen_over_k(study),
        "corruptions-over-k": lambda: corruptions_over_k(study),
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


def _sheets(folder: Path, study: Study) -> list[tuple[str, str]]:
    """(what it shows, its file) of each contact sheet; the first recipe at the first layer is contact-sheet.png."""
    found = []
    for layer in study.layers:
        for recipe in study.recipes:
            recipes = "" if recipe == study.recipes[0] else f"-{slug(recipe)}"
            name = f"{SHEET}{recipes}{layer_suffix(study, layer)}.png"
            if study_sheet(folder / name, study, folder, recipe, layer):
                found.append((f"{layer}, {recipe}", quote(name)))
    return found


def layer_suffix(study: Study, layer: str) -> str:
    """What the names of a layer's files end in; nothing for the first layer."""
    return "" if layer == study.layers[0] else f"-{slug(layer)}"


def _embedded_bytes(study: Study, folder: Path) -> float:
    """How large all pictures of the page are as data URIs; base64 takes four bytes for three."""
    sizes = []

    def weigh(file: Path) -> str:
        sizes.append(file.stat().st_size)
        return ""

    panels(study, folder, weigh, [])
    return sum(sizes) * 4 / 3


def _embedded(file: Path) -> str:
    return f"data:image/{file.suffix[1:].lower()};base64," + base64.b64encode(file.read_bytes()).decode()


def _linked(folder: Path) -> Callable[[Path], str]:
    return lambda file: quote(file.relative_to(folder.resolve()).as_posix())


def _plainly(value: Any) -> str:
    """A value of the report in words: lists with commas, tables as `key: value`, 4/255 for what it is.

    >>> _plainly({"eps": 4 / 255, "tried": [0.1, 0.2], "why": "given"})
    'eps: 4/255; tried: 0.1, 0.2; why: given'
    """
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plainly(one)}" for key, one in value.items() if one not in (None, [], ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(_plainly, value))
    return number_text(value) if isinstance(value, float) else str(value)


def _summary(study: Study) -> str:
    counts = {
        "checkpoint": len(study.entries("checkpoints")), "training seed": study.seeds, "picture": len(study.entries("pictures")),
        "test image": int(study.table("data").get("test_images") or 0),
    }  # fmt: skip
    data = study.table("data").get("name")
    return (f"{data}: " if data else "") + ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for word, n in counts.items())


def _intervals(study: Study) -> str:
    """What the bands of the figures of clarity are."""
    if study.seeds >= 3:
        return f"Bands: 95 % t intervals over {study.seeds} training seeds."
    if study.seeds == 2:
        return "Bands: the range of two training seeds."
    return "One training seed: there is no interval over training runs, so these lines describe these checkpoints only."
