"""What a unit does: the classes' accuracies and logits with and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.features.exemplars import BATCH_SIZE
from vizrobust.intervals import mcnemar, mean_interval
from vizrobust.models import evaluating
from vizrobust.models.forward import predicted_classes
from vizrobust.models.layers import edited, on_units, views

CHANGES = ("zero", "mean", "scale")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ClassEffect:
    """What a change does to the n images of one class: to their accuracy, and to the mean of their own logit, after - before.

    The intervals are of 95 %: Newcombe's for the accuracy (see `mcnemar`), Student's for the logit (None for one image). An
    image with logits that are not finite is not right, and in no mean of logits, which is None where none is left.
    """

    name: str
    n: int
    before: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    logit: float | None
    logit_low: float | None
    logit_high: float | None


def logits_with(
    net: nn.Module, layer: str, unit: int | None, images: Split, *, change: str = "zero", value: float = 0.0, shape: Shape,
    compute: Compute,
) -> Tensor:  # fmt: skip
    """(n, classes) float32 on the CPU: the logits while one unit of a layer is changed at every position; None changes nothing.

    `change` ``zero`` sets the unit to 0, ``mean`` to `value`, its mean over images, and ``scale`` multiplies it by `value`.

    >>> from vizrobust.data import ArraySplit
    >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), ArraySplit(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> logits_with(net, "1", 2, images, shape=(1, 2, 2), compute=Compute("cpu"))[:, 2].tolist()
    [0.0, 0.0]
    """
    compute = compute.in_fp32()
    compute.place(net)
    by = {"zero": torch.zeros_like, "mean": lambda x: torch.full_like(x, value), "scale": lambda x: value * x}[change]
    found = []
    view = views(net, shape, [layer])[layer]
    with evaluating(net), torch.no_grad(), edited(net, view, on_units(view, () if unit is None else (unit,), by)):
        for index, count in full_batches(len(images), BATCH_SIZE):
            found.append(net(compute.images(images.take(index)))[:count].float().cpu())
    return torch.cat(found)


def defined(*logits: Tensor) -> Tensor:
    """(n,) bool: whether all logits (n, classes) of an image are finite in each of the passes.

    >>> defined(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, float("nan")], [2.0, 3.0]])).tolist()
    [False, True]
    """
    return torch.stack([one.isfinite().all(1) for one in logits]).all(0)


def effects(before: Tensor, after: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[ClassEffect, ...]:
    """What the change from logits `before` to `after`, each (n, classes), does to every class that has images.

    >>> before, labels = torch.tensor([[2.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1])
    >>> [(one.name, one.accuracy, one.logit) for one in effects(before, before - torch.tensor([2.0, 0.0]), labels, ["a", "b"])]
    [('a', -1.0, -2.0), ('b', 0.0, 0.0)]
    """
    found = []
    for number, name in enumerate(classes):
        mine = labels == number
        if not bool(mine.any()):
            continue
        right, was = (predicted_classes(logits[mine]) == number for logits in (after, before))
        test = mcnemar(right, was)
        change = (after - before)[mine & defined(before, after), number].tolist()
        logit = mean_interval(change) if change else (None, None, None)
        found.append(ClassEffect(name, test.n, float(was.double().mean()), test.difference, test.ci_low, test.ci_high, *logit))
    return tuple(found)


def nearest_in_activity(activity: Tensor, unit: int, count: int) -> list[int]:
    """The `count` other units whose activity (units,) is nearest to that of a unit, by its ratio.

    >>> nearest_in_activity(torch.tensor([1.0, 8.0, 2.0, 4.0]), 1, 2)
    [3, 2]
    """
    sizes = activity.double().clamp_min(1e-12).log()
    order = (sizes - sizes[unit]).abs().argsort(stable=True).tolist()
    return [other for other in order if other != unit][:count]
