"""`invert` and `caricature`: pictures after an image, one for each checkpoint and layer, and how similar they are to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vizrobust.commands.picture_report import PictureReport
from vizrobust.commands.unit_pictures import checkpoints_of, folder_for, job_of, recipe_of
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
from vizrobust.features.picture_runs import Pixels, checkpoint_facts
from vizrobust.features.pictures import in_tiles, read_png, to_uint8
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.sheets import Reconstructed, SheetRow, reconstruction_sheet
from vizrobust.requests.pictures import CaricatureRequest, InvertRequest, Reconstruction
from vizrobust.results import Event, Note, Table
from vizrobust.runs import Row, RunFolder, write_rows
from vizrobust.session import Session

SCORES = "likeness.jsonl"
# In the text that names all layers of a run at once.
ANY_LAYER = "*"


@dataclass(frozen=True)
class Finished:
    """A finished picture: its row, how similar it is to the image, and the image's own activations."""

    checkpoint: Checkpoint
    layer: str
    row: Row
    similarity: Similarity
    original: ImageActivations

    def facts(self) -> Row:
        return {**self.row, **self.similarity.row()}


@dataclass(frozen=True)
class Columns:
    """What a command says of a similarity: table cells by header, the lines below a picture, the note of the table."""

    cells: Mapping[str, Callable[[Similarity], str]]
    lines: Callable[[Similarity], tuple[str, ...]]
    caption: str
    note: str


