"""Identification: which unit's pictures does a natural image resemble most, among those of all units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosines closer than this are a tie: the same numbers summed in another order.
DIGITS = 12


@dataclass(frozen=True)
class Identified:
    """One value per unit, each (M,) float64 in [0, 1], larger = clearer.

    `top1` is the share of the unit's natural images whose most similar pictures are its own, `reciprocal_rank` their
    mean 1 / rank of its own pictures.
    """

    top1: Tensor
    reciprocal_rank: Tensor


def identification(queries: Sequence[Tensor], pictures: Sequence[Tensor]) -> Identified:
    """Natural images of each unit, put to the pictures of all M units. Larger = clearer, chance 1/M.

    docs/measuring-clarity.md, "Identification".

    `queries[u]` (n_u, d) are features of natural images of unit u, `pictures[u]` (R_u, d) those of its pictures; the
    numbers of rows may differ. Natural images and pictures live in different parts of feature space, so each pool
    loses its own mean first. A query's score for a unit is its mean cosine to that unit's pictures; where units tie,
    all their orders are equally likely, so pictures that say nothing get chance: 1/M, and for the reciprocal rank
    the mean of 1, 1/2 … 1/M. Raises ``ValueError`` for fewer than two units and for a unit without images or pictures.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> identification(queries=[a, b], pictures=[a, b]).top1
    tensor([1., 1.], dtype=torch.float64)
    >>> identification(queries=[a, b], pictures=[b, a]).reciprocal_rank
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if len(queries) != len(pictures) or len(queries) < 2:
        raise ValueError(
            f"identification needs at least two units, each with images and pictures, got {len(queries)} and {len(pictures)}"
        )
    for kind, pools in (("natural images", queries), ("pictures", pictures)):
        empty = [position for position, pool in enumerate(pools) if len(pool) == 0]
        if empty:
            raise ValueError(f"unit {empty[0]} of {len(pools)} has no {kind} to identify; give each at least one")
    natural, shown = _directions(queries), _directions(pictures)
    own = torch.repeat_interleave(torch.arange(len(queries)), torch.tensor([len(pool) for pool in queries]))
    # The mean of unit vectors holds the mean cosine to all of them.
    similar = (natural @ _means(shown, pictures).T).round(decimals=DIGITS)
    score = similar.gather(1, own[:, None])
    better, tied = (similar > score).sum(1), (similar == score).sum(1)
    harmonic = torch.cat((torch.zeros(1, dtype=torch.float64), (1 / torch.arange(1.0, len(queries) + 1).double()).cumsum(0)))
    top1 = (better == 0) / tied.double()
    reciprocal = (harmonic[better + tied] - harmonic[better]) / tied
    return Identified(*(_means(value[:, None], queries)[:, 0] for value in (top1, reciprocal)))


def _directions(pools: Sequence[Tensor]) -> Tensor:
    """All rows of the pools below each other, minus their mean, at length 1 (a row that is the mean stays 0)."""
    rows = torch.cat(list(pools)).to(torch.float64)
    rows = rows - rows.mean(0)
    # What rounding leaves of a row that is the mean has no direction.
    nothing = torch.linalg.vector_norm(rows, dim=1) <= 1e-12 * torch.linalg.vector_norm(torch.cat(list(pools)).double(), dim=1)
    return torch.where(nothing[:, None], 0.0, F.normalize(rows, dim=1))


def _means(rows: Tensor, pools: Sequence[Tensor]) -> Tensor:
    """(sum of n_u, k) -> (M, k): the mean row of each pool."""
    return torch.stack([part.mean(0) for part in torch.split(rows, [len(pool) for pool in pools])])
