"""Feature images of several checkpoints in one run folder: the units asked for, and the pictures that are missing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.compute import Compute
from vizrobust.features.objectives import Channel, Direction, Diversity, Logit, Neuron, Objective, Sum, main_term, needs_unit
from vizrobust.features.pictures import in_tiles, read_png, to_uint8
from vizrobust.features.recipes import Recipe
from vizrobust.features.render import (
    BATCH_SIZE,
    Batch,
    FeatureImage,
    UnitSeed,
    joint_group_size,
    plan_batches,
    render,
    render_batches,
    saturated_or_ok,
)
from vizrobust.features.scorer import Scorer
from vizrobust.legacy import present
from vizrobust.models import LOGITS, Checkpoint, Layer, evaluating, layer
from vizrobust.models.folding import net_for
from vizrobust.requests import ParameterError
from vizrobust.runs import Row, RunFolder, file_sha256, slug, write_gif, write_png

FEW_UNITS = 20
FIRST_UNITS = 16


def objective_for(checkpoint: Checkpoint, name: str, neuron: tuple[int, int] | None = None) -> tuple[Objective, Layer]:
    """The objective that renders the units of a layer (class logits, channels, or neurons at (row, column)), and the layer."""
    chosen = layer(checkpoint.net(), checkpoint.info.input_shape, name)
    if not chosen.visualizable:
        shape = " x ".join(map(str, chosen.shape))
        raise ValueError(f"layer {name!r} (output {shape}) cannot be rendered: {chosen.reason}; choose another layer")
    if neuron is not None:
        if len(chosen.shape) != 3:
            raise ParameterError("layer %r has no positions, only %s units; leave out {neuron}", name, chosen.units)
        y, x = neuron
        if not (0 <= y < chosen.shape[1] and 0 <= x < chosen.shape[2]):
            raise ValueError(f"position {y},{x} is outside layer {name!r}, whose maps are {chosen.shape[1]} x {chosen.shape[2]}")
        return Neuron(layer=name, y=y, x=x), chosen
    return (Logit() if name == LOGITS else Channel(layer=name)), chosen


def check_input_size(checkpoint: Checkpoint, objective: Objective, shape: tuple[int, int, int]) -> None:
    """Try images of another size than the network's own; ``ValueError`` where it cannot take them as far as needed."""
    net = checkpoint.net()
    try:
        scorer = Scorer.of(net, objective, shape, Compute("cpu"))
        with evaluating(net), torch.no_grad():
            scorer.reading(net, torch.full((1, *shape), 0.5))
    except (RuntimeError, AssertionError) as error:  # torchvision's transformers assert their size
        size = " x ".join(map(str, shape[1:]))
        raise ParameterError(
            "%s cannot take images of %s as far as %r; leave out {size}", checkpoint.name, size, main_term(objective).layers[-1]
        ) from error


def units_of(checkpoint: Checkpoint, objective: Objective, text: str | None) -> tuple[tuple[int, ...], int]:
    """The units that `text` names (see `units_from`) for an objective, and how many there are to choose from."""
    about = main_term(objective)
    if not needs_unit(objective):
        if text is not None:
            raise ParameterError("%r asks for no unit besides its own; leave out {units}", objective)
        return (getattr(about, "unit", 0),), 1
    if isinstance(about, Direction):
        count, what = about.rows, about.vector if isinstance(about.vector, str) else "the vectors of Direction"
    else:
        name = about.layers[0]
        count, what = layer(checkpoint.net(), checkpoint.info.input_shape, name).units, f"layer {name} of {checkpoint.name}"
    return units_from(text, count, what), count


