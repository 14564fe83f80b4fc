"""The same network trained on the same images at several sizes, to see whether its gradient grows as the lecture's sqrt(d)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet, Split, first
from vizrobust.robustness.growth import Growth, fit_growth, gradient_norms
from vizrobust.runs import Row, Run
from vizrobust.training import Progress, Training, train, trained

IMAGES = 1000
LOSSES = ("margin", "ce")


@dataclass(frozen=True)
class Resized:
    """Another split's images at `height` x `width` pixels: means over areas, which are exact where the sides divide."""

    whole: Split
    height: int
    width: int

    @property
    def labels(self) -> Tensor:
        return self.whole.labels

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, index: Tensor) -> Tensor:
        return F.interpolate(self.whole.take(index), size=(self.height, self.width), mode="area")


def resized(data: DataSet, side: int) -> DataSet:
    """A data set whose images have a shorter side of `side` pixels; larger ones repeat pixels. eps stays what it was.

    >>> from vizrobust.data import load
    >>> resized(load("digits"), 4).shape
    (1, 4, 4)
    """
    if side < 1:
        raise ValueError(f"images need a side of at least 1 pixel, got {side}")
    channels, height, width = data.shape
    scale = side / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return replace(
        data, name=f"{data.name} at {size[1]} x {size[0]} px", shape=(channels, *size),
        train=Resized(data.train, *size), val=Resized(data.val, *size), test=Resized(data.test, *size),
    )  # fmt: skip


def dimension_study(
    recipe: Training,
    data: DataSet,
    sides: Sequence[int],
    compute: Compute,
    folder: Path | str,
    seeds: Sequence[int] = (0,),
    images: int = IMAGES,
    argv: str = "",
) -> Iterator[Progress | Row]:
    """Train `recipe` at every side and seed, each in a folder of its own within `folder`; one row for each network.

    A row has ``side, seed, d, n, clean, robust`` and, as means over the first `images` test images, the gradient's
    norms ``l1_margin, l2_margin, l1_ce, l2_ce``, and the same with ``_untrained`` for fresh weights: the lecture's argument
    is about those, and training need not keep what they have. Between rows come the `Progress` of training. Rows that
    are there are yielded without being computed again, an interrupted training goes on, and sides and seeds may grow.
    The recipe's own seed does not count. Raises ``ValueError`` for a folder that holds another study.
    """
    same = replace(recipe, seed=0)
    record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
    run = Run(folder, "dimension", {"training": repr(same), "images": images}, record)
    known = {(row["side"], row["seed"]): row for row in run.rows()}
    for side in sides:
        smaller = resized(data, side)
        for seed in seeds:
            if (side, seed) not in known:
                cell = run.folder / f"{side}px-s{seed}"
                one = replace(recipe, data=smaller.name, seed=seed)
                for news in train(one, smaller, compute, cell, argv):
                    if isinstance(news, Progress):
                        yield news
                known[side, seed] = {"side": side, "seed": seed, **_measured(cell, one, smaller, images, compute)}
                run.add(known[side, seed])
            yield known[side, seed]


def growth(rows: Sequence[Row], loss: str = "margin", trained: bool = True) -> Growth:
    """The slope of the mean L1 norm of the gradient over d, every side and seed a point of its own."""
    name = f"l1_{loss}" if trained else f"l1_{loss}_untrained"
    return fit_growth([row["d"] for row in rows], [row[name] for row in rows])


def _measured(cell: Path, recipe: Training, data: DataSet, images: int, compute: Compute) -> dict[str, Any]:
    checkpoint = trained(cell, recipe.arch)
    channels, height, width = data.shape
    shown = first(data.test, images)
    row: dict[str, Any] = {"d": channels * height * width, "n": len(shown)}
    row |= {name: checkpoint.about.metrics.get(name) for name in ("clean", "robust")}
    for net, which in ((checkpoint.net(), ""), (checkpoint.random_net(recipe.seed), "_untrained")):
        for loss in LOSSES:
            norms = gradient_norms(net, shown, compute, loss)
            row |= {f"l1_{loss}{which}": float(norms.l1.mean()), f"l2_{loss}{which}": float(norms.l2.mean())}
    return row
