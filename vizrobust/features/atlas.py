"""Activation atlas: a layer's activations on many images, laid out in two dimensions, in a folder that can resume."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.data import Split
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.features.objectives import Direction
from vizrobust.features.picture_runs import RenderJob, checkpoint_facts, row_of
from vizrobust.features.pictures import in_tiles, to_uint8
from vizrobust.features.provenance import sources
from vizrobust.features.recipes import Recipe
from vizrobust.features.render import BATCH_SIZE, UnitSeed, plan_batches, render_batches
from vizrobust.features.unit_facts import finite, layer_maps
from vizrobust.models import Checkpoint
from vizrobust.models.folding import net_for
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams
from vizrobust.runs import Row, RunFolder, file_sha256, slug, write_atomic
from vizrobust.spec import spec

Array = np.ndarray[Any, Any]
LAYOUTS = ("tsne", "pca")
READING_BATCH = 32
FEWEST = 10  # a layout of fewer points shows nothing
PERPLEXITY = 30.0
COMPONENTS = 50  # t-SNE sees the leading principal components, as its authors have it (van der Maaten & Hinton 2008)
EDGES = (1.0, 99.0)  # percentiles of the layout at which the grid ends; what lies outside belongs to the border's cells


@spec
@dataclass(frozen=True)
class Atlas:
    """How an activation atlas is made (Carter et al. 2019).

    One activation vector of `layer` from each of `images` images, at a random place where the layer has places; laid
    out in two dimensions by `layout` (``tsne`` or ``pca``) and cut into `grid` x `grid` cells. A cell with at least
    `min_activations` vectors becomes a direction: their mean, multiplied with the inverse of all vectors' second moments where
    `whiten`. Pictures maximize dot product times cosine^`power` along it. `seed` fixes images, places, layout and noise.

    Whitening, which Carter et al. use on a million images of a large network, brings out in what cells differ. It is
    off here because of what it did to the pictures of small networks and a few thousand images: digits that plain
    means show are lost in noise, and neighbours on the sheet no longer look alike.

    >>> Atlas("conv2", grid=6)
    Atlas(layer="conv2", grid=6)
    """

    layer: str
    grid: int = 8
    images: int = 2000
    min_activations: int = 5
    layout: str = "tsne"
    whiten: bool = False
    power: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"Atlas: no layout {self.layout!r}; there are: {', '.join(LAYOUTS)}")
        for name, value, least in (
            ("grid", self.grid, 1),
            ("images", self.images, FEWEST),
            ("min_activations", self.min_activations, 1),
        ):
            if value < least:
                raise ValueError(f"Atlas: {name} must be at least {least}, got {value}")
        if self.power < 0:
            raise ValueError(f"Atlas: power must not be negative, got {self.power:g}")

    def sampled_images(self, labels: Tensor) -> Tensor:
        """(images,) int64, ascending: which images of a split with these labels (n,), the same share of every class.

        More images contain those of fewer. ``ValueError`` where there are not so many.
        """
        if self.images > len(labels):
            raise ValueError(
                f"an atlas of {self.images} images was asked for, but there are only {len(labels)}; ask for at most so many"
            )
        order = Streams(self.seed, ["atlas"], "images").permutation(len(labels))[0]
        place = torch.empty(len(labels), dtype=torch.float64)
        for kind in torch.unique(labels).tolist():
            own = order[labels[order] == kind]
            place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
        return order[place[order].argsort(stable=True)[: self.images]].sort().values

    def activation_vectors(
        self,
        net: nn.Module,
        images: Split,
        index: Tensor,
        *,
        shape: tuple[int, int, int],
        compute: Compute | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """(n, channels) float32: the layer's vector for each image at `index` (n,), at one random place of its map.

        The place depends on the seed and the image's number alone, so networks with equal maps are seen at the same.
        In float32, in batches of one size; `progress` is called with the number of images after each. ``ValueError`` for
        a layer without units, for images that the network does not take, and for values that are not finite.
        """
        there = tuple(images.take(index[:1]).shape[1:])
        if there != shape:
            sizes = [" x ".join(map(str, one)) for one in (there, shape)]
            raise ParameterError("the images are %s, the network takes %s; give other {data}", *sizes)
        where = Streams(self.seed, index.tolist(), "place").uniform().double()
        compute, found = compute or Compute(), []
        for places, maps in layer_maps(net, self.layer, images, index, shape=shape, compute=compute, size=READING_BATCH):
            flat = maps.reshape(*maps.shape[:2], -1)
            at = (where[places] * flat.shape[2]).long().flatten()
            found.append(flat[torch.arange(len(flat)), :, at])
            if progress is not None:
                progress(len(places))
        return finite(torch.cat(found), self.layer, "so it has no atlas")

    def positions(self, *several: Array) -> Array:
        """(n, channels) -> (n, 2) float64: vectors that point alike come close, whatever their lengths.

        Of several networks' vectors of the same images, one place for each image: their squared distances are added, each
        network's over its own variance. t-SNE runs in one thread: sums over several come out in the order in which these end.
        ``ValueError`` for fewer than 10 vectors, and where all of them are one.
        """
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if len(several[0]) < FEWEST:
            raise ValueError(f"an atlas needs at least {FEWEST} images, got {len(several[0])}; give more of them")
        parts = []
        for vectors in several:
            x = np.asarray(vectors, np.float64)
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            if np.ptp(x, axis=0).max(initial=0.0) < 1e-9:
                raise ValueError(
                    f"layer {self.layer!r} answers all images alike, so there is nothing to lay out; choose another layer"
                )
            parts.append(x if len(several) == 1 else x / np.sqrt(x.var(0).sum()))
        x = np.hstack(parts)
        most = 2 if self.layout == "pca" else COMPONENTS
        with threadpool_limits(1):
            x = PCA(min(most, *x.shape), svd_solver="full").fit_transform(x)
            if self.layout == "tsne":
                perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
                start = x[:, :2] / max(x[:, 0].std(), 1e-12) * 1e-4
                start = np.pad(start, ((0, 0), (0, 2 - start.shape[1])))
                x = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=self.seed).fit_transform(x)
        return np.pad(x, ((0, 0), (0, 2 - x.shape[1]))).astype(np.float64)

    def cells(self, places: Array) -> Cells:
        """The cells of vectors that lie at places (n, 2). ``ValueError`` where every cell is left empty."""
        cell = self.cell_of(places)
        counts = np.bincount(cell, minlength=self.grid**2)
        if counts.max() < self.min_activations:
            raise ValueError(
                f"a grid of {self.grid} x {self.grid} leaves fewer than {self.min_activations} of {len(cell)} images in "
                "every cell; make it coarser or take more images"
            )
        return Cells(cell, counts, counts >= self.min_activations)

    def cell_of(self, places: Array) -> Array:
        """(n, 2) -> (n,) int64: row * grid + column; the first coordinate runs right, the second down."""
        low, high = np.percentile(places, EDGES, axis=0)
        share = (places - low) / np.where(high > low, high - low, 1.0)
        column, row = np.clip(np.floor(share * self.grid), 0, self.grid - 1).astype(np.int64).T
        return row * self.grid + column

    def directions(self, vectors: Array, cells: Cells) -> Array:
        """(cells, channels) float32 of length 1: what the pictures maximize; zeros for cells that are not full."""
        x = np.asarray(vectors, np.float64)
        wanted = cells.means(x)
        if self.whiten:
            from sklearn.covariance import ledoit_wolf

            # Second moments about zero, as Lucid has them; shrunk, since few images cannot tell those of many channels.
            moments, _ = ledoit_wolf(x, assume_centered=True)
            wanted = np.linalg.lstsq(moments, wanted.T, rcond=None)[0].T
        return (wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Cells:
    """`cell` (n,): each vector's cell; `counts` and `full` (cells,): how many vectors it has, and whether these are enough."""

    cell: Array = field(repr=False)
    counts: Array
    full: Array = field(repr=False)

    def means(self, vectors: Array) -> Array:
        """(n, channels) -> (cells, channels) float64; zeros for cells that are not full."""
        sums = np.zeros((len(self.counts), vectors.shape[1]))
        np.add.at(sums, self.cell, np.asarray(vectors, np.float64))
        return np.where(self.full[:, None], sums / np.maximum(self.counts, 1)[:, None], 0.0)

    def members(self, number: int) -> Array:
        """Which vectors lie in a cell."""
        return np.flatnonzero(self.cell == number)


