"""How the gradient of the loss grows with the number of pixels: the lecture's reason why images are easy to attack."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import L2, Linf
from vizrobust.attacks.threat_models import dual_norm
from vizrobust.compute import Compute, full_batches, versions
from vizrobust.data import DataSet, Split, head
from vizrobust.data.sources import Transformed
from vizrobust.intervals import CONFIDENCE
from vizrobust.models import architecture
from vizrobust.requests import ParameterError
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.robustness.first_order import input_gradient
from vizrobust.runs import Row, RunFolder
from vizrobust.training import TrainingRecipe, own_content, train, trained_checkpoint

# Coordinates that shrink as 1/sqrt(d), so that a unit keeps its variance, sum to sqrt(d) (lecture notes, §27.4).
LECTURE_SLOPE = 0.5


@dataclass(frozen=True)
class Gradients:
    """The L1 and L2 norms (n,) of the loss's gradient at n images, and who is classified correctly (n,)."""

    correct: Tensor
    l1: Tensor
    l2: Tensor


@dataclass(frozen=True)
class Growth:
    """``mean_l1 = factor * d ** slope`` over `d`, by least squares on logarithms; the interval needs three points."""

    d: tuple[int, ...]
    mean_l1: tuple[float, ...]
    slope: float
    ci_low: float | None
    ci_high: float | None
    factor: float

    def __str__(self) -> str:
        interval = "" if self.ci_low is None or self.ci_high is None else f" [{self.ci_low:.2f}, {self.ci_high:.2f}]"
        return (
            f"slope {self.slope:.2f}{interval} over d = {', '.join(map(str, self.d))}; the lecture's sqrt(d) is {LECTURE_SLOPE}"
        )


def gradient_norms(
    net: nn.Module, images: Split, compute: Compute, loss: str = "margin", batch_size: int = BATCH_SIZE
) -> Gradients:
    """The norms of the loss's gradient at every image of a split; eps times the L1 norm is the drop an L-inf step promises."""
    compute.place(net)
    parts = []
    for index, count in full_batches(len(images), batch_size):
        x, y = compute.images(images.take(index)), images.labels[index].to(compute.device)
        with compute.autocast():
            correct, _, gradient = input_gradient(net, x, y, loss)
        gradient = gradient.cpu().double()  # vanishing gradients, squared, underflow in float32
        parts.append((correct.cpu()[:count], dual_norm(Linf(), gradient)[:count], dual_norm(L2(), gradient)[:count]))
    if not parts:
        raise ValueError("there are no images to take gradients at; choose a split that has some")
    correct, l1, l2 = (torch.cat(values) for values in zip(*parts, strict=True))
    return Gradients(correct, l1, l2)


def fit_growth(d: Sequence[int], mean_l1: Sequence[float]) -> Growth:
    """The slope of log `mean_l1` against log `d` with its 95 % t interval. ``ValueError`` for fewer than two d.

    >>> growth = fit_growth([64, 256, 1024], [1.0, 2.0, 4.0])
    >>> round(growth.slope, 3), round(growth.factor, 3)
    (0.5, 0.125)
    """
    from scipy.stats import linregress, t

    if len(set(d)) < 2:
        raise ValueError(f"a slope needs two or more different d, got {sorted(set(d))}")
    if min(mean_l1) <= 0:
        raise ValueError("a network without any gradient has no place on a logarithmic scale; leave it out")
    configured = linregress(np.log(d), np.log(mean_l1))
    free = len(d) - 2
    half = float(t.ppf((1 + CONFIDENCE) / 2, free) * configured.stderr) if free else None
    slope, factor = float(configured.slope), float(np.exp(configured.intercept))
    low, high = (None, None) if half is None else (slope - half, slope + half)
    return Growth(tuple(d), tuple(mean_l1), slope, low, high, factor)


IMAGES = 1000
LOSSES = ("margin", "ce")


