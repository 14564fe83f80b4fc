"""What a study renders of a checkpoint, and the natural images that the pictures are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vizrobust.clarity import Judge, JudgeOutput, NaturalScale, QueryRanking, excitations, shared_rankings
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, head
from vizrobust.features import Channel, Logit, Objective, RenderJob, with_data_statistics
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.study.protocol import Plan
from vizrobust.study.unit_matching import draw_units


def picture_jobs(plan: Plan, data: DataSet, checkpoint: Checkpoint) -> list[RenderJob]:
    """What is rendered: class units, and hidden units with both signs, under every recipe."""
    found, there = [], drawn_units(plan, checkpoint)
    for recipe in plan.recipes:
        known = with_data_statistics(recipe, data)
        bare = RenderJob(known, Logit(), (), batch_size=plan.batch_size, data_share=data.saturated_share)
        classes, seeds = tuple(range(len(data.classes))), tuple(range(plan.image_seeds))
        found.append(replace(bare, units=classes, seeds=seeds, frames=min(plan.frames, known.steps + 1), frame_strip=True))
        if there:
            layer, units = there
            # Batches are padded to their size, so a batch larger than all pictures would waste renders.
            size = min(plan.batch_size, len(units) * plan.hidden_seeds)
            seeds = tuple(range(plan.hidden_seeds))
            hidden = replace(bare, objective=Channel(layer=layer), units=units, seeds=seeds, batch_size=size)
            found += [hidden, replace(hidden, sign=-1)]
    return found


def hidden_jobs(plan: Plan, data: DataSet, checkpoint: Checkpoint, units: Sequence[int]) -> list[RenderJob]:
    """The same renders for other hidden units than the drawn ones."""
    return [replace(one, units=tuple(units)) for one in picture_jobs(plan, data, checkpoint) if not of_classes(one)]


def of_classes(request: RenderJob) -> bool:
    return isinstance(request.objective, Logit)


def drawn_units(plan: Plan, checkpoint: Checkpoint) -> tuple[str, tuple[int, ...]] | None:
    """The hidden layer and its drawn units, the same for every checkpoint of an architecture."""
    if not (plan.hidden and plan.layer):
        return None
    there = layer_of(checkpoint.net(), checkpoint.info.input_shape, plan.layer)
    return there.name, draw_units(there.units, min(plan.hidden, there.units), seed=0)


@dataclass(frozen=True)
class NaturalImages:
    """Natural images `images` (n, C, H, W) in [0, 1] with their `labels` (n,) and each judge's output."""

    images: Tensor
    labels: Tensor
    outputs: dict[str, JudgeOutput]


class QuerySet:
    """Queries from the test split, exemplars from the validation split, and how the compared networks order them.

    For class units the order is by mean rank over all compared checkpoints, so that all answer the same
    queries; the checkpoint's own order gives a second, secondary row. Hidden units have only their own. `scales` are the
    natural scales of those judges that have one. `encoders` are the networks whose features are compared: the given `encoder`,
    else every judge; `representatives` are the encoder, else the first judge of each family.
    """

    def __init__(
        self, plan: Plan, data: DataSet, judges: Sequence[Judge], compute: Compute,
        scales: Mapping[str, NaturalScale] | None = None, encoder: Judge | None = None,
    ) -> None:  # fmt: skip
        self.data, self.judges, self.compute, self.scales = data, tuple(judges), compute, dict(scales or {})
        self.encoders = self.judges if encoder is None else (encoder,)
        self.representatives = tuple({judge.family or judge.name: judge for judge in reversed(self.encoders)}.values())[::-1]
        self._networks = {one.name: one for one in (*self.judges, *self.encoders)}
        self.query_images, self.exemplar_images = head(data.test, plan.query_images), head(data.val, plan.exemplar_images)
        self.queries, self.exemplars = self._natural_images(self.query_images), self._natural_images(self.exemplar_images)
        self.units = tuple(range(len(data.classes)))
        self._excited: dict[tuple[str, str, tuple[int, ...], bool], Tensor] = {}
        self.shared: list[QueryRanking] = []
        self.shared_exemplar_rankings: list[QueryRanking] = []

    def agree_on(self, compared: Sequence[Checkpoint]) -> None:
        """Fix the order of the class units' queries by all compared checkpoints."""
        logits = Logit()
        self.shared = shared_rankings([self.excited(one, logits, self.units, True) for one in compared])
        self.shared_exemplar_rankings = shared_rankings([self.excited(one, logits, self.units, False) for one in compared])

    def excited(self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...], of_queries: bool) -> Tensor:
        """(units, n): how much each query (or exemplar) excites the checkpoint's units; computed once."""
        key = (checkpoint.sha256, repr(objective), units, of_queries)
        if key not in self._excited:
            images = self.query_images if of_queries else self.exemplar_images
            self._excited[key] = excitations(checkpoint.net(), objective, units, images, self.compute)
        return self._excited[key]

    def own(
        self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...], of_queries: bool = True
    ) -> list[QueryRanking]:
        """Each unit's queries in the checkpoint's own order."""
        return shared_rankings([self.excited(checkpoint, objective, units, of_queries)])

    def largest(self, checkpoint: Checkpoint, objective: Objective, units: tuple[int, ...]) -> Tensor:
        """(units,): the largest activation that a natural image reaches."""
        both = [self.excited(checkpoint, objective, units, of_queries).amax(1) for of_queries in (True, False)]
        return torch.maximum(*both)

    def _natural_images(self, images: Split) -> NaturalImages:
        pixels = images.take(torch.arange(len(images)))
        return NaturalImages(pixels, images.labels, {name: one(pixels) for name, one in self._networks.items()})
