"""What a study renders of a checkpoint, and the natural images that the pictures are compared with."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.clarity import Judge, JudgeOutput, NaturalScale, QueryRanking, excitations, shared_rankings
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, head
from vizrobust.features import Channel, Logit, Objective, RenderJob, with_data_statistics
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.rng import Streams
from vizrobust.runs import Row
from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.protocol import SWEEP, Plan

# So many images of each judge are remembered, which take about 5 kB each: more than one network's pictures.
REMEMBERED = 20_000


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
        self._seen: dict[str, OrderedDict[bytes, JudgeOutput]] = {}
        self._networks = {one.name: one for one in (*self.judges, *self.encoders)}
        self.query_images, self.exemplar_images = head(data.test, plan.query_images), head(data.val, plan.exemplar_images)
        self.queries, self.exemplars = self._natural_images(self.query_images), self._natural_images(self.exemplar_images)
        self.units = tuple(range(len(data.classes)))
        self._excited: dict[tuple[str, str, tuple[int, ...], bool], Tensor] = {}
        self.shared: list[QueryRanking] = []
        self.shared_exemplar_rankings: list[QueryRanking] = []

    def seen(self, judge: Judge, images: Tensor) -> JudgeOutput:
        """What a judge says of images (n, C, H, W). It is asked once for images that come again: exemplars, and starts."""
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.contiguous()]
        known = self._seen.setdefault(judge.name, OrderedDict())
        new = {key: place for place, key in enumerate(keys) if key not in known}
        if new:
            output = judge(images[list(new.values())])
            known.update((key, output.of(torch.tensor([row]))) for row, key in enumerate(new))
        for key in keys:
            known.move_to_end(key)
        found = [known[key] for key in keys]
        while len(known) > REMEMBERED:
            known.popitem(last=False)
        return JudgeOutput(*(torch.cat([getattr(one, part) for one in found]) for part in ("logits", "features", "log_odds")))

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
        return NaturalImages(pixels, images.labels, {name: self.seen(one, pixels) for name, one in self._networks.items()})


@dataclass(frozen=True)
class Matching:
    """Pairs of units (a's, b's) in ascending order of a's, with the correlation of each on the same images.

    `chance` is the mean correlation that matching reaches with b's images in a random order. It is above 0 even for
    unrelated units, because the assignment picks the best pairs.
    """

    pairs: tuple[tuple[int, int], ...]
    correlations: tuple[float, ...]
    chance: float

    @property
    def quality(self) -> float:
        """The mean correlation of the pairs; read it beside `chance`."""
        return float(np.mean(self.correlations))


def draw_units(total: int, count: int, seed: int, layer: str = "") -> tuple[int, ...]:
    """`count` of the units 0 … total-1 at random, ascending; all of them where there are no more.

    The draw depends on the arguments alone, so it is the same for every checkpoint of an architecture. Raises
    ``ValueError`` for less than one unit.

    >>> draw_units(100, 4, seed=0) == draw_units(100, 4, seed=0), len(draw_units(3, 50, seed=0))
    (True, 3)
    """
    if total < 1 or count < 1:
        raise ValueError(f"draw_units: expected at least one unit of at least one, got {count} of {total}")
    order = Streams(seed, [layer], "units").permutation(total)[0]
    return tuple(sorted(order[:count].tolist()))


def match_units(a: Tensor, b: Tensor, seed: int = 0) -> Matching:
    """The one-to-one assignment of units with the largest sum of correlations (Hungarian method; Li et al. 2016).

    `a` (units, n) and `b` (units', n) are the activations of two networks on the same n natural images, as
    `clarity.excitations` gives them. A unit whose activation is always the same correlates with nothing. With
    unequal numbers of units some stay without a match. Matching selects what the networks share, so pictures of
    matched units are a secondary view (docs/measuring-clarity.md, "Hidden units"). Raises ``ValueError`` for different or
    fewer than three images.

    >>> a = torch.tensor([[0.0, 1.0, 2.0, 4.0], [4.0, 0.0, 3.0, 1.0]])
    >>> match_units(a, a.flip(0)).pairs
    ((0, 1), (1, 0))
    """
    from scipy.optimize import linear_sum_assignment

    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"matching needs (units, n) of the same n images, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.shape[1] < 3 or not len(a) or not len(b):
        raise ValueError(f"matching needs units and at least three images, got {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = _standardised(a), _standardised(b)
    found = first @ second.T
    rows, columns = linear_sum_assignment(found, maximize=True)
    shuffled = second[:, Streams(seed, ["images"], "matching").permutation(a.shape[1])[0].numpy()]
    by_chance = first @ shuffled.T
    pairs = tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True))
    return Matching(pairs, tuple(found[rows, columns].tolist()), float(by_chance[linear_sum_assignment(by_chance, True)].mean()))


def _standardised(activations: Tensor) -> NDArray[np.float64]:
    """Rows of mean 0 and length 1; a constant row becomes 0."""
    x = activations.detach().cpu().to(torch.float64).numpy()
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    # A row that is constant but for rounding becomes 0.
    alive = length > 1e-12 * np.maximum(1.0, np.abs(activations.detach().cpu().numpy()).max(1, keepdims=True))
    return np.where(alive, x / np.where(alive, length, 1.0), 0.0)


@dataclass(frozen=True)
class MatchedUnits:
    """`matches` are the units of a checkpoint that match the drawn `units` of the `reference` network, in their order.

    `correlations` are those of the pairs on natural images, `quality` is the mean over all pairs of the layer and `chance`
    what matching reaches for unrelated units (see `Matching`).
    """

    reference: str
    units: tuple[int, ...]
    matches: tuple[int, ...]
    correlations: tuple[float, ...]
    quality: float
    chance: float

    def row(self, checkpoint: str, layer: str) -> Row:
        """The row of `matching` in the report."""
        return {
            "checkpoint": checkpoint, "reference": self.reference, "layer": layer, "units": list(self.units),
            "partners": list(self.matches), "correlations": [round(one, 5) for one in self.correlations],
            "drawn": round(fmean(self.correlations), 5), "quality": round(self.quality, 5), "chance": round(self.chance, 5),
        }  # fmt: skip


def reference_of(one: StudyCheckpoint, compared: Sequence[StudyCheckpoint]) -> StudyCheckpoint | None:
    """The network that a checkpoint's units are matched with: the one of its training seed with the fewest attack steps."""
    sweep = [other for other in compared if other.role == SWEEP and other.seed == one.seed and other.k is not None]
    return min(sweep, key=lambda other: other.k or 0, default=None)


def matched_units(reference: str, excited: Tensor, reference_excited: Tensor, drawn: Sequence[int]) -> MatchedUnits | None:
    """Match a whole layer of a network with that of the network `reference`, and keep the pairs of its `drawn` units.

    `excited` (units, n) and `reference_excited` (units', n) are the activations of all units of both networks on the same
    natural images. In a smaller layer some drawn units have no match; None where none has.

    >>> a = torch.tensor([[0.0, 1.0, 2.0, 4.0], [4.0, 0.0, 3.0, 1.0]])
    >>> matched_units("k0-s0", a.flip(0), a, drawn=(0,)).matches
    (1,)
    """
    found = match_units(reference_excited, excited)
    pairs = [(*pair, value) for pair, value in zip(found.pairs, found.correlations, strict=True) if pair[0] in set(drawn)]
    if not pairs:
        return None
    units, matches, correlations = zip(*pairs, strict=True)
    return MatchedUnits(reference, units, matches, correlations, found.quality, found.chance)


def all_excitations(checkpoint: Checkpoint, layer: str, images: Split, compute: Compute) -> Tensor:
    """(units, n): how much each natural image excites each unit of a layer, the mean over its map."""
    there = layer_of(checkpoint.net(), checkpoint.info.input_shape, layer)
    return excitations(checkpoint.net(), Channel(layer=there.name), range(there.units), images, compute)
