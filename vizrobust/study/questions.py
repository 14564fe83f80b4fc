"""What the pictures of a study are asked: the natural images of each unit, and every judge's view of them, made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.clarity import Judge, Opinion, Order, excitations, shared_orders
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, first
from vizrobust.features import Logit, Objective
from vizrobust.models import Checkpoint
from vizrobust.study.plan import Plan


@dataclass(frozen=True)
class Natural:
    """Natural images with each judge's opinion of them: `images` (n, C, H, W)."""

    images: Tensor
    labels: Tensor
    opinions: dict[str, Opinion]


class Questions:
    """Queries from the test split, exemplars from the validation split, and how the compared networks order them.

    For class units the order is by mean rank over all compared checkpoints, so that all are asked the same; the
    checkpoint's own order makes a second, secondary row. Hidden units have only their own.
    """

    def __init__(self, plan: Plan, data: DataSet, judges: Sequence[Judge], compute: Compute) -> None:
        self.data, self.judges, self.compute = data, tuple(judges), compute
        self.asked, self.shown = first(data.test, plan.query_images), first(data.val, plan.exemplar_images)
        self.queries, self.exemplars = self._natural(self.asked), self._natural(self.shown)
        self.units = tuple(range(len(data.classes)))
        self._excited: dict[tuple[str, str, tuple[int, ...], bool], Tensor] = {}
        self.shared: list[Order] = []
        self.shared_exemplars: list[Order] = []

    def agree_on(self, compared: Sequence[Checkpoint]) -> None:
        """Fix the order of the class units' queries by all compared checkpoints."""
        logits = Logit()
        self.shared = shared_orders([self.excited(one, logits, self.units, True) for one in compared])
        self.shared_exemplars = shared_orders([self.excited(one, logits, self.units, False) for one in compared])

    def excited(self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...], asked: bool) -> Tensor:
        """(units, n): how much each query (or exemplar) excites the checkpoint's units; kept."""
        key = (checkpoint.sha256, repr(objective), units, asked)
        if key not in self._excited:
            images = self.asked if asked else self.shown
            self._excited[key] = excitations(checkpoint.net(), objective, units, images, self.compute)
        return self._excited[key]

    def own(self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...], asked: bool = True) -> list[Order]:
        """Each unit's queries in the checkpoint's own order."""
        return shared_orders([self.excited(checkpoint, objective, units, asked)])

    def largest(self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...]) -> Tensor:
        """(units,): the largest activation that a natural image reaches."""
        both = [self.excited(checkpoint, objective, units, asked).amax(1) for asked in (True, False)]
        return torch.maximum(*both)

    def _natural(self, images: Split) -> Natural:
        pixels = images.take(torch.arange(len(images)))
        return Natural(pixels, images.labels, {judge.name: judge(pixels) for judge in self.judges})
