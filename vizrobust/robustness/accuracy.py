"""Accuracy under attack: which images stay right, counted with intervals and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vizrobust.attacks import Attack, is_inside
from vizrobust.intervals import share, wilson
from vizrobust.models.forward import constant_class
from vizrobust.results import Result, Table, interval_text, percent

OUTSIDE = "outside the ball"
# The run under which the verdicts on the unchanged images are listed, beside those of an attack's runs.
CLEAN = "clean"
# In place of the step of the first success: there was none; or there was none, and the outputs at some point that was
# judged are not finite, so that nobody can say what the network answers there.
NO_SUCCESS, UNDEFINED = -1, -2
# How the names of runs on the expectation of a stochastic network begin.
EXPECTATION = "EoT "


class Kept(Protocol):
    """Adversarial images that can be written to a file; see `evaluation_runs.AdversarialImages`."""

    @property
    def adversarial(self) -> Tensor: ...
    def save(self, file: str | Path) -> None: ...


@dataclass(frozen=True)
class PartialResult:
    """What one run of an attack (or `CLEAN`, the unchanged images) found for k images.

    `indices` are the images' indices in the split, `first_success_step` the step of the first misclassified point
    (`NO_SUCCESS`, -1: none; `UNDEFINED`, -2: none, and outputs that are not finite), `norms` the size of the perturbation
    that decided. `steps` is the run's K. Passes are those of these images alone, without padding and the other images in
    the batch, so that they depend neither on the batches nor on the processes. Of the unchanged images `predicted` are
    the classes (-1: undefined), `stochastic` says whether the network draws random numbers in evaluation mode, and
    `depends_on` is a sentence where its outputs for an image depend on anything else (see `models.probing`).
    `nonfinite_gradients` are the indices of images with gradient entries that were not finite and counted as 0.
    `batch_size` is that of the batches they were in, 0 where it was the evaluation's own.
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
    predicted: tuple[int, ...] = ()
    stochastic: bool = False
    nonfinite_gradients: tuple[int, ...] = ()
    batch_size: int = 0
    depends_on: str = ""