def invert(request: InvertRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """For each layer find, from noise, an image with the activations of the request's image."""

    def objective(layer: str) -> Objective:
        own = Inversion(layer, request.image)
        return Sum(((1.0, own), (-request.smooth, TotalVariation()))) if request.smooth else own

    columns = Columns(
        {
            "error": lambda one: small(one.error), "grey baseline": lambda one: small(one.grey_baseline_error),
            "PSNR": lambda one: number(one.psnr, 1, "same"), "SSIM": lambda one: number(one.ssim),
        },
        lambda one: (f"error {small(one.error)}", f"SSIM {number(one.ssim)}"),
        "error: squared distance of the layer's activations from the image's, over the square of these; SSIM: of the pixels",
        "error: |a - a0|² / |a0|² of the activations; PSNR in dB and SSIM of the pixels",
    )  # fmt: skip
    return (yield from _reconstruct("invert", request, session, objective, columns, "What layers preserve of", "Inversions of"))


def caricature(request: CaricatureRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """For each layer make a picture that it answers as it does to the request's image, only more strongly."""
    columns = Columns(
        {
            "relative projection": lambda one: number(one.relative_projection),
            "cosine": lambda one: number(one.cosine), "SSIM": lambda one: number(one.ssim),
        },
        lambda one: (f"× {number(one.relative_projection)}", f"cosine {number(one.cosine)}"),
        "×: projection of the layer's activations on the image's, 1 for the image itself; cosine: of the angle between the two",
        "relative projection: on the image's activations, over their own length",
    )  # fmt: skip

    def objective(layer: str) -> Objective:
        return Caricature(layer, request.image, request.power)

    return (yield from _reconstruct("caricature", request, session, objective, columns, "Caricatures of", "Caricatures of"))


def _reconstruct(
    command: str, request: Reconstruction, session: Session, objective: Callable[[str], Objective], columns: Columns,
    title: str, table_title: str,
) -> Generator[Event, None, PictureReport]:  # fmt: skip
    """Render what the folder does not hold yet, one picture per checkpoint, layer and seed; measure and draw all of them."""
    checkpoints = checkpoints_of(request.models, session, request.data)
    first, compute = checkpoints[0], session.compute(request.precision)
    layers = list(dict.fromkeys(request.layers)) or representative_layers(first.net(), first.info.input_shape)
    for checkpoint in checkpoints:
        _check_layers(checkpoint, layers)
    loaded = session.maybe_data_for(first, request.data)
    recipe = recipe_of(request, first, loaded, session)
    jobs = [
        (checkpoint, name, job_of(
            checkpoint, loaded, recipe, objective(name), (0,), seeds=range(request.seed, request.seed + request.seeds),
            batch_size=request.batch_size, start=request.image if getattr(request, "start", False) else None,
        ))
        for checkpoint in checkpoints
        for name in layers
    ]  # fmt: skip
    job, full = jobs[0][2], compute.in_fp32()
    originals = {one.id: ImageActivations.of(one, request.image, layers, full, recipe.size) for one in checkpoints}
    resolved = replace(
        request, recipe=recipe, steps=recipe.steps, size=recipe.size, layers=tuple(layers),
        data=None if loaded is None else loaded.name,
    )  # fmt: skip
    identity = {**job.identity(compute.precision), "objective": repr(objective(ANY_LAYER))}
    run = folder_for(command, request, resolved, job, session, identity)
    todo = [(one, name, job_, pending) for one, name, job_ in jobs if (pending := len(missing(run, one, job_)))]
    if todo:
        yield Note(f"to render: {sum(pending for *_, pending in todo)}, {recipe}")
    for checkpoint, name, job_, pending in todo:
        session.remember(run, checkpoint, checkpoint_facts(checkpoint))
        for done, _ in enumerate(render_into(run, checkpoint, job_, compute), 1):
            session.progress(f"{checkpoint.name}, {name}", done, pending)
    rows = {picture_key(row): row for row in run.rows()}
    made = []
    for checkpoint, name, job_ in jobs:
        for key in job_.keys(checkpoint):
            original = originals[checkpoint.id]
            similarity = original.similarity(name, _picture(run, rows[key], original))
            made.append(Finished(checkpoint, name, rows[key], similarity, original))
    write_rows(run.folder / SCORES, [one.facts() for one in made])
    caption = [columns.caption, f"{job.objective!r} and so on, {recipe!r}"]
    sheet = _sheet(run, made, layers, f"{title} {request.image}", columns, caption, session.argv)
    facts = [one.facts() for one in made]
    yield from facts
    if session.argv:
        yield Note(f"made by: {session.argv}")
    tables = [_table(made, f"{table_title} {request.image}", columns)]
    return PictureReport(resolved, facts, tables, [("sheet", sheet)], sheet, run.folder)


def _table(made: Sequence[Finished], title: str, columns: Columns) -> Table:
    several = len({one.row["seed"] for one in made}) > 1
    rows = [
        [one.checkpoint.name, one.layer, *([str(one.row["seed"])] if several else []),
         *(cell(one.similarity) for cell in columns.cells.values())]
        for one in made
    ]  # fmt: skip
    return Table(title, ["checkpoint", "layer", *(["seed"] if several else []), *columns.cells], rows, columns.note)


def _sheet(
    run: RunFolder, made: Sequence[Finished], layers: Sequence[str], title: str, columns: Columns, caption: Sequence[str],
    command: str,
) -> Path:  # fmt: skip
    """Draw the image and the pictures, a row for each checkpoint and seed; returns the file."""
    rows, several = [], len({one.row["seed"] for one in made}) > 1
    for key in dict.fromkeys((one.checkpoint.id, one.row["seed"]) for one in made):
        row = [one for one in made if (one.checkpoint.id, one.row["seed"]) == key]
        info = row[0].checkpoint.info
        words = CheckpointFacts(key[0], row[0].checkpoint.name, attack_steps=info.attack_steps).training_words
        head = [row[0].checkpoint.name, words, f"seed {key[1]}" if several else ""]
        image = Reconstructed(_pixels(row[0].original.image))
        pictures = [Reconstructed(_pixels(_picture(run, one.row, one.original)), columns.lines(one.similarity)) for one in row]
        rows.append(SheetRow(tuple(line for line in head if line), (image, *pictures)))
    path = run.folder / f"{run.info['command']}.png"
    return reconstruction_sheet(path, title, ["image", *layers], rows, caption, command)


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
            raise ValueError(f"{checkpoint.name}: {error} (vizrobust layers {checkpoint.name} lists them)") from error
        if not chosen.visualizable:
            raise ValueError(f"layer {name!r} of {checkpoint.name} cannot be visualized: {chosen.reason}; choose another layer")
