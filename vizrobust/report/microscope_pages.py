"""Write the static pages of a microscope's site, which fetch nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from PIL import Image

from vizrobust.intervals import auc_text
from vizrobust.models import LOGITS
from vizrobust.report import words
from vizrobust.report.collect import CheckpointFacts, Exemplar, Picture
from vizrobust.report.contact_sheet import exemplar_mark
from vizrobust.report.microscope import Site, class_page, layer_page, slider, unit_page
from vizrobust.report.viewer import environment, tile_style
from vizrobust.results import percent
from vizrobust.runs import write_text
from vizrobust.spec import number_text

MEASURES = {
    "score": "activation",
    "clarity": "clarity (2AFC AUC)",
    "sparsity": "sparsity",
    "active": "share of images that excite it",
}
ASSETS = ("page.css", "site.css", "viewer.js", "site.js")
TOP = 5  # classes for and against
NEAREST = 12
ROW = 15  # pictures of a layer on the start page
LARGE = 448  # CSS pixels of a unit page's own picture


def write_microscope(folder: Path | str) -> Path:
    """Write the pages of everything that the folder of a `microscope` run holds; returns the start page.

    Raises what `collect` raises.
    """
    site = Site.read(folder)
    templates = files("vizrobust.report") / "templates"
    for name in ASSETS:
        write_text(site.folder / "assets" / name, (templates / name).read_text(encoding="utf-8"))
    for name, text in pages(site):
        path = site.folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return site.folder / "index.html"


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """(path, text) of every page; paths are below the site's folder."""
    templates = environment()
    templates.globals |= {
        "percent": words.unbroken,
        "number_text": number_text,
        "layer_page": layer_page,
        "unit_page": unit_page,
        "class_page": class_page,
    }
    shared = {"site": site, "robust": words.meaning_of_robust(site.checkpoints)}

    def page(template: str, path: str, **content: Any) -> tuple[str, str]:
        up = "../" * (len(PurePosixPath(path).parts) - 1)
        return path, templates.get_template(template).render(up=up, **shared, **content)

    yield page("site_start.html.j2", "index.html", cards=_cards(site), layers=_layers(site), runs=site.collection.origins)
    for layer in site.layers:
        yield page("site_layer.html.j2", layer_page(layer), **_layer(site, layer, "../"))
        units = site.units(layer)
        for place, unit in enumerate(units):
            before, behind = [None, *units][place], [*units, None][place + 1]
            content = _unit(site, layer, unit, "../../")
            yield page("site_unit.html.j2", unit_page(layer, unit), before=before, behind=behind, **content)
    for number, name in enumerate(site.classes):
        yield page("site_class.html.j2", class_page(number), **_class(site, number, name, "../"))


def _image(picture: Picture | Exemplar | None, up: str) -> str:
    return "" if picture is None or picture.file is None else up + quote(picture.name)


def _alt(site: Site, checkpoint: CheckpointFacts, layer: str, unit: int, picture: Picture) -> str:
    """Unit, network and score, for those who do not see the picture."""
    score = "no score" if picture.score is None else f"score {picture.score:.4g}"
    return f"{checkpoint.name}, {layer}, {site.label(layer, unit)}, seed {picture.seed}, {score}"


def _shown(site: Site, checkpoint: CheckpointFacts, layer: str, unit: int, up: str, sign: int = 1) -> list[dict[str, Any]]:
    """A unit's pictures, one for each seed."""
    return [
        {"source": _image(one, up), "alt": _alt(site, checkpoint, layer, unit, one), "status": one.status, "score": one.score,
         "seed": one.seed, "name": one.name}
        for one in site.pictures(checkpoint, layer, unit, sign)
    ]  # fmt: skip


def _first(site: Site, checkpoint: CheckpointFacts, layer: str, count: int) -> list[dict[str, Any]]:
    """The first pictures of a layer that can be shown."""
    shown = (_shown(site, checkpoint, layer, unit, "")[:1] for unit in site.units(layer))
    return list(islice((one for some in shown for one in some if one["source"]), count))


# The start page.


def _cards(site: Site) -> list[dict[str, Any]]:
    cards = []
    for checkpoint in site.checkpoints:
        layer = site.layers[-1]
        some = _first(site, checkpoint, layer, 3)
        cards.append({"checkpoint": checkpoint, "pictures": some, "reference": site.reference(checkpoint),
                      "masking": site.masking(checkpoint)})  # fmt: skip
    return cards


