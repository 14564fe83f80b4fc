"""Which pictures a study wants of a checkpoint: class units, drawn hidden units, and those matched with another network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vizrobust.data import DataSet
from vizrobust.features import Channel, Logit, Request, with_priors
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.study.matching import draw_units
from vizrobust.study.plan import Plan


def wanted(plan: Plan, data: DataSet, checkpoint: Checkpoint) -> list[Request]:
    """Class units, and hidden units with both signs, under every recipe."""
    found, there = [], drawn(plan, checkpoint)
    for recipe in plan.recipes:
        known = with_priors(recipe, data)
        bare = Request(known, Logit(), (), batch_size=plan.batch_size, data_share=data.saturated_share)
        classes, seeds = tuple(range(len(data.classes))), tuple(range(plan.image_seeds))
        found.append(replace(bare, units=classes, seeds=seeds, film=min(plan.frames, known.steps + 1), strip=True))
        if there:
            layer, units = there
            # Batches are filled up to their size: one that is larger than all pictures would be rendered in vain.
            size = min(plan.batch_size, len(units) * plan.hidden_seeds)
            seeds = tuple(range(plan.hidden_seeds))
            hidden = replace(bare, objective=Channel(layer=layer), units=units, seeds=seeds, batch_size=size)
            found += [hidden, replace(hidden, sign=-1)]
    return found


def hidden_units(plan: Plan, data: DataSet, checkpoint: Checkpoint, units: Sequence[int]) -> list[Request]:
    """The same pictures of other hidden units than the drawn ones."""
    return [replace(one, units=tuple(units)) for one in wanted(plan, data, checkpoint) if not of_classes(one)]


def of_classes(request: Request) -> bool:
    return isinstance(request.objective, Logit)


def drawn(plan: Plan, checkpoint: Checkpoint) -> tuple[str, tuple[int, ...]] | None:
    """The hidden layer and the units of it that are looked at, the same for every checkpoint of an architecture."""
    if not (plan.hidden and plan.layer):
        return None
    there = layer_of(checkpoint.net(), checkpoint.about.input_shape, plan.layer)
    return there.name, draw_units(there.units, min(plan.hidden, there.units), seed=0)
