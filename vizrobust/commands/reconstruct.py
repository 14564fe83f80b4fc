"""`invert`, `caricature` and `accentuate`: pictures after an image, and how similar they are to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vizrobust.clarity.picture_scores import excitations
from vizrobust.commands.checkpoints import layers_command
from vizrobust.commands.pictures import PictureReport
from vizrobust.commands.unit_pictures import checkpoints_of, folder_for, job_of, objective_of, recipe_of
from vizrobust.data import ArraySplit
from vizrobust.features import (
    Caricature,
    ImageActivations,
    Inversion,
    Objective,
    Similarity,
    Sum,
    TotalVariation,
    missing,
    picture_key,
    render_into,
    representative_layers,
)
from vizrobust.features.picture_runs import Pixels, checkpoint_facts, units_from
from vizrobust.features.pictures import in_tiles, read_png, reference_image, title_of, to_uint8
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.sheets import Reconstructed, SheetRow, reconstruction_sheet
from vizrobust.requests.pictures import AccentuateRequest, CaricatureRequest, InvertRequest, Reconstruction
from vizrobust.results import Event, Note, Table
from vizrobust.runs import Row, RunFolder, write_rows
from vizrobust.session import Session

SCORES = "likeness.jsonl"
# In the text that names all layers of a run at once.
ANY_LAYER = "*"


@dataclass(frozen=True)
class Wanted:
    """A column of pictures: its title, the objective and unit of each, and the `layer` in which it is compared with the image.

    `excited` is the unit's own objective, where a unit is what the pictures are of.
    """

    title: str
    objective: Objective
    layer: str
    unit: int = 0
    excited: Objective | None = None


@dataclass(frozen=True)
class Finished:
    """A finished picture: its row, how similar it is to the image, and the image's own activations.

    `activation` is that of the unit that the picture is of, for the image and for the picture.
    """

    checkpoint: Checkpoint
    wanted: Wanted
    row: Row
    similarity: Similarity
    original: ImageActivations
    activation: tuple[float, float] | None = None

    def facts(self) -> Row:
        row = {**self.row, **self.similarity.row()}
        if self.activation is not None:
            row["activation_of_image"], row["activation"] = self.activation
        return row


@dataclass(frozen=True)
class Columns:
    """What a command says of a similarity: table cells by header, the lines below a picture, the note of the table."""

    cells: Mapping[str, Callable[[Finished], str]]
    lines: Callable[[Finished], tuple[str, ...]]
    caption: str
    note: str
    what: str = "layer"  # the header of the columns' titles


def invert(request: InvertRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """For each layer find, from noise, an image with the activations of the request's image."""

    def objective(layer: str) -> Objective:
        own = Inversion(layer, request.image)
        return Sum(((1.0, own), (-request.smooth, TotalVariation()))) if request.smooth else own

    columns = Columns(
        {
            "error": lambda one: small(one.similarity.error),
            "grey baseline": lambda one: small(one.similarity.grey_baseline_error),
            "PSNR": lambda one: number(one.similarity.psnr, 1, "same"), "SSIM": lambda one: number(one.similarity.ssim),
        },
        lambda one: (f"error {small(one.similarity.error)}", f"SSIM {number(one.similarity.ssim)}"),
        "error: squared distance of the layer's activations from the image's, over the square of these; SSIM: of the pixels",
        "error: |a - a0|² / |a0|² of the activations; PSNR in dB and SSIM of the pixels",
    )  # fmt: skip
    titles = ("What layers preserve of", "Inversions of")
    return (yield from _of_layers("invert", request, session, objective, columns, titles))


