"""The render loop: optimize images to excite units, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import saturated_share
from vizrobust.features.objectives import Objective
from vizrobust.features.parametrizations import Pixels
from vizrobust.features.recipes import Recipe
from vizrobust.features.transforms import transformed
from vizrobust.models import activations, borrowed
from vizrobust.rng import Streams

BATCH_SIZE = 16
TRAJECTORY_POINTS = 21
SATURATED_ABOVE = 0.25


@dataclass(frozen=True)
class Rendered:
    """One feature image: `image` (C, H, W) in [0, 1] on the CPU.

    `score` is the objective (times `sign`) of the finished image without transforms; `trajectory` holds
    (step, score) pairs on the way; `alive` is False where the unit never had a gradient.
    """

    unit: int
    seed: int
    sign: int
    image: Tensor = field(repr=False)
    score: float
    trajectory: tuple[tuple[int, float], ...] = field(repr=False)
    saturated_share: float
    alive: bool

    def status(self, data_share: float) -> str:
        """``dead``, ``saturated`` (over 25 points more extreme pixels than the data's own images have) or ``ok``."""
        if not self.alive:
            return "dead"
        return "saturated" if self.saturated_share > data_share + SATURATED_ABOVE else "ok"


def render(
    net: nn.Module,
    objective: Objective,
    units: Sequence[int],
    recipe: Recipe,
    seeds: Sequence[int] = (0,),
    *,
    shape: tuple[int, int, int],
    compute: Compute | None = None,
    sign: int = 1,
    start: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Rendered]:
    """Optimize one image of `shape` (C, H, W) for each unit and seed, unit by unit, and yield each when it is done.

    `sign` -1 renders what the unit dislikes. `start` (C, H, W) begins from an image instead of noise. A stream
    of random numbers belongs to (unit, seed), so every network gets the same start and the same transforms, and
    at one `batch_size` an image is the same bit for bit whatever else is rendered with it.

    >>> from vizrobust.features import Logit, plain
    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 28, 28), 10)()
    >>> [done.unit for done in render(net, Logit(), [3, 5], plain(steps=2), shape=(1, 28, 28))]
    [3, 5]
    """
    jobs = [(unit, seed) for unit in units for seed in seeds]
    yield from render_jobs(
        net, objective, jobs, recipe, shape=shape, compute=compute or Compute(), sign=sign, start=start, batch_size=batch_size
    )


def render_jobs(
    net: nn.Module,
    objective: Objective,
    jobs: Sequence[tuple[int, int]],
    recipe: Recipe,
    *,
    shape: tuple[int, int, int],
    compute: Compute,
    sign: int = 1,
    start: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Rendered]:
    """As `render`, for any list of (unit, seed) pairs."""
    for unit, _ in jobs:
        if unit < 0:
            raise ValueError(f"no unit {unit}; units are counted from 0")
    compute.place(net)
    for index, count in full_batches(len(jobs), batch_size):
        batch = [jobs[i] for i in index.tolist()]
        yield from _render_batch(net, objective, batch, recipe, shape, compute, sign, start)[:count]


def _render_batch(
    net: nn.Module,
    objective: Objective,
    batch: list[tuple[int, int]],
    recipe: Recipe,
    shape: tuple[int, int, int],
    compute: Compute,
    sign: int,
    start: Tensor | None,
) -> list[Rendered]:
    unit = torch.tensor([unit for unit, _ in batch], device=compute.device)
    streams = Streams(0, [f"{unit}/{seed}" for unit, seed in batch], "render")
    to_image, transforms = recipe.parametrization, streams.child("transforms")
    size = shape if recipe.size is None else (shape[0], recipe.size, recipe.size)
    if start is None:
        first = to_image.init(size, streams.child("start"))
    elif not isinstance(to_image, Pixels):
        raise ValueError(f"recipe {recipe.name!r} starts from noise, not from an image; take plain or gradient")
    elif start.shape != size:
        raise ValueError(f"the start image is {tuple(start.shape)}, the recipe's images are {tuple(size)}; resize it")
    else:
        first = start.expand(len(batch), *start.shape).clone()
    first = first.to(compute.device, next((weight.dtype for weight in net.parameters()), torch.float32))
    z, step = first, recipe.optimizer.begin(first)

    def score(image: Tensor) -> Tensor:
        return sign * objective(activations(net, image, objective.layers), image, unit)

    scores: list[Tensor] = []
    alive = torch.zeros(len(batch), dtype=torch.bool, device=compute.device)
    with borrowed(net):
        with compute.autocast():
            for _ in range(recipe.steps):
                z = z.detach().requires_grad_()
                with compute.full_precision():
                    image = transformed(to_image(z), recipe.transforms, transforms)
                climbed = score(image)
                (grad,) = torch.autograd.grad(climbed.sum(), z)
                scores.append(climbed.detach())
                alive |= grad.flatten(1).abs().amax(1) > 0
                with torch.no_grad():
                    z = to_image.constrain(step(z.detach(), grad), first)
        with torch.no_grad():
            image = to_image(z)
            final = score(image).float()
    return _rendered(batch, sign, image, final, torch.stack(scores).float(), alive)


def _rendered(
    batch: list[tuple[int, int]], sign: int, image: Tensor, final: Tensor, scores: Tensor, alive: Tensor
) -> list[Rendered]:
    steps = len(scores)
    kept = sorted({round(point * (steps - 1) / (TRAJECTORY_POINTS - 1)) for point in range(TRAJECTORY_POINTS)})
    images, ends, ways = image.cpu().contiguous(), final.tolist(), scores[kept].T.tolist()
    shares, living = saturated_share(image).tolist(), alive.tolist()
    return [
        Rendered(
            unit, seed, sign, images[i], ends[i],
            tuple((step, round(value, 5)) for step, value in zip([*kept, steps], [*ways[i], ends[i]], strict=True)),
            round(shares[i], 4), living[i],
        )
        for i, (unit, seed) in enumerate(batch)
    ]  # fmt: skip
