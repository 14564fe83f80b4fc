"""Which feature images are rendered together, in batches of which size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.attacks import per_image
from vizrobust.compute import Compute, size_class
from vizrobust.data import saturated_share
from vizrobust.features.objectives import Objective, group_size_of, negated
from vizrobust.features.parametrizations import (
    AlphaChannel,
    Parametrization,
    alpha_penalized,
    composited,
    for_shape,
    over_background,
)
from vizrobust.features.pictures import COLOURS, check_pixels, in_tiles, png_bytes, to_uint8
from vizrobust.features.recipes import Recipe, plain
from vizrobust.features.scorer import ObjectiveFunction, Scorer, as_objective, redirected_relu
from vizrobust.features.transforms import transformed
from vizrobust.models import Checkpoint, evaluating
from vizrobust.rng import Streams, seeded

UnitSeed = tuple[int, int]
BATCH_SIZE = 16


class Batch(NamedTuple):
    """The (unit, seed) pairs of one batch, and how many images are computed for them; the last pair fills what is left."""

    pairs: tuple[UnitSeed, ...]
    size: int


def plan_batches(
    pairs: Sequence[UnitSeed],
    group_size: int = 1,
    batch_size: int | None = None,
    recorded: Mapping[UnitSeed, int] | None = None,
) -> list[Batch]:
    """The batches in which the pairs are rendered, at most `batch_size` images each (None: 16, or fewer if there are fewer).

    The last, smaller batch has the next size of `size_class` that holds it, so 17 pictures cost 17 and 21 cost 22. `recorded`
    are pairs that exist already, with the size of the batch that they were rendered in. A batch that was stopped half
    way keeps its size, so that its pictures come out as they would have without the stop; otherwise what is missing of
    a batch gets a size of its own. Groups of `group_size`
    consecutive seeds of a unit stay together. Raises ``ValueError`` where a batch cannot hold a group.

    >>> [(len(batch.pairs), batch.size) for batch in plan_batches([(unit, 0) for unit in range(19)])]
    [(16, 16), (3, 3)]
    >>> plan_batches([(0, 0), (0, 1), (1, 1), (2, 0)], group_size=2, batch_size=5)
    [Batch(pairs=((0, 0), (0, 1), (1, 1)), size=4), Batch(pairs=((2, 0),), size=2)]
    """
    if batch_size is not None and batch_size < group_size:
        raise ValueError(f"a batch of {batch_size} has no room for a group of {group_size} images; make it at least {group_size}")
    there, asked, groups = recorded or {}, set(pairs), groups_of(pairs, group_size)
    most = max(1, (batch_size or BATCH_SIZE) // group_size)
    if batch_size is None:
        most = max(1, min(most, len(groups)))
    planned = []
    for start in range(0, len(groups), most):
        batch = [[pair for pair in group if pair in asked] for group in groups[start : start + most]]
        missing = [group for group in batch if any(pair not in there for pair in group)]
        size = size_class(len(batch), most)
        if len(missing) < len(batch) and all(there.get(pair) != size * group_size for group in batch for pair in group):
            size = size_class(len(missing), most)
        found = tuple(pair for group in missing for pair in group if pair not in there)
        if found:
            planned.append(Batch(found, size * group_size))
    return planned


def groups_of(pairs: Sequence[UnitSeed], group_size: int) -> list[list[UnitSeed]]:
    """Each pair alone, or the whole groups of seeds that the pairs belong to.

    >>> groups_of([(3, 1), (3, 4)], 2)
    [[(3, 0), (3, 1)], [(3, 4), (3, 5)]]
    """
    if group_size == 1:
        return [[pair] for pair in pairs]
    there = dict.fromkeys((unit, seed // group_size) for unit, seed in pairs)
    return [[(unit, group * group_size + member) for member in range(group_size)] for unit, group in there]


Shape = tuple[int, int, int]
TRAJECTORY_POINTS = 21
SATURATED_ABOVE = 0.25


def saturated_or_ok(share: float, data_share: float) -> str:
    """The status of a picture whose unit has a gradient, by its share of extreme pixels and that of the data's own images."""
    return "saturated" if share > data_share + SATURATED_ABOVE else "ok"


