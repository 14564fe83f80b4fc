"""An activation atlas in a run folder: activations, layout and directions are files, so that a stopped run goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vizrobust.compute import Compute
from vizrobust.features.atlas import Array, Atlas, Cells
from vizrobust.features.exemplar_session import Source
from vizrobust.features.objectives import Direction
from vizrobust.features.pictures import to_uint8
from vizrobust.features.recipes import Recipe
from vizrobust.features.render import BATCH_SIZE, Job, render_jobs
from vizrobust.features.session import Request, checkpoint_facts, row_of
from vizrobust.features.sources import sources
from vizrobust.models import Checkpoint
from vizrobust.runs import Row, Run, file_sha256, slug, write_atomic


@dataclass(frozen=True)
class Plan:
    """An atlas of some images, and how its cells' directions are rendered."""

    atlas: Atlas
    source: Source
    recipe: Recipe
    batch_size: int = BATCH_SIZE

    def identity(self, precision: str) -> dict[str, Any]:
        """What the pictures depend on besides the checkpoint."""
        images = {key: self.source.identity[key] for key in ("data", "split", "of", "sha256")}
        references = [list(one) for one in sources(self.recipe)]
        return {
            "atlas": repr(self.atlas), "images": images, "recipe": repr(self.recipe), "start": "", "batch_size": self.batch_size,
            "precision": precision, **({"references": references} if references else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """A checkpoint's atlas before it is rendered: its cells, their classes by frequency, and the directions as a request."""

    cells: Cells
    classes: dict[int, dict[str, int]]
    request: Request


def mapped(run: Run, checkpoint: Checkpoint, plan: Plan, compute: Compute, seen: Callable[[int], object] | None = None) -> Mapped:
    """Activations, layout and directions of a checkpoint; those that the run holds are read, the others made and saved.

    `seen` is called with the number of images after each batch. Raises ``ValueError`` as `Atlas` does, and where the
    run's directions are no longer those that its pictures were rendered along.
    """
    atlas, split = plan.atlas, plan.source.whole
    folder = run.folder / "atlas" / checkpoint.id
    index = atlas.chosen(split.labels)
    shape = checkpoint.about.input_shape
    vectors = _kept(
        folder / "activations.npy",
        lambda: atlas.gathered(checkpoint.net(), split, index, shape=shape, compute=compute, seen=seen).numpy(),
    )
    cells = atlas.cells(_kept(folder / "layout.npy", lambda: atlas.laid_out(vectors)))
    directions = folder / "directions.npy"
    _kept(directions, lambda: atlas.directions(vectors, cells))
    sha256 = file_sha256(directions)
    known = run.info.get("atlas", {}).get(checkpoint.id, {}).get("directions_sha256", sha256)
    if known != sha256:
        raise ValueError(f"{str(directions)!r} is not the file that this run began with; give --out a new folder")
    full = tuple(int(number) for number in np.flatnonzero(cells.full))
    facts = {
        "directions": directions.relative_to(run.folder).as_posix(), "directions_sha256": sha256,
        "images": len(index), "channels": vectors.shape[1], "cells": len(full),
        "left_out": int(cells.counts[~cells.full].sum()),
    }  # fmt: skip
    run.remember("atlas", {checkpoint.id: facts})
    run.remember("checkpoints", {checkpoint.id: checkpoint_facts(checkpoint)})
    names, labels = plan.source.data.classes, split.labels[index].numpy()
    classes = {number: _frequent(names[label] for label in labels[cells.members(number)]) for number in full}
    objective = Direction(atlas.layer, str(directions), atlas.power)
    request = Request(
        plan.recipe, objective, full, (atlas.seed,), batch_size=plan.batch_size, data_share=plan.source.data.saturated_share,
        references=((objective.vector, sha256),),
    )  # fmt: skip
    return Mapped(cells, classes, request)


def atlas_rows(run: Run, checkpoint: Checkpoint) -> list[Row]:
    """The finished cells of a checkpoint."""
    return [row for row in run.rows() if row["checkpoint"] == checkpoint.id]


def atlas_into(run: Run, checkpoint: Checkpoint, plan: Plan, there: Mapped, compute: Compute) -> Iterator[Row]:
    """Render the cells that the run does not hold yet, save each picture and then its row, and yield the rows.

    A row is that of a feature image (`unit` is row * grid + column) with `row`, `column`, `count`, the number of
    activations in the cell, `classes`, how many of their images are of which class, the most frequent first, and
    `references`, the file of directions with its hash.
    """
    request, grid = there.request, plan.atlas.grid
    todo = missing_cells(run, checkpoint, there)
    began = time.perf_counter()
    for done in render_jobs(
        checkpoint.net(), request.objective, todo, request.recipe,
        shape=checkpoint.about.input_shape, compute=compute, batch_size=request.batch_size,
    ):  # fmt: skip
        row, column = divmod(done.unit, grid)
        facts = {
            **row_of(checkpoint.id, checkpoint, request, done),
            "row": row, "column": column, "count": int(there.cells.counts[done.unit]), "classes": there.classes[done.unit],
            "references": [list(one) for one in request.references],
            "seconds": round(time.perf_counter() - began, 3),
        }  # fmt: skip
        name = f"images/{checkpoint.id}/{slug(request.recipe.name)}/{slug(request.layer)}/{row}-{column}.png"
        yield run.add_image(facts, to_uint8(done.image), name)
        began = time.perf_counter()


def missing_cells(run: Run, checkpoint: Checkpoint, there: Mapped) -> list[Job]:
    """The cells (and the seed) that are still to be rendered."""
    held = {row["unit"] for row in atlas_rows(run, checkpoint)}
    return [(unit, seed) for unit in there.request.units for seed in there.request.seeds if unit not in held]


def _kept(path: Path, make: Callable[[], Array]) -> Array:
    """The array that a file holds; where there is none, the array is made and saved first."""
    if not path.is_file():
        write_atomic(path, partial(np.save, arr=make()))
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not readable ({error}); delete it and run the command again") from error


def _frequent(names: Any) -> dict[str, int]:
    """How often each name occurs, the most frequent first, equal ones by name."""
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))
