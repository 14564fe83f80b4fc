"""Accuracy under attack: which images survive, counted with intervals and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vizrobust.attacks import Attack, is_inside, threat
from vizrobust.intervals import share, wilson

OUTSIDE = "outside the ball"
# The name under which the verdicts on the unchanged images stand, beside those of an attack's walks.
CLEAN = "clean"


@dataclass(frozen=True)
class Part:
    """What one walk of an attack (or `CLEAN`, the unchanged images) found for k images.

    `images` are their places in the split, `broken_at` the step of the first wrong point (-1: none), `norms` the
    size of the perturbation that decided. `steps` is the walk's K; passes are those of these images, without their
    mates and padding, so that they depend neither on the batches nor on the processes.
    """

    walk: str
    member: str
    steps: int
    images: tuple[int, ...]
    broken_at: tuple[int, ...]
    norms: tuple[float, ...]
    forward_passes: int
    gradient_passes: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """An attack's outcome on n images, and what each of its S walks did.

    `images` (n,) are their places in the split, `clean` (n,) says who is right unchanged, ``broken_at[s]`` (n,) at
    which step walk s broke an image (-1: not), ``norms[s]`` (n,) the perturbation's size (nan: not attacked by s).
    Passes and seconds are totals.
    """

    attack: Attack
    images: Tensor
    clean: Tensor
    walks: tuple[str, ...]
    members: tuple[str, ...]
    steps: int
    broken_at: Tensor
    norms: Tensor
    forward_passes: int
    gradient_passes: int
    seconds: float

    @property
    def robust(self) -> Tensor:
        """(n,) bool: right clean and at every point met."""
        return self.clean & (self.broken_at < 0).all(0)

    @property
    def survives(self) -> Tensor:
        """(steps + 1, n) bool: right clean and at every point up to step t; with several walks, of all of them."""
        never = self.steps + 1
        first = (
            self.broken_at.masked_fill(self.broken_at < 0, never).amin(0)
            if len(self.walks)
            else torch.full_like(self.images, never)
        )
        return self.clean & (first[None] > torch.arange(self.steps + 1)[:, None])

    @property
    def norm(self) -> Tensor:
        """(n,) float64: the size of the smallest perturbation that broke each image; 0 wrong clean, inf unbroken."""
        broke = self.norms.masked_fill(self.broken_at < 0, torch.inf)
        smallest = broke.amin(0) if len(self.walks) else torch.full(self.clean.shape, torch.inf, dtype=torch.float64)
        return smallest.masked_fill(~self.clean, 0)

    @property
    def max_norm(self) -> float:
        """The largest perturbation met."""
        sizes = self.norms[self.norms.isfinite()]
        return float(sizes.max()) if len(sizes) else 0.0

    @property
    def outside(self) -> bool:
        """Whether the attack left its ball, so that the accuracy says nothing about robustness at eps."""
        return not is_inside(self.attack, self.max_norm)

    def broken_by(self) -> dict[str, int]:
        """How many images each member of the attack broke, those that an earlier one had broken left out."""
        counts = dict.fromkeys(self.members, 0)
        open_ = self.clean.clone()
        for member, steps in zip(self.members, self.broken_at, strict=True):
            counts[member] += int((open_ & (steps >= 0)).sum())
            open_ &= steps < 0
        return counts

    def row(self) -> dict[str, Any]:
        """The fields of an `attack` row that do not depend on where the network came from; passes are per image."""
        n = len(self.clean)
        low, high = wilson(int(self.robust.sum()), n)
        norm, eps = threat(self.attack)
        return {
            "n": n,
            "attack": repr(self.attack),
            "norm": norm,
            "eps": eps,
            "steps": self.steps,
            "clean": share(self.clean),
            "accuracy": share(self.robust),
            "ci_low": low,
            "ci_high": high,
            "max_norm": round(self.max_norm, 6),
            "note": OUTSIDE if self.outside else "",
            "broken_by": self.broken_by(),
            "forward_passes": round(self.forward_passes / n, 2),
            "gradient_passes": round(self.gradient_passes / n, 2),
            "seconds": round(self.seconds, 2),
        }

    def curve(self) -> list[dict[str, Any]]:
        """Accuracy after t = 0 … steps gradient steps, all from this one run: its iterates are nested."""
        rows = []
        for t, alive in enumerate(self.survives):
            low, high = wilson(int(alive.sum()), len(alive))
            rows.append({"steps": t, "accuracy": share(alive), "ci_low": low, "ci_high": high})
        return rows


def gather(attack: Attack, parts: Iterable[Part]) -> Evaluation:
    """The parts of an evaluation as one; ``ValueError`` where there are none."""
    parts = list(parts)
    if not any(part.walk == CLEAN for part in parts):
        raise ValueError("there are no images to attack; choose a split that has some")
    found = {place: at for part in parts if part.walk == CLEAN for place, at in zip(part.images, part.broken_at, strict=True)}
    order = sorted(found)
    column = {place: k for k, place in enumerate(order)}
    walks = list(dict.fromkeys((part.walk, part.member) for part in parts if part.walk != CLEAN))
    broken_at = torch.full((len(walks), len(order)), -1)
    norms = torch.full((len(walks), len(order)), math.nan, dtype=torch.float64)
    for part in parts:
        if part.walk == CLEAN:
            continue
        s = walks.index((part.walk, part.member))
        columns = [column[place] for place in part.images]
        broken_at[s, columns] = torch.tensor(part.broken_at, dtype=torch.int64)
        norms[s, columns] = torch.tensor(part.norms, dtype=torch.float64)
    return Evaluation(
        attack,
        torch.tensor(order),
        torch.tensor([found[place] < 0 for place in order]),
        tuple(name for name, _ in walks),
        tuple(member for _, member in walks),
        max(part.steps for part in parts),
        broken_at,
        norms,
        sum(part.forward_passes for part in parts),
        sum(part.gradient_passes for part in parts),
        sum(part.seconds for part in parts),
    )