@dataclass(frozen=True)
class FeatureImage:
    """One feature image: `image` (C, H, W) in [0, 1] on the CPU, with one plane more where it has an opacity.

    `score` is the objective of the finished image without transforms (its negative where `sign` is -1), NaN where the
    network's outputs are not finite. `trajectory` holds (step, score) pairs, `frames` (frames, C, H, W) uint8 pictures
    of the optimization path if any were asked for. `had_gradient` is False where the unit never had a gradient,
    `batch_size` is the size of the batch in which the image was computed, and `nonfinite_gradients` counts the
    gradient entries, over all steps, that were NaN or infinite and were taken as 0. Images with an opacity are scored
    over mid grey, and over random backgrounds during the optimization. `channels` are those of the network's images, as
    far as bands that are no colours are shown apart. Notebooks show the image.

    >>> from vizrobust.features import Logit, plain
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> (found,) = render(net, Logit(), [2], plain(steps=2), shape=(1, 4, 4))
    >>> found.unit, found.image.shape
    (2, torch.Size([1, 4, 4]))
    """

    unit: int
    seed: int
    sign: int
    image: Tensor = field(repr=False)
    score: float
    trajectory: tuple[tuple[int, float], ...] = field(repr=False)
    saturated_share: float
    had_gradient: bool
    frames: Tensor | None = field(default=None, repr=False)
    batch_size: int = 1
    nonfinite_gradients: int = 0
    channels: int = 3

    def status(self, data_share: float) -> str:
        """``dead``, ``saturated`` (over 25 points more extreme pixels than the data's own images have) or ``ok``."""
        return "dead" if not self.had_gradient else saturated_or_ok(self.saturated_share, data_share)

    def pixels(self, opaque: bool = False) -> np.ndarray[Any, Any]:
        """(H, W) or (H, W, C) uint8, `opaque` over mid grey; bands that are no colours are side by side, each grey."""
        shown = over_background(self.image) if opaque and len(self.image) == self.channels + 1 else self.image
        return to_uint8(in_tiles(shown, self.channels))

    def _repr_png_(self) -> bytes:
        return png_bytes(self.pixels())


def render(
    net: nn.Module | Checkpoint,
    objective: Objective | ObjectiveFunction,
    units: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    *,
    shape: Shape | None = None,
    compute: Compute | None = None,
    sign: int = 1,
    start: Tensor | None = None,
    batch_size: int | None = None,
    frames: int = 0,
) -> Iterator[FeatureImage]:
    """Optimize one image for each unit and seed, unit by unit, and yield each when it is done.

    `net` is a checkpoint, or any network of images in [0, 1], which then needs `shape` (C, H, W). `objective` may be
    a plain function (activations by layer, images, units) -> (N,) scores. `recipe` is `plain()` unless named. `sign`
    -1 renders what the unit dislikes, `start` (C, H, W) in [0, 1] begins from an image instead of noise, `frames` keeps
    that many pictures of the optimization path. Random numbers depend on (unit, seed) alone, so every network gets the
    same start and the same transforms. An image depends on the size of its batch in its last bits, and on nothing else
    that is rendered with it; `batch_size` is the largest (None: 16), see `plan_batches`. Where an objective couples
    groups of g images, the seeds k·g … k·g + g - 1 of a unit are one group, which is always rendered whole.

    Raises ``ValueError`` for an unknown layer or unit, a start image of another shape or outside [0, 1], and a batch too
    small for a group.

    >>> from vizrobust.features import Logit, plain
    >>> from vizrobust.models import load_checkpoint
    >>> [done.unit for done in render(load_checkpoint("mnist-k8"), Logit(), [3, 5], plain(steps=2))]
    [3, 5]
    """
    if isinstance(net, Checkpoint):
        shape = shape or net.info.input_shape
        net = net.net()
    if shape is None:
        raise ValueError("render needs the shape (C, H, W) of the network's images, unless it is given a checkpoint")
    recipe, compute = recipe or plain(), compute or Compute()
    own = as_objective(objective, net, _image_shape(recipe, shape), compute)
    batches = plan_batches([(unit, seed) for unit in units for seed in seeds], joint_group_size(own, recipe), batch_size)
    yield from render_batches(net, own, batches, recipe, shape=shape, compute=compute, sign=sign, start=start, frames=frames)