@dataclass(frozen=True)
class RobustAccuracy(Result):
    """How many of n images a network classifies correctly at every point that an attack visited.

    `accuracy` is that share, `interval` its Wilson 95 % interval, `clean` the share that is classified correctly unchanged.
    `correct` (unchanged), `robust` and `undefined`, each (n,) bool, tell the images apart, and `warnings` say what to know
    before the number is quoted. `rows` are for programs, `tables` for
    people.

    `indices` (n,) are the images' indices in the split. The attack consists of S `runs`, such as restarts:
    ``first_success_step[s]`` (n,) is the step at which run s first got an image misclassified (-1: never; -2: never, and
    some outputs are not finite), ``norms[s]`` (n,) the perturbation's size (nan: run s did not attack the image).
    `predicted` (n,) are the classes of the unchanged images (-1: not finite; None: not recorded),
    `nonfinite_gradients` the number of images with such gradient entries, which count as 0. Passes and seconds are totals.

    >>> from vizrobust.attacks import FGSM, Linf
    >>> clean = PartialResult(CLEAN, CLEAN, 0, (0, 1, 2), (-1, -1, 0), (0.0, 0.0, 0.0), 3, 0, 0.1)
    >>> fgsm = PartialResult("FGSM", "FGSM", 1, (0, 1), (1, -1), (0.3, 0.3), 4, 2, 0.1)
    >>> merge_results(FGSM(ball=Linf(eps=0.3)), [clean, fgsm])
    33.3 % (6.1 to 79.2) of 3 images under FGSM(ball=Linf(eps=0.3))
    """

    attack: Attack
    indices: Tensor
    correct: Tensor
    runs: tuple[str, ...]
    components: tuple[str, ...]
    steps: int
    first_success_step: Tensor
    norms: Tensor
    forward_passes: int
    gradient_passes: int
    seconds: float
    predicted: Tensor | None = None
    stochastic: bool = False
    nonfinite_gradients: int = 0
    depends_on: str = ""
    remake: Callable[[], Kept] | None = field(default=None, compare=False)
    draw: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    @property
    def adversarial(self) -> Tensor:
        """(n, C, H, W): the best adversarial example of each image, made again when asked for; see `remake`."""
        return self._made().adversarial

    def save(self, file: str | Path) -> None:
        """Write the adversarial images, labels and predictions to one .npz file, which ``npz:FILE`` reads."""
        self._made().save(file)

    def _made(self) -> Kept:
        if self.remake is None:
            raise ValueError("this result does not keep its network; take vizrobust.robust_accuracy, or call the attack itself")
        return self.remake()

    @property
    def robust(self) -> Tensor:
        """(n,) bool: classified correctly unchanged and at every point that was judged."""
        return self.correct & (self.first_success_step == NO_SUCCESS).all(0)

    @property
    def undefined(self) -> Tensor:
        """(n,) bool: outputs at some point are not finite, and none is misclassified; neither a success nor robust."""
        unchanged = torch.zeros_like(self.correct) if self.predicted is None else self.predicted < 0
        return unchanged | (self.correct & (self.first_success_step < 0).all(0) & (self.first_success_step == UNDEFINED).any(0))

    @property
    def accuracy(self) -> float:
        """The share of robust images, from 0 to 1."""
        return share(self.robust)

    @property
    def clean(self) -> float:
        """The share of images that are classified correctly unchanged, from 0 to 1."""
        return share(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval of the accuracy."""
        return wilson(int(self.robust.sum()), len(self.robust))

    @property
    def ok(self) -> bool | None:
        """True: a measurement is neither good nor bad."""
        return True

    @property
    def constant_prediction(self) -> int | None:
        """The class that the network predicts for every unchanged image, where some of them are of another; else None."""
        return None if self.predicted is None else constant_class(self.predicted, self.correct)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the accuracy is quoted, a sentence each."""
        n, found = len(self.correct), []
        if undefined := int(self.undefined.sum()):
            found.append(f"outputs are not finite on {undefined} of {n} images; these are neither misclassified nor robust")
        if self.nonfinite_gradients:
            found.append(f"gradients are not finite on {self.nonfinite_gradients} of {n} images; such entries count as 0")
        if self.constant_prediction is not None:
            found.append(f"the network predicts class {self.constant_prediction} for all {n} unchanged images")
        if self.stochastic and not all(name.startswith(EXPECTATION) for name in self.runs):
            found.append("the network is stochastic; attack its expectation with EOT before the accuracy is believed")
        if self.depends_on:
            found.append(self.depends_on)
        if self.outside:
            found.append(f"the attack left its ball (norm {self.largest_norm:.3g}), so this is no robust accuracy at eps")
        return tuple(found)

    @property
    def robust_after_step(self) -> Tensor:
        """(steps + 1, n) bool: right clean and at every point up to step t; with several runs, of all of them."""
        never = self.steps + 1
        first = (
            self.first_success_step.masked_fill(self.first_success_step < 0, never).amin(0)
            if len(self.runs)
            else torch.full_like(self.indices, never)
        )
        return self.correct & ~self.undefined & (first[None] > torch.arange(self.steps + 1)[:, None])

    @property
    def minimum_norm(self) -> Tensor:
        """(n,) float64: the size of the smallest successful perturbation; 0 if wrong clean, inf if there is none."""
        successes = self.norms.masked_fill(self.first_success_step < 0, torch.inf)
        smallest = successes.amin(0) if len(self.runs) else torch.full(self.correct.shape, torch.inf, dtype=torch.float64)
        return smallest.masked_fill(~self.correct, 0)

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
        open_ = self.correct.clone()
        for component, steps in zip(self.components, self.first_success_step, strict=True):
            counts[component] += int((open_ & (steps >= 0)).sum())
            open_ &= steps < 0
        return counts

    def __repr__(self) -> str:
        low, high = self.interval
        return f"{percent(self.accuracy)} ({interval_text(low, high)}) of {len(self.correct)} images under {self.attack!r}"

    def figure(self) -> Any:
        """Accuracy with its interval, as a matplotlib figure; ``ValueError`` unless it is from `vizrobust.robust_accuracy`."""
        if self.draw is None:
            raise ValueError("this result draws no figure; take vizrobust.robust_accuracy, or draw its curve()")
        return self.draw()

    def rows(self) -> list[dict[str, Any]]:
        """The one `row`."""
        return [self.row()]

    def tables(self) -> list[Table]:
        """Accuracy, interval and cost."""
        row = self.row()
        header = ["attack", "clean", "accuracy", "95 % interval", "images", "forward", "gradient"]
        cells = [
            row["attack"], percent(row["clean"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"]),
            str(row["n"]), f"{row['forward_passes']:g}", f"{row['gradient_passes']:g}",
        ]  # fmt: skip
        return [
            Table("accuracy under attack", header, [cells], ". ".join(("forward, gradient: passes per image", *self.warnings)))
        ]

    def row(self) -> dict[str, Any]:
        """The fields of an `attack` row that do not depend on where the network came from; passes are per image."""
        n = len(self.correct)
        low, high = self.interval
        norm, eps = self.attack.threat_model()
        return {
            "n": n,
            "attack": repr(self.attack),
            "norm": norm,
            "eps": eps,
            "steps": self.steps,
            "clean": self.clean,
            "accuracy": self.accuracy,
            "ci_low": low,
            "ci_high": high,
            "undefined": int(self.undefined.sum()),
            "max_norm": round(self.largest_norm, 6),
            "note": OUTSIDE if self.outside else "",
            "warnings": list(self.warnings),
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
    """The partial results of `evaluate` as one; ``ValueError`` where there are none.

    >>> from vizrobust.attacks import FGSM, Linf
    >>> merge_results(FGSM(ball=Linf(eps=0.3)), [PartialResult(CLEAN, CLEAN, 0, (0, 1), (-1, 0), (0.0, 0.0), 2, 0, 0.1)]).clean
    0.5
    """
    parts = list(parts)
    unchanged, attacked = [part for part in parts if part.run == CLEAN], [part for part in parts if part.run != CLEAN]
    if not unchanged:
        raise ValueError("there are no images to attack; choose a split that has some")
    clean = {index: step for part in unchanged for index, step in zip(part.indices, part.first_success_step, strict=True)}
    predicted = {index: found for part in unchanged for index, found in zip(part.indices, part.predicted, strict=False)}
    order = sorted(clean)
    column = {index: k for k, index in enumerate(order)}
    runs = list(dict.fromkeys((part.run, part.component) for part in attacked))
    first_success_step = torch.full((len(runs), len(order)), NO_SUCCESS)
    norms = torch.full((len(runs), len(order)), math.nan, dtype=torch.float64)
    for part in attacked:
        s = runs.index((part.run, part.component))
        columns = [column[index] for index in part.indices]
        first_success_step[s, columns] = torch.tensor(part.first_success_step, dtype=torch.int64)
        norms[s, columns] = torch.tensor(part.norms, dtype=torch.float64)
    return RobustAccuracy(
        attack,
        torch.tensor(order),
        torch.tensor([clean[index] == NO_SUCCESS for index in order]),
        tuple(name for name, _ in runs),
        tuple(component for _, component in runs),
        max(part.steps for part in parts),
        first_success_step,
        norms,
        sum(part.forward_passes for part in parts),
        sum(part.gradient_passes for part in parts),
        sum(part.seconds for part in parts),
        torch.tensor([predicted[index] for index in order]) if len(predicted) == len(order) else None,
        any(part.stochastic for part in unchanged),
        len({index for part in attacked for index in part.nonfinite_gradients}),
        next((part.depends_on for part in unchanged if part.depends_on), ""),
    )