def _layers(site: Site) -> list[dict[str, Any]]:
    """Every layer of the first network, those with pages with some of their pictures."""
    listed = next((listed for listed in site.networks.values() if listed), [])
    names = {entry["name"] for entry in listed}
    others = [{"name": name, "kind": "", "shape": []} for name in site.layers if name not in names]
    found = []
    for entry in [*listed, *others]:
        name, there = entry["name"], entry["name"] in site.layers
        pictures = _first(site, site.checkpoints[-1], name, ROW) if there else []
        found.append({**entry, "there": there, "pictures": pictures, "count": len(site.units(name)) if there else 0})
    return found


# A layer's page: the cards of the gallery, each a link.


def _layer(site: Site, layer: str, up: str) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    facts: list[dict[str, Any]] = []
    files: list[Path | None] = []
    for unit in site.units(layer):
        cells: list[dict[str, Any]] = []
        statuses: set[str] = set()
        for checkpoint in site.checkpoints:
            pictures = site.pictures(checkpoint, layer, unit)
            first = pictures[0] if pictures else None
            if first is None:
                cells.append(_cell(checkpoint, "", []))
                continue
            files.append(first.file)
            statuses.add(first.status)
            own, clarity = site.unit(checkpoint, layer, unit), site.clarity(checkpoint, layer, unit)
            values = {"score": first.score, "clarity": clarity.get("forced_choice")}
            values |= {key: own.get(key) for key in ("sparsity", "active")}
            scores = {key: value for key, value in values.items() if value is not None}
            facts.append({"key": f"{unit}/{checkpoint.id}", "scores": scores})
            tile = {
                "index": len(facts) - 1, "source": _image(first, up), "status": first.status, "seed": first.seed, "training": "",
                "alt": _alt(site, checkpoint, layer, unit, first), "href": f"{up}{unit_page(layer, unit)}#{checkpoint.id}",
            }  # fmt: skip
            cells.append(_cell(checkpoint, "" if first.score is None else f"score {first.score:.3g}", [tile]))
        lines.append({
            "unit": unit, "name": site.name(layer, unit), "cells": cells, "exemplars": (),
            "href": f"{up}{unit_page(layer, unit)}", "status": " ".join(sorted(statuses)), "classes": _argues(site, layer, unit),
        })  # fmt: skip
    measured = {name for fact in facts for name in fact["scores"]}
    item = {"id": "units", "lines": lines, "notes": (), **tile_style(files, len(site.checkpoints))}
    return {
        "layer": layer, "item": item, "facts": facts, "count": len(lines),
        "measures": [(name, text) for name, text in MEASURES.items() if name in measured],
        "groups": [(one.id, words.short_name(one.name)) for one in site.checkpoints],
    }  # fmt: skip


def _cell(checkpoint: CheckpointFacts, told: str, tiles: list[dict[str, Any]]) -> dict[str, Any]:
    title = ", ".join(filter(None, (checkpoint.name, checkpoint.training_words)))
    return {"key": checkpoint.id, "label": words.short_name(checkpoint.name), "k": checkpoint.attack_steps, "title": title,
            "told": told, "tiles": tiles, "exemplars": ()}  # fmt: skip


def _argues(site: Site, layer: str, unit: int) -> str:
    """The classes that a unit argues for most in some checkpoint, to filter by."""
    found: dict[str, None] = {}
    for checkpoint in site.checkpoints:
        effects, classes = site.unit(checkpoint, layer, unit).get("effects"), site.facts(checkpoint, layer).get("classes", [])
        if effects:
            found[classes[max(range(len(effects)), key=effects.__getitem__)]] = None
    return " ".join(found)


# A unit's page.


def _unit(site: Site, layer: str, unit: int, up: str) -> dict[str, Any]:
    networks = [found for one in site.checkpoints if (found := _network(site, one, layer, unit, up))]
    style = tile_style((picture.file for one in site.checkpoints for picture in site.pictures(one, layer, unit)), len(networks))
    over, ticks = slider([one["checkpoint"] for one in networks])
    large = LARGE // style["side"] * style["side"] if style["side"] else LARGE
    return {
        "layer": layer,
        "unit": unit,
        "label": site.label(layer, unit),
        "networks": networks,
        "style": style,
        "large": large,
        "over": over,
        "ticks": ticks,
    }