def units_from(asked: str | Iterable[int] | None, count: int, what: str) -> tuple[int, ...]:
    """Unit numbers from ``all``, ``0:16``, ``3,7,11`` or a mix of the last two; None is all of at most 20, else the first 16.

    Numbers are taken as they are.

    >>> units_from("0:3,7", 10, "layer conv1")
    (0, 1, 2, 7)
    """
    if asked is None:
        return tuple(range(count if count <= FEW_UNITS else FIRST_UNITS))
    text = asked if isinstance(asked, str) else ",".join(map(str, asked))
    if text.strip().lower() == "all":
        return tuple(range(count))
    units: list[int] = []
    for part in text.split(","):
        first, colon, last = (piece.strip() for piece in part.partition(":"))
        try:
            units += range(int(first or 0), int(last or count)) if colon else [int(first)]
        except ValueError:
            raise ParameterError("{units} %r is not all, a range such as 0:16, or a list such as 3,7,11", text) from None
    if not units:
        raise ParameterError("{units} %r names no unit; %s has units 0 to %s", text, what, count - 1)
    for unit in units:
        if not 0 <= unit < count:
            raise ValueError(f"no unit {unit} in {what}, which has {count} (0 to {count - 1})")
    return tuple(dict.fromkeys(units))


Pixels = np.ndarray[Any, Any]
# A picture's row, its pixels, and the frames of its optimization path if any were asked for (or the one strip of them).
Picture = tuple[Row, Pixels, list[Pixels]]


@dataclass(frozen=True)
class RenderJob:
    """Which units to render, and how. `position` is (row, column) in the layer's map; `sign` -1 is what a unit dislikes.

    `references` are the files and data sets that objective and recipe read, with their hashes (see `sources`),
    `start_reference` names the start image, `frames` is the number of frames to keep of the optimization path: as a GIF to
    look at, or with `frame_strip` as one PNG, side by side and without loss, to measure. `batch_size` is the largest batch
    (see `plan_batches`).
    """

    recipe: Recipe
    objective: Objective
    units: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    sign: int = 1
    batch_size: int | None = None
    start: Tensor | None = None
    start_reference: str = ""
    start_sha256: str = ""
    data_share: float = 1.0
    references: tuple[tuple[str, str], ...] = ()
    frames: int = 0
    frame_strip: bool = False

    @property
    def layer(self) -> str:
        return main_term(self.objective).layers[0]

    @property
    def position(self) -> list[int] | None:
        at = main_term(self.objective)
        return [at.y, at.x] if isinstance(at, Neuron) and at.y is not None and at.x is not None else None

    def identity(self, precision: str) -> dict[str, Any]:
        """What the images depend on besides checkpoint, unit, seed and sign."""
        return {
            "recipe": repr(self.recipe),
            "objective": repr(self.objective),
            "start": self.start_sha256,
            "batch_size": self.batch_size or BATCH_SIZE,
            "precision": precision,
            **({"references": [list(one) for one in self.references]} if self.references else {}),
            **({"film": self.frames} if self.frames else {}),
            **({"strip": True} if self.frame_strip else {}),
        }

    def keys(self, checkpoint: Checkpoint) -> list[tuple[Any, ...]]:
        """The keys of all its rows for a checkpoint."""
        name = checkpoint.id
        return [self.key(name, unit, seed) for unit in self.units for seed in self.seeds]

    def key(self, checkpoint: str, unit: int, seed: int) -> tuple[Any, ...]:
        return (checkpoint, *present([repr(self.recipe), repr(self.objective)]), unit, seed, self.sign)


def picture_key(row: Row) -> tuple[Any, ...]:
    """What tells one picture of a run from another, from its row; the same as `RenderJob.key`."""
    texts = present([row["recipe_text"], row["objective"]])
    return (row["checkpoint"], *texts, row["unit"], row["seed"], row["sign"])