def resized(data: DataSet, side: int) -> DataSet:
    """A data set whose images have a shorter side of `side` pixels; larger ones repeat pixels. eps stays what it was.

    A pixel is the mean over its area, which is exact where the sides divide.

    >>> from vizrobust.data import load
    >>> resized(load("digits"), 4).shape
    (1, 4, 4)
    """
    if side < 1:
        raise ValueError(f"images need a side of at least 1 pixel, got {side}")
    channels, height, width = data.shape
    scale = side / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    change = partial(F.interpolate, size=size, mode="area")
    name = f"{data.name} at {size[1]} x {size[0]} px"
    return data.seen_through(lambda split: Transformed(split, change), name=name, shape=(channels, *size))


def check_sides(arch: str, data: DataSet, sides: Sequence[int]) -> Iterator[str]:
    """Notes on how a network changes with the size of its images.

    `ParameterError` where a size does not fit the architecture, before an hour of training at those that do.
    """
    layers: dict[tuple[str, ...], int] = {}
    for side in sides:
        shape = resized(data, side).shape
        build = architecture(arch, shape, len(data.classes))
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
                warnings.simplefilter("ignore")  # of weights without any entry, which fail a line later
                net = build().eval()
                net(torch.zeros(1, *shape))
        except Exception as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ParameterError(
                "%s cannot take images of %s x %s px (%s); leave %s out of {sides}", arch, shape[2], shape[1], why, side
            ) from error
        layers.setdefault(tuple(net.state_dict()), side)
    if len(layers) > 1:
        others = " and ".join(f"{side} px" for side in layers.values())
        yield f"{arch} has different layers from {others} on, so its networks are not quite one family"


def dimension_study(
    recipe: TrainingRecipe, data: DataSet, sides: Sequence[int], compute: Compute, folder: Path | str,
    seeds: Sequence[int] = (0,), images: int = IMAGES, argv: str = "", wait: bool = False,
) -> Iterator[Any]:  # fmt: skip
    """Train `recipe` at every side and seed, each in a folder of its own within `folder`; one row for each network.

    A row has ``side, seed, d, n, clean, robust`` and, as means over the first `images` test images, the gradient's
    norms ``l1_margin, l2_margin, l1_ce, l2_ce``, and the same with ``_untrained`` for initial weights: the lecture's argument
    is about those, and training need not keep what they have. Between rows come the batches of training. Rows that
    are there are yielded without being computed again, an interrupted training goes on, and sides and seeds may grow.
    The recipe's own seed does not count. Raises ``ValueError`` for a folder that holds another study.
    """
    same = replace(recipe, seed=0)
    record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
    identity = {"training": repr(same), "images": images, **own_content(data, recipe.arch, recipe)}
    run = RunFolder(folder, "dimension", identity, record, wait=wait)
    with closing(run):
        known = {(row["side"], row["seed"]): row for row in run.rows()}
        for side in sides:
            smaller = resized(data, side)
            for seed in seeds:
                if (side, seed) not in known:
                    own = run.folder / f"{side}px-s{seed}"
                    one = replace(recipe, data=smaller.name, seed=seed)
                    for news in train(one, smaller, compute, own, argv):
                        if not isinstance(news, dict):
                            yield news
                    known[side, seed] = {"side": side, "seed": seed, **_measured(own, one, smaller, images, compute)}
                    run.add(known[side, seed])
                yield known[side, seed]


def growth(rows: Sequence[Row], loss: str = "margin", trained: bool = True) -> Growth:
    """The slope of the mean L1 norm of the gradient over d, every side and seed a point of its own."""
    name = f"l1_{loss}" if trained else f"l1_{loss}_untrained"
    return fit_growth([row["d"] for row in rows], [row[name] for row in rows])


def _measured(own: Path, recipe: TrainingRecipe, data: DataSet, images: int, compute: Compute) -> dict[str, Any]:
    checkpoint = trained_checkpoint(own, recipe.arch)
    channels, height, width = data.shape
    shown = head(data.test, images)
    row: dict[str, Any] = {"d": channels * height * width, "n": len(shown)}
    row |= {name: checkpoint.info.metrics.get(name) for name in ("clean", "robust")}
    for net, which in ((checkpoint.net(), ""), (checkpoint.random_net(recipe.seed), "_untrained")):
        for loss in LOSSES:
            norms = gradient_norms(net, shown, compute, loss)
            row |= {f"l1_{loss}{which}": float(norms.l1.mean()), f"l2_{loss}{which}": float(norms.l2.mean())}
    return row