def render_batches(
    net: nn.Module,
    objective: Objective,
    batches: Sequence[Batch],
    recipe: Recipe,
    *,
    shape: Shape,
    compute: Compute,
    sign: int = 1,
    start: Tensor | None = None,
    frames: int = 0,
) -> Iterator[FeatureImage]:
    """As `render`, for batches of (unit, seed) pairs that were planned before, in their order."""
    for unit in (unit for batch in batches for unit, _ in batch.pairs):
        if unit < 0:
            raise ValueError(f"no unit {unit}; units are counted from 0")
    if not batches:
        return
    size, group_size = _image_shape(recipe, shape), joint_group_size(objective, recipe)
    if shape[0] not in COLOURS and isinstance(recipe.parametrization, AlphaChannel):
        raise ValueError(
            f"an opacity belongs to grey or to colours, and this network takes {shape[0]} bands; take another recipe"
        )
    if start is not None:
        check_pixels(start, "the start image")
    compute.place(net)
    signed = objective if sign > 0 else negated(objective)
    scorers: dict[int, Scorer] = {}
    for batch in batches:
        rows = batch.size // group_size * group_size
        if rows not in scorers:
            scorers[rows] = Scorer.of(net, signed, size, compute, rows)
        pairs = [pair for group in groups_of(batch.pairs, group_size) for pair in group]
        filled = [*pairs, *pairs[-group_size:] * ((rows - len(pairs)) // group_size)]
        done = _render_batch(scorers[rows], filled, recipe, size, compute, sign, start, frames, group_size)
        yield from (one for one in done[: len(pairs)] if (one.unit, one.seed) in batch.pairs)


def _image_shape(recipe: Recipe, shape: Shape) -> Shape:
    return shape if recipe.size is None else (shape[0], recipe.size, recipe.size)


def joint_group_size(objective: Objective, recipe: Recipe) -> int:
    """How many images form a group, by the objective or the parametrization; ``ValueError`` where they disagree."""
    one, two = group_size_of(objective), getattr(recipe.parametrization, "group_size", 1)
    if one > 1 and two > 1 and one != two:
        raise ValueError(f"the objective groups {one} images and the parametrization {two}; give both the same group_size")
    return max(one, two)


LARGEST_SEED = (1 << 63) - 1


def _render_batch(
    scorer: Scorer,
    batch: list[UnitSeed],
    recipe: Recipe,
    shape: Shape,
    compute: Compute,
    sign: int,
    start: Tensor | None,
    frames: int,
    group_size: int,
) -> list[FeatureImage]:
    unit = torch.tensor([unit for unit, _ in batch], device=compute.device)
    streams = Streams(0, [f"{unit}/{seed}" for unit, seed in batch], "render")
    to_image, draws = for_shape(recipe.parametrization, shape), streams.child("transforms")
    weight = next(scorer.net.parameters(), torch.zeros(()))
    first = _first(recipe, shape, streams.child("start"), start).to(compute.device, weight.dtype)
    z, step = first, recipe.optimizer.begin(first)
    pictures, kept = [], even(frames, recipe.steps + 1)

    def ascend(z: Tensor, units: Tensor, draws: Streams) -> tuple[Tensor, Tensor]:
        """Scores (N,), the mean over random crops where there are several, and their gradient in z."""
        z = z.detach().requires_grad_()
        with compute.full_precision():
            image = to_image(z)
            views = compute.images(transformed(composited(to_image, image, draws), recipe.transforms, draws))
        scores = scorer(views, units.repeat(len(views) // len(z))).reshape(-1, len(z)).mean(0)
        if not scores.requires_grad:
            raise ValueError(
                "what the objective reads has no gradient with respect to the image (torch.no_grad, whole numbers, numpy), so no "
                "picture can be made of it; name a layer before that"
            )
        (grad,) = torch.autograd.grad(alpha_penalized(to_image, scores, image).sum(), z)
        return scores.detach(), grad

    def redirected(z: Tensor, draws: Streams, dead: Tensor) -> Tensor:
        """The gradients of images that have none, through redirected ReLUs; rows of other images do not count."""
        if scorer.images_come_first(shape, compute):
            with redirected_relu():
                return ascend(z, unit, draws)[1]
        found = torch.zeros_like(z)
        for group in sorted({int(row) // group_size for row in dead.nonzero()[:, 0]}):
            rows = slice(group * group_size, (group + 1) * group_size)
            with redirected_relu(one_image=True):
                found[rows] = ascend(z[rows], unit[rows], draws.take(rows))[1]
        return found

    scores: list[Tensor] = []
    had_gradient = torch.zeros(len(batch), dtype=torch.bool, device=compute.device)
    nonfinite = torch.zeros(len(batch), dtype=torch.int64, device=compute.device)
    # A network that draws random numbers draws the same ones in every run.
    with evaluating(scorer.net), seeded(int(streams.keys[0]) & LARGEST_SEED, compute.device):
        with compute.autocast():
            for t in range(recipe.steps):
                if t in kept:
                    pictures.append(_frame(to_image, z))
                again = draws.take(slice(None))
                score, grad = ascend(z, unit, draws)
                largest = _largest(grad)
                if not largest.isfinite().all():
                    nonfinite += (~grad.isfinite()).flatten(1).sum(1)
                    grad = _finite(grad)
                    largest = _largest(grad)
                alive = largest > 0
                if not alive.all():
                    grad = torch.where(per_image(alive, grad), grad, _finite(redirected(z, again, ~alive)))
                scores.append(score)
                had_gradient |= alive
                with torch.no_grad():
                    z = to_image.constrain(_finite_or(step(z.detach(), grad), z), first)
        with torch.no_grad():
            image = to_image(z)
            finished = composited(to_image, image)
            final = scorer(compute.images(finished), unit).float()
            if recipe.steps in kept:
                pictures.append(_frame(to_image, z))
    stacked = torch.stack(pictures, 1) if pictures else None
    shares = saturated_share(finished)
    found = _feature_images(batch, sign, image, shares, final, torch.stack(scores).float(), had_gradient, stacked)
    return [
        replace(one, nonfinite_gradients=count, channels=shape[0]) for one, count in zip(found, nonfinite.tolist(), strict=True)
    ]


def _largest(grad: Tensor) -> Tensor:
    """(N, ...) -> (N,): the largest absolute entry, NaN or infinite where one is."""
    return grad.flatten(1).abs().amax(1)


def _finite(grad: Tensor) -> Tensor:
    return torch.where(grad.isfinite(), grad, 0.0)


def _finite_or(z: Tensor, before: Tensor) -> Tensor:
    """z, with the entries of `before` where a step overflowed."""
    return torch.where(z.isfinite(), z, before)


def _first(recipe: Recipe, shape: Shape, streams: Streams, start: Tensor | None) -> Tensor:
    if start is None:
        return recipe.parametrization.init(shape, streams)
    if start.shape != shape:
        raise ValueError(f"the start image is {tuple(start.shape)}, the recipe's images are {tuple(shape)}; resize it")
    invert = getattr(recipe.parametrization, "invert", None)
    if invert is None:
        raise ValueError(f"recipe {recipe.name!r} cannot start from an image; take plain, fourier or gradient")
    first: Tensor = invert(start[None])
    return first.repeat(len(streams), *[1] * (first.dim() - 1))


def even(count: int, steps: int) -> set[int]:
    """At most `count` of the steps 0 … steps-1, evenly, the first and the last among them."""
    if count < 2:
        return {steps - 1} if count else set()
    return {round(point * (steps - 1) / (count - 1)) for point in range(count)}


@torch.no_grad()
def _frame(to_image: Parametrization, z: Tensor) -> Tensor:
    """(N, C, H, W) uint8 on the CPU."""
    return (composited(to_image, to_image(z)).float() * 255).round().to("cpu", torch.uint8)


def _feature_images(
    batch: list[UnitSeed],
    sign: int,
    image: Tensor,
    shares: Tensor,
    final: Tensor,
    scores: Tensor,
    had_gradient: Tensor,
    frames: Tensor | None,
) -> list[FeatureImage]:
    steps = len(scores)
    kept = sorted(even(TRAJECTORY_POINTS, steps))
    images, ends, ways = image.cpu().contiguous(), final.tolist(), scores[kept].T.tolist()
    extreme, has_gradient = shares.tolist(), had_gradient.tolist()
    return [
        FeatureImage(
            unit, seed, sign, images[i], ends[i],
            tuple((step, round(value, 5)) for step, value in zip([*kept, steps], [*ways[i], ends[i]], strict=True)),
            round(extreme[i], 4), has_gradient[i], None if frames is None else frames[i], len(batch),
        )
        for i, (unit, seed) in enumerate(batch)
    ]  # fmt: skip
