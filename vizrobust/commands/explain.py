"""`explain`: which pixels the answers of checkpoints depend on, by several methods, and what each map is worth."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vizrobust.attribution import (
    ATTRIBUTIONS,
    MEASURES,
    Attribution,
    GuidedBackprop,
    Saliency,
    explained,
    parse_attribution,
    rank_correlation,
)
from vizrobust.commands.compare import random_reference
from vizrobust.commands.pictures import PictureReport
from vizrobust.commands.targets import Target, open_targets
from vizrobust.features.pictures import in_tiles, to_uint8
from vizrobust.intervals import mean_interval, paired
from vizrobust.models.object_code import own_sources
from vizrobust.report.sheets import Reconstructed, SheetRow, explanation_sheet, map_pixels
from vizrobust.requests.understanding import ExplainRequest
from vizrobust.results import Event, Note, Row, Table
from vizrobust.runs import slug, write_atomic
from vizrobust.session import Session

BATCH_SIZE = 8
SHEET = "explain.png"
MEANING = (
    "mean ± half of its 95 % t interval over images. deletion, insertion: probability gained over random orders of pixels; "
    "infidelity: the part of the logit's changes under hidden squares that the map does not tell; sensitivity: the largest "
    "relative change of the map under noise of .02; weights: rank correlation with the map of random weights (0: it depends on "
    "them); gini: sparsity"
)


@dataclass(frozen=True, repr=False)
class Explanations(PictureReport):
    """What `explain` found: rows and tables, `maps` (images, H, W) by checkpoint and method, and the sheet as `figure`."""

    maps: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)


def explain(request: ExplainRequest, session: Session) -> Generator[Event, None, Explanations]:
    """Map and measure every image under every checkpoint and method; those in the run folder are read."""
    methods = [parse_attribution(one) if isinstance(one, str) else one for one in request.methods]
    methods = methods or [method() for method in ATTRIBUTIONS.values()]
    targets = open_targets(request, session, "explain", BATCH_SIZE)
    rows: list[Row] = []
    maps: dict[tuple[str, str], Tensor] = {}
    for target in targets:
        session.remember(target.folder, target.checkpoint)
        for method in methods:
            try:
                found = yield from _explained(request, session, target, method)
            except ValueError as error:
                if request.methods:
                    raise ValueError(f"{target.name}: {error}") from error
                yield Note(f"note: {target.name}: {error}")
                continue
            rows += found
            maps[target.name, repr(method)] = torch.stack([_read(target, row) for row in found])
    remarks = [remark for target in targets for remark in target.remarks]
    tables = [_measure_table(rows, remarks)]
    if len(targets) > 1:
        tables.append(_difference_table(rows, maps, targets))
    sheet = targets[0].folder.folder / SHEET
    if session.compute(request.precision).processes.main and rows:
        shown = [repr(method).removesuffix("()") for method in methods]
        explanation_sheet(sheet, shown, _sheet_rows(request, targets, methods, rows, maps), session.argv)
    return Explanations(request, rows, tables, [("sheet", sheet)], sheet, targets[0].folder.folder, maps=maps)


def _explained(
    request: ExplainRequest, session: Session, target: Target, method: Attribution
) -> Generator[Event, None, list[Row]]:
    """The rows of one checkpoint and method, in the order of the images."""
    checkpoint, folder = target.checkpoint, target.folder
    # Maps depend on the colour of a pixel that is not there, which is the mean of the training images.
    about = {"checkpoint": checkpoint.id, "method": repr(method), "background": list(target.data.mean)}
    if own := own_sources(method):
        about["sources"] = own
    known = {row["image"]: row for row in folder.rows() if about.items() <= row.items()}
    compute, names = session.compute(request.precision), target.data.classes
    # An object of a person's may have weights that nothing draws anew. `REF@random` has the seed 0.
    other = None if random_reference(checkpoint) is None else checkpoint.random_net(request.seed + 1)
    made = explained(
        checkpoint.net(), method, target.images, target.data.mean, compute, random_net=other, seed=request.seed,
        batch_size=target.batch_size, known=set(known),
    )  # fmt: skip
    for one in made:
        file = f"maps/{checkpoint.id}/{slug(repr(method))}-{one.index}.npy"
        values = one.values.numpy()
        write_atomic(folder.folder / file, lambda stream, values=values: np.save(stream, values))  # type: ignore[misc]
        label = names[int(target.images.labels[one.index])]
        row = {
            **about, "name": target.name, "image": one.index, "label": label,
            "predicted": names[one.predicted] if one.predicted >= 0 else None, **one.measures, "map": file,
            **({"nonfinite_gradients": True} if one.nonfinite else {}),
        }  # fmt: skip
        known[one.index] = folder.add(row)
        session.progress(f"{target.name}  {method!r}", len(known), len(target.images))
    rows = [known[index] for index in range(len(target.images))]
    target.saw(torch.tensor([names.index(row["predicted"]) if row["predicted"] is not None else -1 for row in rows]))
    yield from rows
    return rows


def _read(target: Target, row: Row) -> Tensor:
    file = target.folder.folder / row["map"]
    if not file.is_file():
        raise FileNotFoundError(f"map {str(file)!r} is missing; run the command again in a new folder")
    return torch.from_numpy(np.load(file))


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["method"]), []).append(row)
    return groups


def _measure_table(rows: Sequence[Row], remarks: Sequence[str]) -> Table:
    shown = []
    for (name, method), mine in _groups(rows).items():
        there = sum(row["predicted"] is not None for row in mine)
        shown.append([name, method, str(there), *(_mean([row.get(measure) for row in mine]) for measure in MEASURES)])
    header, notes = ["checkpoint", "method", "images", *MEASURES], [MEANING, *remarks, *_undefined(rows), *_control(rows)]
    return Table("attribution maps of the predicted class", header, shown, "\n".join(notes))


def _undefined(rows: Sequence[Row]) -> list[str]:
    """For each checkpoint on how many images its outputs or its map are not finite."""
    said = []
    for (name, method), mine in _groups(rows).items():
        outputs, gradients = sum(row["predicted"] is None for row in mine), sum("nonfinite_gradients" in row for row in mine)
        said += [f"{name}: outputs are not finite on {outputs} images, which have no map"] if outputs else []
        said += [f"{name}, {method}: gradients are not finite on {gradients} images; they count as 0"] if gradients else []
    return list(dict.fromkeys(said))


def _control(rows: Sequence[Row]) -> list[str]:
    """For each checkpoint whether the check of dependence on weights tells the control from the plain gradient."""
    groups, found = _groups(rows), []
    for name in dict.fromkeys(row["name"] for row in rows):
        plain, control = (groups.get((name, repr(method()))) for method in (Saliency, GuidedBackprop))
        if not plain or not control:
            continue
        more = paired(*([row.get("weights") for row in mine] for mine in (plain, control)))
        if more.low is None:
            continue
        seen = "the control fails it, as it must" if more.low > 0 else "it does not tell the control here"
        found.append(f"check of weights, {name}: {seen} (guided backpropagation minus plain gradient: {more})")
    return found


def _difference_table(rows: Sequence[Row], maps: dict[tuple[str, str], Tensor], targets: Sequence[Target]) -> Table:
    """Each checkpoint minus the first, on the images that both predict alike, method by method."""
    groups, first = _groups(rows), targets[0].name
    shown = []
    for (name, method), mine in groups.items():
        base = groups.get((first, method))
        if name == first or base is None:
            continue
        alike = [i for i, (a, b) in enumerate(zip(base, mine, strict=True)) if a["predicted"] == b["predicted"] is not None]
        cells = []
        for measure in MEASURES:
            test = paired(*([part[i].get(measure) for i in alike] for part in (base, mine)))
            missing = test.mean is None or test.low is None
            cells.append("-" if missing else f"{test.mean:+.2f} ± {test.mean - test.low:.2f}")  # type: ignore[operator]
        same = rank_correlation(maps[first, method][alike], maps[name, method][alike]).tolist() if alike else []
        shown.append([f"{name} - {first}", method, str(len(alike)), *cells, _mean(same)])
    note = "on the images for which both predict one class; same pixels: rank correlation of the two maps (1: alike)"
    return Table("differences between checkpoints", ["difference", "method", "images", *MEASURES, "same pixels"], shown, note)


def _mean(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None and not math.isnan(value)]
    if not present:
        return "-"
    mean, low, _ = mean_interval(present)
    return f"{mean:.2f}" if low is None else f"{mean:.2f} ± {mean - low:.2f}"


def _sheet_rows(
    request: ExplainRequest, targets: Sequence[Target], methods: Sequence[Attribution], rows: Sequence[Row],
    maps: dict[tuple[str, str], Tensor],
) -> list[SheetRow]:  # fmt: skip
    """The first images, under each the checkpoints one below the other."""
    groups, found = _groups(rows), []
    for index in range(min(request.show, *(len(target.images) for target in targets))):
        for target in targets:
            x = target.images.take(torch.tensor([index]))[0]
            pictures = [Reconstructed(to_uint8(in_tiles(x, len(x))))]
            said = ""
            for method in methods:
                mine = groups.get((target.name, repr(method)))
                if mine is None:
                    pictures.append(Reconstructed(np.full((*x.shape[1:], 3), 255, np.uint8)))
                    continue
                said = "outputs not finite" if mine[index]["predicted"] is None else f"predicts {mine[index]['predicted']}"
                pictures.append(Reconstructed(map_pixels(maps[target.name, repr(method)][index], method.signed)))
            true = target.data.classes[int(target.images.labels[index])]
            found.append(SheetRow((target.name, said, f"true {true}"), tuple(pictures)))
    return found