@dataclass(frozen=True)
class Plan:
    """An atlas of some images, and how its cells' directions are rendered.

    Networks that are laid out `together` have one layout: a cell has the same images in each one's atlas.
    """

    atlas: Atlas
    source: ImageSource
    recipe: Recipe
    batch_size: int | None = None
    together: tuple[Checkpoint, ...] = ()

    def identity(self, precision: str) -> dict[str, Any]:
        """What the pictures depend on besides the checkpoint."""
        images = {key: self.source.identity[key] for key in ("data", "split", "of", "sha256")}
        references = [list(one) for one in sources(self.recipe)]
        return {
            "atlas": repr(self.atlas), "images": images, "recipe": repr(self.recipe), "start": "",
            "batch_size": self.batch_size or BATCH_SIZE,
            "precision": precision, **({"references": references} if references else {}),
            **({"together": [one.id for one in self.together]} if self.together else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class AtlasLayout:
    """A checkpoint's atlas before it is rendered: its cells, their classes by frequency, and the directions as a request."""

    cells: Cells
    classes: dict[int, dict[str, int]]
    request: RenderJob


def atlas_layout(
    run: RunFolder, checkpoint: Checkpoint, plan: Plan, compute: Compute, progress: Callable[[int], object] | None = None
) -> AtlasLayout:
    """Activations, layout and directions of a checkpoint; those that the run holds are read, the others made and saved.

    `progress` is called with the number of images after each batch. Raises ``ValueError`` as `Atlas` does, and where the
    run's directions are no longer those that its pictures were rendered along.
    """
    atlas, split = plan.atlas, plan.source.whole
    folder = run.folder / "atlas" / checkpoint.id
    index = atlas.sampled_images(split.labels)

    def vectors_of(one: Checkpoint) -> Array:
        return _kept(
            run.folder / "atlas" / one.id / "activations.npy",
            lambda: atlas.activation_vectors(
                one.net(), split, index, shape=one.info.input_shape, compute=compute, progress=progress
            ).numpy(),
        )

    vectors, layout = vectors_of(checkpoint), folder / "layout.npy"
    if plan.together:
        layout = run.folder / "atlas" / "layout.npy"
    cells = atlas.cells(_kept(layout, lambda: atlas.positions(*map(vectors_of, plan.together or (checkpoint,)))))
    directions = folder / "directions.npy"
    _kept(directions, lambda: atlas.directions(vectors, cells))
    sha256 = file_sha256(directions)
    known = run.info.get("atlas", {}).get(checkpoint.id, {}).get("directions_sha256", sha256)
    if known != sha256:
        raise ParameterError("%r is not the file that this run began with; give {out} a new folder", str(directions))
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
    request = RenderJob(
        plan.recipe, objective, full, (atlas.seed,), batch_size=plan.batch_size, data_share=plan.source.data.saturated_share,
        references=((str(directions), sha256),),
    )  # fmt: skip
    return AtlasLayout(cells, classes, request)


def atlas_rows(run: RunFolder, checkpoint: Checkpoint) -> list[Row]:
    """The finished cells of a checkpoint."""
    return [row for row in run.rows() if row["checkpoint"] == checkpoint.id]


def atlas_into(run: RunFolder, checkpoint: Checkpoint, plan: Plan, there: AtlasLayout, compute: Compute) -> Iterator[Row]:
    """Render the cells that the run does not hold yet, save each picture and then its row, and yield the rows.

    A row is that of a feature image (`unit` is row * grid + column) with `row`, `column`, `count`, the number of
    activations in the cell, `classes`, how many of their images are of which class, the most frequent first, and
    `references`, the file of directions with its hash.
    """
    request, grid = there.request, plan.atlas.grid
    size = request.batch_size or BATCH_SIZE
    recorded = {(row["unit"], row["seed"]): int(row.get("batch_size", size)) for row in atlas_rows(run, checkpoint)}
    pairs = [(unit, seed) for unit in request.units for seed in request.seeds]
    batches = plan_batches(pairs, batch_size=request.batch_size, recorded=recorded)
    began = time.perf_counter()
    net, folded = net_for(run, checkpoint, request.objective.layers) if batches else (checkpoint.net(), 0)
    for done in render_batches(
        net, request.objective, batches, request.recipe, shape=checkpoint.info.input_shape, compute=compute
    ):
        row, column = divmod(done.unit, grid)
        facts = {
            **row_of(checkpoint.id, checkpoint, request, done, folded),
            "row": row, "column": column, "count": int(there.cells.counts[done.unit]), "classes": there.classes[done.unit],
            "references": [list(one) for one in request.references],
            "seconds": round(time.perf_counter() - began, 3),
        }  # fmt: skip
        name = f"images/{checkpoint.id}/{slug(request.recipe.name)}/{slug(request.layer)}/{row}-{column}.png"
        yield run.add_image(facts, to_uint8(in_tiles(done.image, checkpoint.info.input_shape[0])), name)
        began = time.perf_counter()


def missing_cells(run: RunFolder, checkpoint: Checkpoint, there: AtlasLayout) -> list[UnitSeed]:
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