def diverse(request: RenderJob, checkpoint: Checkpoint, group_size: int) -> RenderJob:
    """The request with `group_size` pictures of each unit and seed that are to differ in style.

    Complete similarity costs half of the score that the first unit reaches by itself, to two digits, so that the
    objective's text carries a plain number.
    """
    if isinstance(request.objective, Logit):
        raise ParameterError(
            "logits have no positions in which styles could differ; give {diversity} with a {layer}, or an {objective} such as "
            'Logit() - 2 * Diversity(layer="...", group_size=4)'
        )
    alone = render(checkpoint, request.objective, request.units[:1], request.recipe, sign=request.sign, batch_size=1)
    weight = float(f"{max(abs(next(alone).score) / 2, 1e-6):.2g}")
    objective = Sum(((1.0, request.objective), (-weight, Diversity(request.layer, group_size=group_size))))
    seeds = tuple(seed * group_size + face for seed in request.seeds for face in range(group_size))
    return replace(request, objective=objective, seeds=seeds)


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a gallery says about a checkpoint; accuracies are those of its description, never recomputed."""
    about = checkpoint.info
    return {
        "name": checkpoint.name,
        "ref": checkpoint.reference,
        "weights_sha256": checkpoint.sha256,
        "arch": about.arch,
        "attack_steps": about.attack_steps,
        "eps": about.eps,
        "norm": about.norm,
        "training": about.training,
        "data": about.data,
        "classes": list(about.classes),
        "clean": about.metrics.get("clean"),
        "robust": about.metrics.get("robust"),
        "robust_attack": about.metrics.get("attack", ""),
        "robust_n": about.metrics.get("n"),
    }


def missing(run: RunFolder, checkpoint: Checkpoint, request: RenderJob) -> list[UnitSeed]:
    """The (unit, seed) pairs of a job that the run does not hold yet."""
    there = {picture_key(row) for row in run.rows()}
    name = checkpoint.id
    return [(u, s) for u in request.units for s in request.seeds if request.key(name, u, s) not in there]


def render_into(run: RunFolder, checkpoint: Checkpoint, request: RenderJob, compute: Compute) -> Iterator[Row]:
    """Render what is missing of a job, save each image and then its row, and yield the rows as they come.

    The `processes` of `compute` share the batches; the main one saves the pictures of all, in the order of one process. All of
    them have opened `run`.
    """
    name = checkpoint.id
    run.remember("checkpoints", {name: checkpoint_facts(checkpoint)})
    planned = batches_of(run, checkpoint, request)
    if not planned:
        return
    for finished in compute.processes.interleave(_pictures(run, checkpoint, request, planned, compute)):
        for row, picture, frames in finished:
            if frames and run.writes:
                if request.frame_strip:
                    write_png(run.folder / row["strip"], frames[0], {})
                else:
                    write_gif(run.folder / row["film"], frames)
            yield run.add_image(row, picture, _file(name, request, row))


def batches_of(run: RunFolder, checkpoint: Checkpoint, request: RenderJob) -> list[Batch]:
    """The batches in which what the run does not hold yet of a request is rendered; a stopped batch keeps its size."""
    name, size = checkpoint.id, request.batch_size or BATCH_SIZE
    there = {picture_key(row): int(row.get("batch_size", size)) for row in run.rows()}
    pairs = [(unit, seed) for unit in request.units for seed in request.seeds]
    recorded = {pair: there[key] for pair in pairs if (key := request.key(name, *pair)) in there}
    return plan_batches(pairs, joint_group_size(request.objective, request.recipe), request.batch_size, recorded)


def _pictures(
    run: RunFolder, checkpoint: Checkpoint, request: RenderJob, planned: Sequence[Batch], compute: Compute
) -> Iterator[list[Picture]]:
    """This process's share of the planned batches, rendered."""
    batches = list(compute.processes.shard(planned))
    (net, folded), channels = net_for(run, checkpoint, request.objective.layers), checkpoint.info.input_shape[0]
    began = time.perf_counter()
    rendered = render_batches(
        net, request.objective, batches, request.recipe, shape=checkpoint.info.input_shape, compute=compute,
        sign=request.sign, start=request.start, frames=request.frames,
    )  # fmt: skip
    for batch in batches:
        finished = []
        for done in itertools.islice(rendered, len(batch.pairs)):
            row = row_of(checkpoint.id, checkpoint, request, done, folded)
            row["seconds"] = round(time.perf_counter() - began, 3)
            stem, frames = _file(checkpoint.id, request, row).removesuffix(".png"), []
            if done.frames is not None and request.frame_strip:
                row["strip"] = f"{stem}-way.png"
                frames = [to_uint8(in_tiles(torch.cat(list(done.frames), dim=2).float() / 255, channels))]
            elif done.frames is not None:
                row["film"] = f"{stem}.gif"
                frames = [in_tiles(frame, channels).movedim(0, -1).numpy() for frame in done.frames]
            finished.append((row, to_uint8(in_tiles(done.image, channels)), frames))
            began = time.perf_counter()
        yield finished


