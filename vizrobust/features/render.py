"""The render loop: optimize images to excite units, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import saturated_share
from vizrobust.features.objectives import Objective, group_size_of, main_term, negated, reference_key, references_of
from vizrobust.features.parametrizations import Parametrization, alpha_penalized, composited, for_shape
from vizrobust.features.pictures import png_bytes, reference_image, to_uint8
from vizrobust.features.recipes import Recipe, plain
from vizrobust.features.redirected_relu import redirected_relu
from vizrobust.features.transforms import transformed
from vizrobust.models import ActivationReader, Checkpoint, evaluating
from vizrobust.rng import Streams

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Scorer:
    """``scorer(image, unit)``: (N, C, H, W), (N,) int64 -> (N,) scores; differentiable. Call it with the network borrowed."""

    net: nn.Module
    objective: Objective
    reading: ActivationReader
    references: Mapping[str, Tensor] = field(repr=False)

    @staticmethod
    def of(net: nn.Module, objective: Objective, shape: Shape, compute: Compute, batch_size: int = 1) -> Scorer:
        """For images of `shape`. What the objective compares with is looked up here, once, at the same batch size.

        Raises ``ValueError`` for an unknown layer or an objective without one, and where a reference is no image.
        """
        main_term(objective)
        reading = ActivationReader.of(net, shape, objective.layers)
        references: dict[str, Tensor] = {}
        for reference in references_of(objective):
            x = compute.images(reference_image(reference, shape).to(_dtype(net)).expand(batch_size, *shape))
            with evaluating(net), torch.no_grad(), compute.autocast():
                found = reading(net, x)
            references |= {reference_key(layer, reference): found[layer][:1].clone() for layer in objective.layers}
        return Scorer(net, objective, reading, references)

    def activations(self, image: Tensor) -> Mapping[str, Tensor]:
        """What the objective reads for these images: their activations, and those of the references."""
        return {**self.reading(self.net, image), **self.references}

    def __call__(self, image: Tensor, unit: Tensor) -> Tensor:
        return self.objective(self.activations(image), image, unit)


def _dtype(net: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in net.parameters()), torch.float32)


BATCH_SIZE = 16
TRAJECTORY_POINTS = 21
SATURATED_ABOVE = 0.25

UnitSeed = tuple[int, int]  # a unit and a seed


@dataclass(frozen=True)
class FeatureImage:
    """One feature image: `image` (C, H, W) in [0, 1] on the CPU, one plane more where it has an opacity; notebooks show it.

    `score` is the objective (turned round where `sign` is -1) of the finished image without transforms; `trajectory` holds
    (step, score) pairs on the way, `frames` (frames, C, H, W) uint8 pictures if any were asked for; `had_gradient` is False
    where the unit never had a gradient. What is seen of a picture with an opacity is it over mid grey, on the way of its
    trajectory over random grounds.
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

    def status(self, data_share: float) -> str:
        """``dead``, ``saturated`` (over 25 points more extreme pixels than the data's own images have) or ``ok``."""
        if not self.had_gradient:
            return "dead"
        return "saturated" if self.saturated_share > data_share + SATURATED_ABOVE else "ok"

    def _repr_png_(self) -> bytes:
        return png_bytes(to_uint8(self.image))


