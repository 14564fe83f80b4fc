"""How the gradient of the loss grows with the number of pixels: the lecture's reason why images are easy to attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import linregress, t
from torch import Tensor, nn

from vizrobust.attacks import L2, Linf
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.robustness.accuracy import CONFIDENCE
from vizrobust.robustness.evaluate import BATCH_SIZE
from vizrobust.robustness.first_order import dual_norm, input_gradient

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
        parts.append((correct.cpu()[:count], dual_norm(Linf(), gradient)[:count], dual_norm(L2(), gradient)[:count]))
    if not parts:
        raise ValueError("there are no images to take gradients at; choose a split that has some")
    correct, l1, l2 = (torch.cat(values) for values in zip(*parts, strict=True))
    return Gradients(correct, l1, l2)


def dimension_growth(
    networks: Iterable[tuple[int, nn.Module, Split]], compute: Compute, loss: str = "margin", batch_size: int = BATCH_SIZE
) -> Growth:
    """The growth of the mean L1 norm of the gradient over networks (d, net, images), d = C * H * W of their images.

    The networks should be of one family and trained alike on the same images at several sizes
    (`vizrobust.study.dimension_study` does that); the fit is as good as that likeness.
    """
    found = [(d, float(gradient_norms(net, images, compute, loss, batch_size).l1.mean())) for d, net, images in networks]
    return fit_growth([d for d, _ in found], [norm for _, norm in found])


def fit_growth(d: Sequence[int], mean_l1: Sequence[float]) -> Growth:
    """The slope of log `mean_l1` against log `d` with its 95 % t interval. ``ValueError`` for fewer than two d.

    >>> growth = fit_growth([64, 256, 1024], [1.0, 2.0, 4.0])
    >>> round(growth.slope, 3), round(growth.factor, 3)
    (0.5, 0.125)
    """
    if len(set(d)) < 2:
        raise ValueError(f"a slope needs two or more different d, got {sorted(set(d))}")
    if min(mean_l1) <= 0:
        raise ValueError("a network without any gradient has no place on a logarithmic scale; leave it out")
    fit = linregress(np.log(d), np.log(mean_l1))
    free = len(d) - 2
    half = float(t.ppf((1 + CONFIDENCE) / 2, free) * fit.stderr) if free else None
    slope, factor = float(fit.slope), float(np.exp(fit.intercept))
    low, high = (None, None) if half is None else (slope - half, slope + half)
    return Growth(tuple(d), tuple(mean_l1), slope, low, high, factor)