def caricature(request: CaricatureRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """For each layer make a picture that it answers as it does to the request's image, only more strongly."""
    columns = Columns(
        {
            "relative projection": lambda one: number(one.similarity.relative_projection),
            "cosine": lambda one: number(one.similarity.cosine), "SSIM": lambda one: number(one.similarity.ssim),
        },
        lambda one: (f"× {number(one.similarity.relative_projection)}", f"cosine {number(one.similarity.cosine)}"),
        "×: projection of the layer's activations on the image's, 1 for the image itself; cosine: of the angle between the two",
        "relative projection: on the image's activations, over their own length",
    )  # fmt: skip

    def objective(layer: str) -> Objective:
        return Caricature(layer, request.image, request.power)

    return (yield from _of_layers("caricature", request, session, objective, columns, ("Caricatures of", "Caricatures of")))


def accentuate(request: AccentuateRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """Change the request's image so that each unit is excited more, while a layer's answer to it is kept.

    The score of feature accentuation (Hamblin et al. 2024, §3): the unit's activation minus the distance of the layer's
    activations from the image's. A distance of the image's own length costs `hold` times what the layer of the unit
    answers most strongly to the image.
    """
    checkpoints = checkpoints_of(request.models, session, request.data)
    wanted = {}
    for checkpoint in checkpoints:
        _check_layers(checkpoint, [request.layer, request.near])
        net, shape = checkpoint.net(), checkpoint.info.input_shape
        count = layer_of(net, shape, request.layer).units
        units = units_from(request.units, count, f"layer {request.layer} of {checkpoint.name}")
        own, compute = objective_of(checkpoint, request.layer), session.compute(request.precision).in_fp32()
        answers = excitations(net, own, range(count), _split(reference_image(request.image, shape)), compute)
        strongest = float(answers.abs().max())
        held = Inversion(request.near, request.image)
        objective = Sum(((1.0, own), (float(f"{request.hold * strongest:.4g}"), held))) if request.hold else own
        names = checkpoint.info.classes if request.layer == LOGITS else ()
        wanted[checkpoint.id] = [
            Wanted(names[unit] if unit < len(names) else f"unit {unit}", objective, request.near, unit, own) for unit in units
        ]
    columns = Columns(
        {
            "activation of the image": lambda one: f"{one.activation[0]:.3g}" if one.activation else "-",
            "of the picture": lambda one: f"{one.activation[1]:.3g}" if one.activation else "-",
            "error": lambda one: small(one.similarity.error), "SSIM": lambda one: number(one.similarity.ssim),
        },
        lambda one: (
            f"{one.activation[0]:.3g} → {one.activation[1]:.3g}" if one.activation else "",
            f"SSIM {number(one.similarity.ssim)}",
        ),
        f"the unit's activation for the image → for the picture; SSIM: of the pixels; held near the image in {request.near}",
        f"error: |a - a0|² / |a0|² of the activations of {request.near}; SSIM of the pixels",
        "unit",
    )  # fmt: skip
    described = f"{request.layer} held in {request.near} by {request.hold:g}"
    titles = (f"{request.layer} accentuated in", f"{request.layer} accentuated in")
    return (yield from _reconstruct("accentuate", request, session, checkpoints, wanted, described, columns, titles))


def _of_layers(
    command: str, request: Reconstruction, session: Session, objective: Callable[[str], Objective], columns: Columns,
    titles: tuple[str, str],
) -> Generator[Event, None, PictureReport]:  # fmt: skip
    """A column for each layer of the request, or for some of the network's."""
    checkpoints = checkpoints_of(request.models, session, request.data)
    first = checkpoints[0]
    layers = tuple(dict.fromkeys(request.layers)) or tuple(representative_layers(first.net(), first.info.input_shape))
    for checkpoint in checkpoints:
        _check_layers(checkpoint, layers)
    of_each = [Wanted(name, objective(name), name) for name in layers]
    request = replace(request, layers=layers)
    wanted = {one.id: of_each for one in checkpoints}
    return (yield from _reconstruct(command, request, session, checkpoints, wanted, repr(objective(ANY_LAYER)), columns, titles))


def _reconstruct(
    command: str, request: Reconstruction | AccentuateRequest, session: Session, checkpoints: Sequence[Checkpoint],
    wanted: Mapping[str, Sequence[Wanted]], described: str, columns: Columns, titles: tuple[str, str],
) -> Generator[Event, None, PictureReport]:  # fmt: skip
    """Render what the folder does not hold yet, a picture per checkpoint, column and seed; measure and draw all of them.

    `described` is the objective of all of them, for the run folder; `titles` are those of the sheet and of the table.
    """
    first, compute = checkpoints[0], session.compute(request.precision)
    loaded = session.maybe_data_for(first, request.data)
    recipe = recipe_of(request, first, loaded, session)
    jobs = [
        (checkpoint, one, job_of(
            checkpoint, loaded, recipe, one.objective, (one.unit,), seeds=range(request.seed, request.seed + request.seeds),
            batch_size=request.batch_size, start=request.image if request.begins_there else None,
        ))
        for checkpoint in checkpoints
        for one in wanted[checkpoint.id]
    ]  # fmt: skip
    job, full = jobs[0][2], compute.in_fp32()
    layers = {key: list(dict.fromkeys(one.layer for one in some)) for key, some in wanted.items()}
    originals = {one.id: ImageActivations.of(one, request.image, layers[one.id], full, recipe.size) for one in checkpoints}
    resolved = replace(request, recipe=recipe, steps=recipe.steps, size=recipe.size, data=None if loaded is None else loaded.name)
    run = folder_for(command, request, resolved, job, session, {**job.identity(compute.precision), "objective": described})
    todo = [(one, column, job_, pending) for one, column, job_ in jobs if (pending := len(missing(run, one, job_)))]
    if todo:
        yield Note(f"to render: {sum(pending for *_, pending in todo)}, {recipe}")
    for checkpoint, column, job_, pending in todo:
        session.remember(run, checkpoint, checkpoint_facts(checkpoint))
        for done, _ in enumerate(render_into(run, checkpoint, job_, compute), 1):
            session.progress(f"{checkpoint.name}, {column.title}", done, pending)
    rows = {picture_key(row): row for row in run.rows()}
    made = []
    for checkpoint, column, job_ in jobs:
        for key in job_.keys(checkpoint):
            original = originals[checkpoint.id]
            picture = _picture(run, rows[key], original)
            similarity = original.similarity(column.layer, picture)
            made.append(Finished(checkpoint, column, rows[key], similarity, original, _activation(column, original, picture)))
    facts = [one.facts() for one in made]
    write_rows(run.folder / SCORES, facts)
    caption = [columns.caption, f"{job.objective!r} and so on, {recipe!r}"]
    sheet = _sheet(run, made, f"{titles[0]} {title_of(request.image)}", columns, caption, session.argv)
    yield from facts
    if session.argv:
        yield Note(f"made by: {session.argv}")
    tables = [_table(made, f"{titles[1]} {title_of(request.image)}", columns)]
    return PictureReport(resolved, facts, tables, [("sheet", sheet)], sheet, run.folder)


def _activation(column: Wanted, original: ImageActivations, picture: Tensor) -> tuple[float, float] | None:
    """How much the image and the picture excite the column's unit."""
    if column.excited is None:
        return None
    both = _split(original.image, picture)
    image, changed = excitations(original.net, column.excited, [column.unit], both, original.compute)[0].tolist()
    return image, changed


def _split(*images: Tensor) -> ArraySplit:
    return ArraySplit(torch.stack(images), torch.zeros(len(images), dtype=torch.int64))


def _table(made: Sequence[Finished], title: str, columns: Columns) -> Table:
    several = len({one.row["seed"] for one in made}) > 1
    rows = [
        [one.checkpoint.name, one.wanted.title, *([str(one.row["seed"])] if several else []),
         *(cell(one) for cell in columns.cells.values())]
        for one in made
    ]  # fmt: skip
    return Table(title, ["checkpoint", columns.what, *(["seed"] if several else []), *columns.cells], rows, columns.note)


def _sheet(
    run: RunFolder, made: Sequence[Finished], title: str, columns: Columns, caption: Sequence[str], command: str
) -> Path:  # fmt: skip
    """Draw the image and the pictures, a row for each checkpoint and seed; returns the file."""
    rows, several = [], len({one.row["seed"] for one in made}) > 1
    for key in dict.fromkeys((one.checkpoint.id, one.row["seed"]) for one in made):
        row = [one for one in made if (one.checkpoint.id, one.row["seed"]) == key]
        info = row[0].checkpoint.info
        words = CheckpointFacts(key[0], row[0].checkpoint.name, attack_steps=info.attack_steps).training_words
        head = [row[0].checkpoint.name, words, f"seed {key[1]}" if several else ""]
        image = Reconstructed(_pixels(row[0].original.image))
        pictures = [Reconstructed(_pixels(_picture(run, one.row, one.original)), columns.lines(one)) for one in row]
        rows.append(SheetRow(tuple(line for line in head if line), (image, *pictures)))
    path, heads = run.folder / f"{run.info['command']}.png", list(dict.fromkeys(one.wanted.title for one in made))
    return reconstruction_sheet(path, title, ["image", *heads], rows, caption, command)


def _picture(run: RunFolder, row: Row, original: ImageActivations) -> Tensor:
    return read_png(run.folder / row["image"], len(original.image))


def _pixels(image: Tensor) -> Pixels:
    return to_uint8(in_tiles(image, len(image)))


def number(value: float | None, digits: int = 2, nothing: str = "-") -> str:
    return nothing if value is None else f"{value:.{digits}f}"


def small(value: float) -> str:
    """A share to two digits.

    >>> small(0.00012), small(0.0342), small(1.23), small(0.000012)
    ('0.00012', '0.034', '1.2', '1e-05')
    """
    return f"{float(f'{value:.2g}'):g}" if value >= 1e-4 or value == 0 else f"{value:.0e}"


def _check_layers(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    net = checkpoint.net()
    for name in names:
        try:
            chosen = layer_of(net, checkpoint.info.input_shape, name)
        except ValueError as error:
            raise ValueError(f"{checkpoint.name}: {error} ({layers_command(checkpoint)} lists them)") from error
        if not chosen.visualizable:
            raise ValueError(f"layer {name!r} of {checkpoint.name} cannot be visualized: {chosen.reason}; choose another layer")
