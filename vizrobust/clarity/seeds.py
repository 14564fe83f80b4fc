"""Seed agreement: do pictures of one unit from different random seeds show the same thing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_agreement(pictures: Sequence[Tensor]) -> Tensor:
    """Mean cosine among a unit's pictures minus that to all other units' pictures: M times (R_u, d) -> (M,) float64.

    docs/measuring-clarity.md, "Seed agreement". In [-2, 2], larger = clearer, 0 where a unit's pictures are no more alike
    than pictures of different units. Every pair counts once and none is drawn at random. Raises ``ValueError`` for fewer
    than two units and for fewer than two pictures of a unit.

    >>> east, north = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    >>> seed_agreement([east, north])
    tensor([1., 1.], dtype=torch.float64)
    >>> seed_agreement([torch.stack((east[0], north[0]))] * 2)
    tensor([-0.5000, -0.5000], dtype=torch.float64)
    """
    counts = torch.tensor([len(pool) for pool in pictures])
    if len(counts) < 2 or int(counts.min()) < 2:
        few = f"{int(counts.min())} pictures" if len(counts) > 1 else f"{len(counts)} units"
        raise ValueError(f"seed agreement needs two units with two pictures (--seeds) each, got {few}")
    directions = [F.normalize(pool.to(torch.float64), dim=1) for pool in pictures]
    sums = torch.stack([one.sum(0) for one in directions])
    # The square of a sum of unit vectors holds the cosine of every pair twice, and each vector with itself.
    alone = torch.stack([one.square().sum() for one in directions])
    within = (sums.square().sum(1) - alone) / (counts * (counts - 1))
    between = (sums * (sums.sum(0) - sums)).sum(1) / (counts * (counts.sum() - counts))
    return within - between