def _network(site: Site, checkpoint: CheckpointFacts, layer: str, unit: int, up: str) -> dict[str, Any] | None:
    """All that the page says of one checkpoint's unit."""
    pictures = _shown(site, checkpoint, layer, unit, up)
    if not pictures:
        return None
    facts, own = site.facts(checkpoint, layer), site.unit(checkpoint, layer, unit)
    exemplars, panel = site.exemplars(checkpoint, layer, unit), site.panels[layer, 1]
    first = pictures[0]
    recipe, name = panel.recipe_text, site.reference(checkpoint)
    which = ["--layer", layer, "--units", str(unit), "--seeds", str(len(pictures)), "--recipe", recipe]
    pairs = {
        "score": "-" if first["score"] is None else f"{first['score']:.4g}",
        "status": first["status"] if first["status"] != "ok" else "",
        "images that excite it": percent(own.get("active")) if "active" in own else "",
        "sparsity": "" if own.get("sparsity") is None else f"{own['sparsity']:.2f}, 0 (all images alike) to 1 (one image)",
    }
    return {
        "checkpoint": checkpoint, "key": checkpoint.id, "label": words.short_name(checkpoint.name), "pictures": pictures,
        "negatives": _shown(site, checkpoint, layer, unit, up, -1),
        "pairs": [pair for pair in pairs.items() if pair[1]],
        "clarity": _clarity(site, checkpoint, layer, unit), "judge": site.judge(layer),
        "histogram": _histogram(own, first["score"]), "n": facts.get("n", 0),
        "effects": _effects(facts, own), "linear": facts.get("linear"), "told": _told(facts, own),
        "word": site.word(checkpoint, layer, unit),
        "most": _exemplars(exemplars.most, {**own, **site.attribution(checkpoint, layer, unit)}, up) if exemplars else [],
        "least": _exemplars(exemplars.least, {}, up) if exemplars else [],
        "source": exemplars.source if exemplars else "",
        "slices": [{**one, "source": up + quote(one["image"])} for one in own.get("slices", ())],
        "matches": _matches(site, checkpoint, layer, unit, up), "recipe": recipe, "objective": panel.objective,
        "weights": checkpoint.weights_sha256, "command": shlex.join(["vizrobust", "neurons", name, *which]),
        "again": shlex.join(["vizrobust", "rerender", first["name"]]) if first["name"] else "",
    }  # fmt: skip


def _clarity(site: Site, checkpoint: CheckpointFacts, layer: str, unit: int) -> dict[str, Any]:
    """The AUC on a scale from chance to what natural images reach."""
    found = site.clarity(checkpoint, layer, unit)
    return found if found.get("forced_choice") is not None else {}


def _histogram(own: dict[str, Any], score: float | None) -> dict[str, Any] | None:
    """Bars (x, width, height) and the place of the picture's score, in percent of the axis from `low` to `high`."""
    if not own.get("counts"):
        return None
    low, high, counts = own["low"], own["high"], own["counts"]
    end = max([high, *([] if score is None else [score])])
    start = min([low, *([] if score is None else [score])])
    length, most = (end - start) or 1, max(counts)
    width = (high - low) / len(counts) or length / 50
    bars = [
        {"x": _round(100 * (low + i * width - start) / length), "width": _round(100 * width / length),
         "height": _round(100 * (count / most) ** 0.5)}
        for i, count in enumerate(counts) if count
    ]  # fmt: skip
    mark = None if score is None else _round(100 * (score - start) / length)
    told = "" if score is None else f"{score:.3g}"
    return {"bars": bars, "low": f"{start:.3g}", "high": f"{end:.3g}", "mark": mark, "score": told, "largest": f"{high:.3g}"}


def _round(value: float) -> float:
    return round(value, 2)


