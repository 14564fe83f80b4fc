"""What `invert` and `caricature` share: one picture for each checkpoint and layer, their likeness, the sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vizrobust.cli.loading import load_all, maybe_data_of
from vizrobust.cli.output import command_line, progress, say
from vizrobust.cli.rendering import made_with, request_for
from vizrobust.compute import Compute
from vizrobust.features import (
    ImageActivations,
    Objective,
    RenderJob,
    Similarity,
    missing,
    picture_key,
    render_into,
    representative_layers,
)
from vizrobust.features.pictures import read_png, to_uint8
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.sheets import Reconstructed, SheetRow, reconstruction_sheet
from vizrobust.runs import Row, RunFolder, default_folder, write_rows

SCORES = "likeness.jsonl"
# In the text that names all layers of a run at once.
ANY_LAYER = "*"


@dataclass(frozen=True)
class Reconstruction:
    """A finished picture: its row, how near it comes to the image, and the original it was made after."""

    checkpoint: Checkpoint
    layer: str
    row: Row
    similarity: Similarity
    original: ImageActivations

    def facts(self) -> dict[str, Any]:
        return {**self.row, **self.similarity.row()}


@dataclass(frozen=True)
class Reconstructions:
    """All pictures of one command in its run folder. Made by `make`."""

    run: RunFolder
    image: str
    layers: Sequence[str]
    request: RenderJob
    made: Sequence[Reconstruction]

    @staticmethod
    def make(
        command: str, refs: Sequence[str], image: str, layers: Sequence[str], objective: Callable[[str], Objective], *,
        data: str | None, arch: str | None, download: bool, out: str | None, device: str, precision: str, quiet: bool,
        seeds: Sequence[int], from_image: bool = False, **how: Any,
    ) -> Reconstructions:  # fmt: skip
        """Render what the run does not hold yet, one picture per checkpoint, layer and seed, and look at all of them.

        `objective` is that of a layer; `how` goes to `request_for`.
        """
        checkpoints = load_all(refs, arch, download)
        first, compute = checkpoints[0], Compute(device, precision)
        names = list(dict.fromkeys(layers)) or representative_layers(first.net(), first.info.input_shape)
        for checkpoint in checkpoints:
            _check(checkpoint, names)
        loaded = maybe_data_of(first, data, download)
        start = image if from_image else None
        jobs = [
            (checkpoint, name, request_for(checkpoint, loaded, objective(name), (0,), seeds=seeds, start=start, **how))
            for checkpoint in checkpoints
            for name in names
        ]
        request, full = jobs[0][2], compute.in_fp32()
        originals = {
            checkpoint.id: ImageActivations.of(checkpoint, image, names, full, request.recipe.size) for checkpoint in checkpoints
        }
        identity = {**request.identity(precision), "objective": repr(objective(ANY_LAYER))}
        run = RunFolder(out or default_folder(command, identity), command, identity, made_with(compute, request))
        _render(run, jobs, compute, quiet)
        rows = {picture_key(row): row for row in run.rows()}
        made = []
        for checkpoint, name, one in jobs:
            for key in one.keys(checkpoint):
                original = originals[checkpoint.id]
                similarity = original.similarity(name, read_png(run.folder / rows[key]["image"], len(original.image)))
                made.append(Reconstruction(checkpoint, name, rows[key], similarity, original))
        write_rows(run.folder / SCORES, [one.facts() for one in made])
        return Reconstructions(run, image, names, request, made)

    @property
    def several_seeds(self) -> bool:
        return len(self.request.seeds) > 1

    def sheet(self, title: str, lines: Callable[[Similarity], tuple[str, ...]], caption: Sequence[str]) -> Path:
        """Draw the image and the pictures, a row for each checkpoint and seed; returns the file."""
        rows = []
        for key in dict.fromkeys((one.checkpoint.id, one.row["seed"]) for one in self.made):
            row = [one for one in self.made if (one.checkpoint.id, one.row["seed"]) == key]
            about = row[0].checkpoint.info
            words = CheckpointFacts(key[0], row[0].checkpoint.name, attack_steps=about.attack_steps).training_words
            head = [row[0].checkpoint.name, words, f"seed {key[1]}" if self.several_seeds else ""]
            image = Reconstructed(to_uint8(row[0].original.image))
            pictures = [Reconstructed(to_uint8(self._picture(one)), lines(one.similarity)) for one in row]
            rows.append(SheetRow(tuple(line for line in head if line), (image, *pictures)))
        path = self.run.folder / f"{self.run.info['command']}.png"
        return reconstruction_sheet(path, title, ["image", *self.layers], rows, caption, command_line())

    def _picture(self, one: Reconstruction) -> Tensor:
        return read_png(self.run.folder / one.row["image"], len(one.original.image))


def number(value: float | None, digits: int = 2, nothing: str = "-") -> str:
    return nothing if value is None else f"{value:.{digits}f}"


def small(value: float) -> str:
    """A share to two digits: 0.00012, 0.034, 1.2."""
    return f"{float(f'{value:.2g}'):g}" if value >= 1e-4 or value == 0 else f"{value:.0e}"


def _check(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    net = checkpoint.net()
    for name in names:
        try:
            chosen = layer_of(net, checkpoint.info.input_shape, name)
        except ValueError as error:
            raise ValueError(f"{checkpoint.name}: {error} (vizrobust layers {checkpoint.name} lists them)") from error
        if not chosen.visualizable:
            raise ValueError(f"layer {name!r} of {checkpoint.name} cannot be visualized: {chosen.reason}; choose another layer")


def _render(run: RunFolder, jobs: Sequence[tuple[Checkpoint, str, RenderJob]], compute: Compute, quiet: bool) -> None:
    todo = sum(len(missing(run, checkpoint, request)) for checkpoint, _, request in jobs)
    if todo:
        say(f"to render: {todo}, {jobs[0][2].recipe}")
    with progress(quiet) as bars:
        task = bars.add_task("", total=todo)
        for checkpoint, name, request in jobs:
            bars.update(task, description=f"{checkpoint.name}, {name}")
            for _ in render_into(run, checkpoint, request, compute):
                bars.advance(task)
