"""Which feature images are rendered together, in batches of which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vizrobust.compute import size_class

UnitSeed = tuple[int, int]
BATCH_SIZE = 16


class Batch(NamedTuple):
    """The (unit, seed) pairs of one batch, and how many images are computed for them; the last pair fills what is left."""

    pairs: tuple[UnitSeed, ...]
    size: int


def plan_batches(
    pairs: Sequence[UnitSeed],
    group_size: int = 1,
    batch_size: int | None = None,
    recorded: Mapping[UnitSeed, int] | None = None,
) -> list[Batch]:
    """The batches in which the pairs are rendered, at most `batch_size` images each (None: 16, or fewer if there are fewer).

    The last, smaller batch has the next size of `size_class` that holds it, so 17 pictures cost 17 and 21 cost 22. `recorded`
    are pairs that exist already, with the size of the batch that they were rendered in. A batch that was stopped half
    way keeps its size, so that its pictures come out as they would have without the stop; otherwise what is missing of
    a batch gets a size of its own. Groups of `group_size`
    consecutive seeds of a unit stay together. Raises ``ValueError`` where a batch cannot hold a group.

    >>> [(len(batch.pairs), batch.size) for batch in plan_batches([(unit, 0) for unit in range(19)])]
    [(16, 16), (3, 3)]
    >>> plan_batches([(0, 0), (0, 1), (1, 1), (2, 0)], group_size=2, batch_size=5)
    [Batch(pairs=((0, 0), (0, 1), (1, 1)), size=4), Batch(pairs=((2, 0),), size=2)]
    """
    if batch_size is not None and batch_size < group_size:
        raise ValueError(f"a batch of {batch_size} has no room for a group of {group_size} images; make it at least {group_size}")
    there, asked, groups = recorded or {}, set(pairs), groups_of(pairs, group_size)
    most = max(1, (batch_size or BATCH_SIZE) // group_size)
    if batch_size is None:
        most = max(1, min(most, len(groups)))
    planned = []
    for start in range(0, len(groups), most):
        batch = [[pair for pair in group if pair in asked] for group in groups[start : start + most]]
        missing = [group for group in batch if any(pair not in there for pair in group)]
        size = size_class(len(batch), most)
        if len(missing) < len(batch) and all(there.get(pair) != size * group_size for group in batch for pair in group):
            size = size_class(len(missing), most)
        found = tuple(pair for group in missing for pair in group if pair not in there)
        if found:
            planned.append(Batch(found, size * group_size))
    return planned


def groups_of(pairs: Sequence[UnitSeed], group_size: int) -> list[list[UnitSeed]]:
    """Each pair alone, or the whole groups of seeds that the pairs belong to.

    >>> groups_of([(3, 1), (3, 4)], 2)
    [[(3, 0), (3, 1)], [(3, 4), (3, 5)]]
    """
    if group_size == 1:
        return [[pair] for pair in pairs]
    there = dict.fromkeys((unit, seed // group_size) for unit, seed in pairs)
    return [[(unit, group * group_size + member) for member in range(group_size)] for unit, group in there]