def render(
    net: nn.Module | Checkpoint,
    objective: Objective,
    units: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    *,
    shape: Shape | None = None,
    compute: Compute | None = None,
    sign: int = 1,
    start: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    frames: int = 0,
) -> Iterator[FeatureImage]:
    """Optimize one image for each unit and seed, unit by unit, and yield each when it is done.

    `net` is a checkpoint, or any network of images in [0, 1], which then needs `shape` (C, H, W). `recipe` is
    `plain()` unless told otherwise. `sign` -1 renders what the unit dislikes, `start` (C, H, W) begins from an image
    instead of noise, `frames` keeps that many pictures of the way. A stream of random numbers belongs to (unit, seed),
    so every network gets the same start and the same transforms, and at one `batch_size` an image is the same bit for
    bit whatever else is rendered with it. Where an objective couples g images, the seeds k·g … k·g + g - 1 of
    a unit are one group; a group is always rendered whole.

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
    yield from render_pairs(
        net, objective, [(unit, seed) for unit in units for seed in seeds], recipe or plain(), shape=shape,
        compute=compute or Compute(), sign=sign, start=start, batch_size=batch_size, frames=frames,
    )  # fmt: skip


def render_pairs(
    net: nn.Module,
    objective: Objective,
    jobs: Sequence[UnitSeed],
    recipe: Recipe,
    *,
    shape: Shape,
    compute: Compute,
    sign: int = 1,
    start: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    frames: int = 0,
) -> Iterator[FeatureImage]:
    """As `render`, for any list of (unit, seed) pairs."""
    for unit, _ in jobs:
        if unit < 0:
            raise ValueError(f"no unit {unit}; units are counted from 0")
    if not jobs:
        return
    group_size = joint_group_size(objective, recipe)
    if batch_size < group_size:
        raise ValueError(f"a batch of {batch_size} has no room for a group of {group_size} images; make it at least {group_size}")
    size = shape if recipe.size is None else (shape[0], recipe.size, recipe.size)
    rows = batch_size // group_size * group_size
    compute.place(net)
    scorer = Scorer.of(net, objective if sign > 0 else negated(objective), size, compute, rows)
    wanted = set(jobs)
    groups = _groups(jobs, group_size)
    for index, count in full_batches(len(groups), rows // group_size):
        batch = [job for i in index.tolist() for job in groups[i]]
        done = _render_batch(scorer, batch, recipe, size, compute, sign, start, frames)
        yield from (one for one in done[: count * group_size] if (one.unit, one.seed) in wanted)


def joint_group_size(objective: Objective, recipe: Recipe) -> int:
    """How many images form a group, by the objective or the parametrization; ``ValueError`` where they disagree."""
    one, two = group_size_of(objective), getattr(recipe.parametrization, "group_size", 1)
    if one > 1 and two > 1 and one != two:
        raise ValueError(f"the objective groups {one} images and the parametrization {two}; give both the same group_size")
    return max(one, two)


def in_batches(jobs: Sequence[UnitSeed], group_size: int, batch_size: int) -> list[list[UnitSeed]]:
    """The jobs as `render_pairs` puts them into its batches.

    >>> in_batches([(0, 0), (0, 1), (1, 1), (2, 0)], group_size=2, batch_size=5)
    [[(0, 0), (0, 1), (1, 1)], [(2, 0)]]
    """
    wanted, groups, count = set(jobs), _groups(jobs, group_size), batch_size // group_size
    batches = [groups[start : start + count] for start in range(0, len(groups), count)]
    return [[job for group in batch for job in group if job in wanted] for batch in batches]


def _groups(jobs: Sequence[UnitSeed], group_size: int) -> list[list[UnitSeed]]:
    """Each job alone, or the whole groups that the jobs belong to."""
    if group_size == 1:
        return [[job] for job in jobs]
    there = dict.fromkeys((unit, seed // group_size) for unit, seed in jobs)
    return [[(unit, group * group_size + face) for face in range(group_size)] for unit, group in there]


def _render_batch(
    scorer: Scorer,
    batch: list[UnitSeed],
    recipe: Recipe,
    shape: Shape,
    compute: Compute,
    sign: int,
    start: Tensor | None,
    frames: int,
) -> list[FeatureImage]:
    unit = torch.tensor([unit for unit, _ in batch], device=compute.device)
    streams = Streams(0, [f"{unit}/{seed}" for unit, seed in batch], "render")
    to_image, draws = for_shape(recipe.parametrization, shape), streams.child("transforms")
    weight = next(scorer.net.parameters(), torch.zeros(()))
    first = _first(recipe, shape, streams.child("start"), start).to(compute.device, weight.dtype)
    z, step = first, recipe.optimizer.begin(first)
    pictures, kept = [], even(frames, recipe.steps + 1)

    def ascend(z: Tensor, draws: Streams) -> tuple[Tensor, Tensor]:
        """Scores (N,), the mean over random crops where there are several, and their gradient in z."""
        z = z.detach().requires_grad_()
        with compute.full_precision():
            image = to_image(z)
            views = compute.images(transformed(composited(to_image, image, draws), recipe.transforms, draws))
        scores = scorer(views, unit.repeat(len(views) // len(z))).reshape(-1, len(z)).mean(0)
        (grad,) = torch.autograd.grad(alpha_penalized(to_image, scores, image).sum(), z)
        return scores.detach(), grad

    scores: list[Tensor] = []
    had_gradient = torch.zeros(len(batch), dtype=torch.bool, device=compute.device)
    with evaluating(scorer.net):
        with compute.autocast():
            for t in range(recipe.steps):
                if t in kept:
                    pictures.append(_frame(to_image, z))
                again = draws.take(slice(None))
                score, grad = ascend(z, draws)
                has_gradient_now = grad.flatten(1).abs().amax(1) > 0
                if not has_gradient_now.all():
                    with redirected_relu():
                        grad = torch.where(has_gradient_now.reshape(-1, *[1] * (z.dim() - 1)), grad, ascend(z, again)[1])
                scores.append(score)
                had_gradient |= has_gradient_now
                with torch.no_grad():
                    z = to_image.constrain(step(z.detach(), grad), first)
        with torch.no_grad():
            image = to_image(z)
            finished = composited(to_image, image)
            final = scorer(compute.images(finished), unit).float()
            if recipe.steps in kept:
                pictures.append(_frame(to_image, z))
    stacked = torch.stack(pictures, 1) if pictures else None
    shares = saturated_share(finished)
    return _rendered(batch, sign, image, shares, final, torch.stack(scores).float(), had_gradient, stacked)


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


def _rendered(
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
            round(extreme[i], 4), has_gradient[i], None if frames is None else frames[i],
        )
        for i, (unit, seed) in enumerate(batch)
    ]  # fmt: skip