def images_of(run: RunFolder, checkpoint: Checkpoint, request: RenderJob, key: str = "image") -> dict[int, Tensor]:
    """The finished images of a job as they are on disk, over mid grey: unit -> (seeds, C, H, W) in [0, 1]."""
    rows = {picture_key(row): row for row in run.rows()}
    name, channels = checkpoint.id, checkpoint.info.input_shape[0]

    def one(unit: int, seed: int) -> Tensor:
        return read_png(run.folder / rows[request.key(name, unit, seed)][key], channels)

    return {unit: torch.stack([one(unit, seed) for seed in request.seeds]) for unit in request.units}


def image_hashes(run: RunFolder, checkpoint: Checkpoint, request: RenderJob) -> list[list[str]]:
    """The sha256 of the finished images of a job: of each unit in order, one for each seed."""
    files = {picture_key(row): run.folder / row["image"] for row in run.rows()}
    name = checkpoint.id
    return [[file_sha256(files[request.key(name, unit, seed)]) for seed in request.seeds] for unit in request.units]


def frames_of(run: RunFolder, checkpoint: Checkpoint, request: RenderJob) -> dict[int, Tensor]:
    """The optimization paths of a job with `frame_strip`: unit -> (seeds, frames, C, H, W) in [0, 1], the start first."""
    found = images_of(run, checkpoint, request, "strip")
    return {unit: torch.stack(strips.chunk(request.frames, dim=3), dim=1) for unit, strips in found.items()}


def row_of(name: str, checkpoint: Checkpoint, request: RenderJob, done: FeatureImage, folded: int = 0) -> Row:
    """The facts of a finished picture, without the file's name and the seconds it took."""
    return {
        "checkpoint": name,
        "weights_sha256": checkpoint.sha256,
        "layer": request.layer,
        "unit": done.unit,
        "position": request.position,
        "sign": done.sign,
        "seed": done.seed,
        "recipe": request.recipe.name,
        "recipe_text": repr(request.recipe),
        "objective": repr(request.objective),
        "score": number_or_none(done.score),
        "saturated_share": done.saturated_share,
        "trajectory": trajectory_of(done),
        "status": done.status(request.data_share),
        **_measured_against(request),
        "batch_size": done.batch_size,
        **({"folded": folded} if folded else {}),
        **({"nonfinite_gradients": done.nonfinite_gradients} if done.nonfinite_gradients else {}),
    }


def _measured_against(request: RenderJob) -> Row:
    """What "saturated" was measured against; without a data set there is nothing to measure it against."""
    return {"data_saturated_share": round(request.data_share, 5)} if request.data_share < 1 else {}


def restate(run: RunFolder, checkpoint: Checkpoint, request: RenderJob) -> None:
    """Say of a job's finished pictures whether they are saturated beside the images of this data set, not an earlier one's."""
    wanted, against = set(request.keys(checkpoint)), _measured_against(request)

    def restated(row: Row) -> Row:
        known = {key: row[key] for key in ("data_saturated_share",) if key in row}
        if picture_key(row) not in wanted or known == against:
            return row
        status = row["status"]
        if status != "dead":
            status = saturated_or_ok(row["saturated_share"], request.data_share)
        return {**{key: value for key, value in row.items() if key not in known}, "status": status, **against}

    run.amend(restated)


def number_or_none(value: float) -> float | None:
    """Five decimals, or None for what JSON has no number for."""
    return round(value, 5) if math.isfinite(value) else None


def trajectory_of(done: FeatureImage) -> list[list[float | None]]:
    return [[step, number_or_none(value)] for step, value in done.trajectory]


def _file(name: str, request: RenderJob, row: Row) -> str:
    at = "@{},{}".format(*request.position) if request.position else ""
    negative = "-neg" if row["sign"] < 0 else ""
    return f"images/{name}/{slug(request.recipe.name)}/{slug(request.layer)}/{row['unit']}{at}{negative}-s{row['seed']}.png"
