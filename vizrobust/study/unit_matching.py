"""Which hidden units a study draws, and which unit of one network matches which of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.clarity import excitations
from vizrobust.compute import Compute
from vizrobust.data import Split
from vizrobust.features import Channel
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.rng import Streams
from vizrobust.runs import Row
from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.protocol import SWEEP


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
