"""The units of a network that do what the drawn ones do in the network that it is matched with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from vizrobust.clarity import excitations
from vizrobust.compute import Compute
from vizrobust.data import Split
from vizrobust.features import Channel
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.runs import Row
from vizrobust.study.compared import DOSE, Compared
from vizrobust.study.matching import match_units


@dataclass(frozen=True)
class Counterparts:
    """`partners` are the units of a checkpoint that match the drawn `units` of the `reference` network, in their order.

    `correlations` are theirs on natural images, `quality` that of all pairs of the layer and `chance` what matching
    reaches where no unit has anything to do with another (see `matching`).
    """

    reference: str
    units: tuple[int, ...]
    partners: tuple[int, ...]
    correlations: tuple[float, ...]
    quality: float
    chance: float

    def row(self, checkpoint: str, layer: str) -> Row:
        """The row of `matching` in the report."""
        return {
            "checkpoint": checkpoint, "reference": self.reference, "layer": layer, "units": list(self.units),
            "partners": list(self.partners), "correlations": [round(one, 5) for one in self.correlations],
            "drawn": round(fmean(self.correlations), 5), "quality": round(self.quality, 5), "chance": round(self.chance, 5),
        }  # fmt: skip


def reference_of(one: Compared, compared: Sequence[Compared]) -> Compared | None:
    """Whose units a checkpoint's are matched with: the network of its training seed with the fewest attack steps."""
    doses = [other for other in compared if other.role == DOSE and other.seed == one.seed and other.k is not None]
    return min(doses, key=lambda other: other.k or 0, default=None)


def counterparts(reference: str, excited: Tensor, reference_excited: Tensor, drawn: Sequence[int]) -> Counterparts | None:
    """Match a whole layer of a network with that of the one called `reference`, and keep the pairs of its `drawn` units.

    `excited` (units, n) and `reference_excited` (units', n) say how much the same natural images excite all units of the
    two. In a smaller layer some drawn units find no partner; None where none does.
    """
    found = match_units(reference_excited, excited)
    pairs = [(*pair, value) for pair, value in zip(found.pairs, found.correlations, strict=True) if pair[0] in set(drawn)]
    if not pairs:
        return None
    units, partners, correlations = zip(*pairs, strict=True)
    return Counterparts(reference, units, partners, correlations, found.quality, found.chance)


def all_excitations(checkpoint: Checkpoint, layer: str, images: Split, compute: Compute) -> Tensor:
    """(units, n): how much each natural image excites each unit of a layer, the mean over its map."""
    there = layer_of(checkpoint.net(), checkpoint.about.input_shape, layer)
    return excitations(checkpoint.net(), Channel(layer=there.name), range(there.units), images, compute)