def _effects(facts: dict[str, Any], own: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The classes that a unit argues for and against, the strongest first."""
    effects = own.get("effects") or []
    scale = max(map(abs, effects), default=0) or 1
    ranked = sorted(range(len(effects)), key=lambda number: -effects[number])
    entries = [
        {"number": number, "name": facts["classes"][number], "value": f"{effects[number]:+.3g}",
         "share": _round(100 * abs(effects[number]) / scale)}
        for number in ranked
    ]  # fmt: skip
    return {
        "for": [one for one in entries if effects[one["number"]] > 0][:TOP],
        "against": [one for one in reversed(entries) if effects[one["number"]] < 0][:TOP],
    }


def _told(facts: dict[str, Any], own: dict[str, Any]) -> list[dict[str, Any]]:
    """The three classes whose images a unit tells best from all others: the AUC with its interval."""
    values, images = own.get("aucs") or [], facts.get("images", [])
    known = [number for number, value in enumerate(values) if value is not None]
    found = []
    for number in sorted(known, key=lambda number: -values[number])[:3]:
        value = auc_text(values[number], images[number], sum(images) - images[number])
        found.append({"number": number, "name": facts["classes"][number], "value": value})
    return found


@lru_cache(maxsize=10_000)
def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _exemplars(images: Sequence[Exemplar], own: dict[str, Any], up: str) -> list[dict[str, Any]]:
    found = []
    for place, one in enumerate(images):
        mark = exemplar_mark(one, *_size(one.file))
        heat = _strip(own.get("heat"), place, len(images), up)
        pixels = _strip(own.get("pixels"), place, own.get("of", 0), up)
        found.append({"source": _image(one, up), "label": one.label, "value": f"{one.value:.3g}", "mark": mark, "heat": heat,
                      "alt": f"natural image {one.rank}: {one.label}, activation {one.value:.3g}",
                      "pixels": pixels})  # fmt: skip
    return found


def _strip(file: str | None, place: int, count: int, up: str) -> str | None:
    """The style that shows one picture of a strip of `count` in a file."""
    if not file or place >= count:
        return None
    across = 0 if count == 1 else 100 * place / (count - 1)
    return f"background: url('{up}{quote(file)}') {across:.3f}% 0 / {100 * count}% 100%"


def _matches(site: Site, checkpoint: CheckpointFacts, layer: str, unit: int, up: str) -> list[dict[str, Any]]:
    """The unit of every other checkpoint that matches this one on natural images."""
    found = []
    for other in site.checkpoints:
        match = None if other.id == checkpoint.id else site.match(checkpoint, other, layer, unit)
        if match is None:
            continue
        shown = _shown(site, other, layer, match[0], up)
        found.append({
            "checkpoint": other, "unit": match[0], "correlation": f"{match[1]:.2f}", "chance": f"{match[2]:.2f}",
            "better": match[1] > match[2],
            "picture": shown[0] if shown and shown[0]["source"] else None,
            "href": f"{up}{unit_page(layer, match[0])}#{other.id}" if match[0] in site.units(layer) else "",
        })  # fmt: skip
    return found


# A class's page.


def _class(site: Site, number: int, name: str, up: str) -> dict[str, Any]:
    networks = []
    for checkpoint in site.checkpoints:
        about = site.examples[checkpoint.id]
        examples = [
            {**one, "clean": up + quote(one["clean"]), "adversarial": up + quote(one["adversarial"])}
            for one in about.get("examples", ()) if one["class"] == number
        ]  # fmt: skip
        pictures = _shown(site, checkpoint, LOGITS, number, up) if LOGITS in site.layers and number in site.units(LOGITS) else []
        networks.append({
            "checkpoint": checkpoint, "pictures": pictures, "examples": examples, "attack": about.get("attack", ""),
            "units": _nearest(site, checkpoint, number, up),
        })  # fmt: skip
    of_each = (site.pictures(one, layer, site.units(layer)[0]) for one in site.checkpoints for layer in site.layers)
    files = (one.file for some in of_each for one in some)
    own = LOGITS in site.layers and number in site.units(LOGITS)
    return {"number": number, "name": name, "networks": networks, "style": tile_style(files, 1), "own": own}


def _nearest(site: Site, checkpoint: CheckpointFacts, number: int, up: str) -> list[dict[str, Any]]:
    """The hidden units whose activation tells the class best from all others, by their AUC."""
    ranked = []
    for layer in site.layers:
        if layer == LOGITS:
            continue
        for unit in site.units(layer):
            values = site.unit(checkpoint, layer, unit).get("aucs") or []
            if number < len(values) and values[number] is not None:
                ranked.append((values[number], layer, unit))
    found = []
    for value, layer, unit in sorted(ranked, reverse=True)[:NEAREST]:
        shown = _shown(site, checkpoint, layer, unit, up)
        if shown and shown[0]["source"]:
            found.append(
                {
                    "picture": shown[0],
                    "href": f"{up}{unit_page(layer, unit)}#{checkpoint.id}",
                    "label": f"{layer}, {site.label(layer, unit)}",
                    "value": f"{value:.2f}",
                }
            )
    return found
