"""Each image's smallest eps that makes the network wrong, its median, and the accuracy over eps that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vizrobust.attacks import Attack, ball_of, is_minimum_norm
from vizrobust.intervals import CONFIDENCE, share, wilson
from vizrobust.robustness.accuracy import RobustAccuracy
from vizrobust.spec import vary

# The normal quantile of a two-sided 95 % interval.
Z = 1.959964


class Evaluated(Protocol):
    """Evaluates an attack on the images at `indices` of a split, all of them with None (see `evaluate`)."""

    def __call__(
        self, attack: Attack, *, indices: Sequence[int] | None = None, stop: Literal["success", "end"] = "success",
        all_runs: bool = False,
    ) -> RobustAccuracy: ...  # fmt: skip


@dataclass(frozen=True)
class SmallestEps:
    """The smallest radius at which an attack succeeds on each of n images (see `smallest_eps`), in units of that radius.

    `eps` (n,) float64 is 0 where the image is wrong unchanged and inf where no attack succeeded.
    `largest_unsuccessful_eps` (n,) is the largest smaller radius at which the attack was tried without success (0: at
    none), so the attack's own limit lies between the two. `radii` are those that were tried, none for attacks that
    look for the smallest perturbation by themselves. `attacks_per_image` says how many radii were tried on an image,
    on average. Passes and seconds are totals.
    """

    attack: Attack
    indices: Tensor
    eps: Tensor
    largest_unsuccessful_eps: Tensor
    radii: tuple[float, ...]
    attacks_per_image: float
    forward_passes: int
    gradient_passes: int
    seconds: float

    @property
    def median(self) -> tuple[float, float, float]:
        """The median over images and its distribution-free 95 % interval; see `median`."""
        return median(self.eps)

    def row(self) -> dict[str, Any]:
        """What a table shows; passes are per image, a radius that is infinite is None."""
        n, (norm, _) = len(self.eps), self.attack.threat_model()
        middle, low, high = (value if value < float("inf") else None for value in self.median)
        return {
            "n": n,
            "attack": repr(self.attack),
            "norm": norm,
            "median": middle,
            "ci_low": low,
            "ci_high": high,
            "clean": share(self.eps > 0),
            "unbroken": int(self.eps.isinf().sum()),
            "runs": round(self.attacks_per_image, 2),
            "forward_passes": round(self.forward_passes / n, 2),
            "gradient_passes": round(self.gradient_passes / n, 2),
            "seconds": round(self.seconds, 2),
        }

    def curve(self, radii: Sequence[float] | None = None) -> list[dict[str, Any]]:
        """Accuracy over eps with Wilson intervals: at the radii tried, or where an image breaks; from 0, clean accuracy.

        A success at one radius counts for every larger one, so this falls with eps, whatever the attack.
        """
        if radii is None:
            radii = self.radii or self.eps[self.eps.isfinite()].tolist()
        return [_at(radius, self.eps > radius) for radius in sorted({0.0, *radii})]


def smallest_eps(
    attack: Attack, evaluated: Evaluated, radii: Sequence[float] = (), indices: Sequence[int] | None = None
) -> SmallestEps:
    """The smallest radius at which an attack succeeds on each image, from as few attacks as bisection allows.

    An attack that looks for the smallest perturbation runs once, to its end, in a ball without limit. Any other is tried
    at `radii`, which rise: each image is tried at the middle one of those that are still open for it, as a success
    settles all larger radii and a failure is taken to settle all smaller ones. That is at most log2(len(radii) + 1)
    attacks for an image, rounded up, and fewer where the perturbation found is shorter than the radius. All images at
    the same radius are attacked together. Raises ``ValueError`` where radii are needed and do not rise from above 0.

    >>> from torch import nn
    >>> from vizrobust.attacks import FGSM
    >>> from vizrobust.compute import Compute
    >>> from vizrobust.data import ArraySplit
    >>> from vizrobust.robustness import evaluate, merge_results
    >>> images = ArraySplit(torch.tensor([0.9, 0.2, 0.6, 0.55]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> def evaluated(attack, **how):
    ...     return merge_results(attack, evaluate(nn.Flatten(), attack, images, Compute("cpu"), **how))
    >>> found = smallest_eps(FGSM(), evaluated, even_radii(0.7, bisection_steps=3))
    >>> [round(eps, 6) for eps in found.eps.tolist()]
    [0.4, 0.1]
    """
    if is_minimum_norm(attack):
        attack = vary(attack, eps=None)
        found = evaluated(attack, indices=indices, stop="end", all_runs=True)
        return SmallestEps(
            attack, found.indices, found.minimum_norm, torch.zeros_like(found.minimum_norm), (), 1.0, *_costs([found])
        )
    grid = torch.tensor([0.0, *radii, torch.inf], dtype=torch.float64)
    if len(grid) < 3 or not bool((grid.diff() > 0).all()):
        raise ValueError(f"{type(attack).__name__} is tried at several radii, rising from above 0; got {tuple(radii)}")
    evaluations: list[RobustAccuracy] = []

    def tried(index: int, wanted: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The indices, and for each the norm of the success at this radius of the grid (inf: none)."""
        found = evaluated(vary(attack, eps=float(grid[index])), indices=wanted)
        evaluations.append(found)
        # A norm may exceed the radius by a rounding, and where there is no ball it means nothing.
        longest = found.minimum_norm.clamp(max=float(grid[index]))
        norms = longest if ball_of(attack) else torch.where(found.minimum_norm > 0, longest.new_tensor(float(grid[index])), 0.0)
        return found.indices, torch.where(found.minimum_norm.isfinite(), norms, torch.inf)

    # Dyadic: at first the multiples of the largest power of 2 are tried, then those of half of it, down to 1. Then each
    # radius is tried in one round, whatever bracket the images that ask for it come from.
    stride = 1 << (len(radii).bit_length() - 1)
    found_indices, eps = tried(stride, indices)
    low, high = torch.where(eps.isinf(), stride, 0), torch.searchsorted(grid, eps)
    while stride := stride // 2:
        index = (low // stride + 1) * stride  # the only one left within the bracket, if any is
        for radius in sorted(set(index[index < high].tolist())):
            asked = ((index == radius) & (index < high)).nonzero()[:, 0]
            _, norms = tried(radius, found_indices[asked].tolist())
            eps[asked] = torch.minimum(eps[asked], norms)
            low[asked] = torch.where(norms.isinf(), radius, low[asked])
            high[asked] = torch.searchsorted(grid, eps[asked])
    runs = sum(len(found.indices) for found in evaluations) / len(found_indices)
    return SmallestEps(attack, found_indices, eps, grid[low].minimum(eps), tuple(radii), runs, *_costs(evaluations))


@dataclass(frozen=True)
class Optimality:
    """How near an attack comes to the best of several on the same images: 1 at every image, 0 nowhere (see `optimality`)."""

    value: float
    low: float
    high: float


def optimality(eps: Tensor, best: Tensor) -> Optimality | None:
    """The optimality of an attack whose smallest radii are `eps` (n,), beside the `best` (n,) of all attacks.

    Equation 5 of AttackBench (Cinà et al. 2025): with e0 the largest best radius, the area between clean accuracy and
    the attack's curve of accuracy over eps from 0 to e0, over that of the best attack. Over images that is the sum of
    max(e0 - eps, 0) over the sum of max(e0 - best, 0), where the image is right unchanged; the interval is that of a ratio
    of sums (delta method, 95 %). None where no attack broke an image, or all at one radius.

    >>> round(optimality(torch.tensor([0.2, 0.4, torch.inf]), torch.tensor([0.1, 0.4, 0.3])).value, 3)
    0.5
    """
    finite = best[best.isfinite()]
    right = best > 0
    limit = finite.max() if len(finite) else torch.zeros(())
    own, ideal = ((limit - radii[right]).clamp_min(0).double() for radii in (eps, best))
    if not len(ideal) or float(ideal.sum()) <= 0:
        return None
    ratio, n = float(own.sum() / ideal.sum()), len(ideal)
    spread = float((own - ratio * ideal).square().sum().sqrt() / ideal.sum()) * (n / max(n - 1, 1)) ** 0.5
    return Optimality(ratio, max(0.0, ratio - Z * spread), min(1.0, ratio + Z * spread))


def even_radii(largest: float, bisection_steps: int = 6) -> tuple[float, ...]:
    """As many evenly spaced radii up to the largest as that many bisection steps tell apart.

    >>> even_radii(0.7, bisection_steps=3)
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    """
    count = 2**bisection_steps - 1
    # Rounded to what a person would write; the error of a product shows in every table.
    return (*(float(f"{largest * k / count:.12g}") for k in range(1, count)), largest)


def median(eps: Tensor) -> tuple[float, float, float]:
    """The (lower) median of (n,) radii with a distribution-free interval of at least 95 %: order statistics.

    Below the k-th smallest value the true median lies only if fewer than k of n values are below it, a binomial
    probability (Conover 1999, section 3.2). So few values that no interval is sure get 0 and inf.

    >>> median(torch.arange(1.0, 101.0))
    (50.0, 40.0, 61.0)
    """
    from scipy.stats import binom

    ordered, n = eps.sort().values, len(eps)
    k = int(binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (0.0, float("inf"))
    return float(ordered[(n - 1) // 2]), low, high


def _at(radius: float, alive: Tensor) -> dict[str, Any]:
    low, high = wilson(int(alive.sum()), len(alive))
    return {"eps": radius, "accuracy": share(alive), "ci_low": low, "ci_high": high}


def _costs(evaluations: Sequence[RobustAccuracy]) -> tuple[int, int, float]:
    return (
        sum(found.forward_passes for found in evaluations),
        sum(found.gradient_passes for found in evaluations),
        sum(found.seconds for found in evaluations),
    )
