"""Path similarity: whether a network processes its units' pictures as it processes natural images (Geirhos et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.intervals import mean_interval

# A layer below this tells natural images of one class from others too little to divide by it
# (docs/measuring-clarity.md, "Path similarity").
SMALLEST_DENOMINATOR = 0.05


@dataclass(frozen=True)
class PathSimilarity:
    """S at one layer, with its parts: means over units, and each unit's numerator and denominator, (M,) float64.

    `similarity` is 1 where pictures take the path of natural images of their own class, 0 where they are no nearer to
    it than images of other classes. It is None where the layer does not separate classes; `why` gives the reason.
    """

    similarity: float | None
    why: str
    numerators: Tensor
    denominators: Tensor
    denominator: float
    denominator_low: float | None
    denominator_high: float | None


def path_similarity(
    natural: Sequence[Tensor], pictures: Sequence[Tensor], others: Sequence[Tensor] | None = None
) -> PathSimilarity:
    """S = [rho(N, V) - rho(N, N')] / [rho(N, N) - rho(N, N')], of means over M units.

    Geirhos et al. 2023, as defined in docs/measuring-clarity.md, "Path similarity".

    Activations of one layer, flattened: `natural[u]` (n_u, D) of natural images of unit u, `pictures[u]` (R_u, D) of
    its pictures, `others[u]` of natural images of anything else (default: those of all other units). rho(A, B) is the
    mean Spearman correlation over pairs of an image of A and one of B, an image never with itself; an image whose
    activations are all the same correlates with nothing.

    It flags manipulated networks and does not measure clarity. It is defined only where the mean denominator is above
    .05 with a 95 % t interval over units above 0; elsewhere `similarity` is None. Raises ``ValueError`` for lists of
    different lengths, for a unit with fewer than two natural images and for one without pictures or others.

    >>> up, down = torch.arange(6.0).repeat(2, 1), torch.arange(6.0).flip(0).repeat(2, 1)
    >>> round(path_similarity([up, down], pictures=[up, down]).similarity, 6)
    1.0
    >>> path_similarity([up, up], pictures=[up, up]).why
    'the mean denominator 0.000 is not above 0.05'
    """
    _check(natural, pictures, others)
    units = [_ranks(pool) for pool in natural]
    shown = [_ranks(pool) for pool in pictures]
    if others is None:
        rest = [torch.cat([*units[:k], *units[k + 1 :]]) for k in range(len(units))]
    else:
        rest = [_ranks(pool) for pool in others]
    across = torch.stack([_mean_cosine(one, other) for one, other in zip(units, rest, strict=True)])
    numerators = torch.stack([_mean_cosine(one, views) for one, views in zip(units, shown, strict=True)]) - across
    denominators = torch.stack([_mean_of_pairs(one) for one in units]) - across
    mean, low, high = mean_interval(denominators.tolist())
    why = _refusal(mean, low)
    similarity = None if why else float(numerators.mean()) / mean
    return PathSimilarity(similarity, why, numerators, denominators, mean, low, high)


def _check(natural: Sequence[Tensor], pictures: Sequence[Tensor], others: Sequence[Tensor] | None) -> None:
    counts = [len(natural), len(pictures), *([] if others is None else [len(others)])]
    if len(set(counts)) > 1 or not natural or (others is None and len(natural) < 2):
        raise ValueError(f"path similarity needs as many units on each side, and two to compare, got {counts}")
    few = [k for k, pool in enumerate(natural) if len(pool) < 2]
    if few:
        raise ValueError(f"path similarity needs two natural images of each unit, unit {few[0]} has {len(natural[few[0]])}")
    empty = [k for k, pool in [*enumerate(pictures), *enumerate(others or ())] if len(pool) == 0]
    if empty:
        raise ValueError(f"path similarity needs pictures and other images for each unit, unit {empty[0]} lacks one of them")


def _ranks(activations: Tensor) -> Tensor:
    """(n, D) -> (n, D) float64: rank vectors of mean 0 and length 1, so that a product is Spearman's correlation."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(activations.detach().cpu().flatten(1).numpy(), axis=1)).to(torch.float64)
    ranks = ranks - ranks.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(ranks, dim=1, keepdim=True)
    return torch.where(length > 0, ranks / length, 0.0)


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The mean product over all pairs is the product of the mean vectors."""
    return a.mean(0) @ b.mean(0)


def _mean_of_pairs(a: Tensor) -> Tensor:
    """The mean product over pairs of different rows."""
    n = len(a)
    return (a.sum(0).square().sum() - a.square().sum()) / (n * (n - 1))


def _refusal(mean: float, low: float | None) -> str:
    if not mean > SMALLEST_DENOMINATOR:
        return f"the mean denominator {mean:z.3f} is not above {SMALLEST_DENOMINATOR}"
    if low is None:
        return "one unit gives no interval for the denominator"
    if not low > 0:
        return f"the interval of the denominator begins at {low:z.3f}, not above 0"
    return ""
