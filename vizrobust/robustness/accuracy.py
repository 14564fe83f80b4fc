"""Accuracy under attack: which images stay right, counted with intervals and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vizrobust.attacks import Attack, is_inside, threat_model
from vizrobust.intervals import share, wilson

OUTSIDE = "outside the ball"
# The run under which the verdicts on the unchanged images are listed, beside those of an attack's runs.
CLEAN = "clean"


@dataclass(frozen=True)
class PartialResult:
    """What one run of an attack (or `CLEAN`, the unchanged images) found for k images.

    `indices` are the images' indices in the split, `first_success_step` the step of the first misclassified point
    (-1: none), `norms` the size of the perturbation that decided. `steps` is the run's K. Passes are those of these
    images alone, without padding and the other images in the batch, so that they depend neither on the batches nor
    on the processes.
    """

    run: str
    component: str
    steps: int
    indices: tuple[int, ...]
    first_success_step: tuple[int, ...]
    norms: tuple[float, ...]
    forward_passes: int
    gradient_passes: int
    seconds: float


@dataclass(frozen=True)
class RobustAccuracy:
    """An attack's outcome on n images, and what each of its S runs did.

    `indices` (n,) are the images' indices in the split, `clean` (n,) says which are right unchanged,
    ``first_success_step[s]`` (n,) at which step run s first got an image misclassified (-1: not), ``norms[s]`` (n,)
    the perturbation's size (nan: not attacked by s). Passes and seconds are totals.
    """

    attack: Attack
    indices: Tensor
    clean: Tensor
    runs: tuple[str, ...]
    components: tuple[str, ...]
    steps: int
    first_success_step: Tensor
    norms: Tensor
    forward_passes: int
    gradient_passes: int
    seconds: float

    @property
    def robust(self) -> Tensor:
        """(n,) bool: right clean and at every point met."""
        return self.clean & (self.first_success_step < 0).all(0)

    @property
    def robust_after_step(self) -> Tensor:
        """(steps + 1, n) bool: right clean and at every point up to step t; with several runs, of all of them."""
        never = self.steps + 1
        first = (
            self.first_success_step.masked_fill(self.first_success_step < 0, never).amin(0)
            if len(self.runs)
            else torch.full_like(self.indices, never)
        )
        return self.clean & (first[None] > torch.arange(self.steps + 1)[:, None])

    @property
    def minimum_norm(self) -> Tensor:
        """(n,) float64: the size of the smallest successful perturbation; 0 if wrong clean, inf if there is none."""
        successes = self.norms.masked_fill(self.first_success_step < 0, torch.inf)
        smallest = successes.amin(0) if len(self.runs) else torch.full(self.clean.shape, torch.inf, dtype=torch.float64)
        return smallest.masked_fill(~self.clean, 0)

    @property
    def largest_norm(self) -> float:
        """The largest perturbation met."""
        sizes = self.norms[self.norms.isfinite()]
        return float(sizes.max()) if len(sizes) else 0.0

    @property
    def outside(self) -> bool:
        """Whether the attack left its ball, so that the accuracy says nothing about robustness at eps."""
        return not is_inside(self.attack, self.largest_norm)

    def successes_by_component(self) -> dict[str, int]:
        """How many images each component of the attack was the first to succeed on."""
        counts = dict.fromkeys(self.components, 0)
        open_ = self.clean.clone()
        for component, steps in zip(self.components, self.first_success_step, strict=True):
            counts[component] += int((open_ & (steps >= 0)).sum())
            open_ &= steps < 0
        return counts

    def row(self) -> dict[str, Any]:
        """The fields of an `attack` row that do not depend on where the network came from; passes are per image."""
        n = len(self.clean)
        low, high = wilson(int(self.robust.sum()), n)
        norm, eps = threat_model(self.attack)
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
            "max_norm": round(self.largest_norm, 6),
            "note": OUTSIDE if self.outside else "",
            "broken_by": self.successes_by_component(),
            "forward_passes": round(self.forward_passes / n, 2),
            "gradient_passes": round(self.gradient_passes / n, 2),
            "seconds": round(self.seconds, 2),
        }

    def curve(self) -> list[dict[str, Any]]:
        """Accuracy after t = 0 … steps gradient steps, all from this one run: its iterates are nested."""
        rows = []
        for t, alive in enumerate(self.robust_after_step):
            low, high = wilson(int(alive.sum()), len(alive))
            rows.append({"steps": t, "accuracy": share(alive), "ci_low": low, "ci_high": high})
        return rows


def merge_results(attack: Attack, parts: Iterable[PartialResult]) -> RobustAccuracy:
    """The parts of an evaluation as one; ``ValueError`` where there are none."""
    parts = list(parts)
    if not any(part.run == CLEAN for part in parts):
        raise ValueError("there are no images to attack; choose a split that has some")
    found = {
        index: step
        for part in parts
        if part.run == CLEAN
        for index, step in zip(part.indices, part.first_success_step, strict=True)
    }
    order = sorted(found)
    column = {index: k for k, index in enumerate(order)}
    runs = list(dict.fromkeys((part.run, part.component) for part in parts if part.run != CLEAN))
    first_success_step = torch.full((len(runs), len(order)), -1)
    norms = torch.full((len(runs), len(order)), math.nan, dtype=torch.float64)
    for part in parts:
        if part.run == CLEAN:
            continue
        s = runs.index((part.run, part.component))
        columns = [column[index] for index in part.indices]
        first_success_step[s, columns] = torch.tensor(part.first_success_step, dtype=torch.int64)
        norms[s, columns] = torch.tensor(part.norms, dtype=torch.float64)
    return RobustAccuracy(
        attack,
        torch.tensor(order),
        torch.tensor([found[index] < 0 for index in order]),
        tuple(name for name, _ in runs),
        tuple(component for _, component in runs),
        max(part.steps for part in parts),
        first_success_step,
        norms,
        sum(part.forward_passes for part in parts),
        sum(part.gradient_passes for part in parts),
        sum(part.seconds for part in parts),
    )
