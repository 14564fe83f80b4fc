"""Accuracy under attack: which images survive, counted with intervals and costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from vizrobust.attacks import Attack, radius
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.models import borrowed
from vizrobust.rng import Streams

BATCH_SIZE = 100
CONFIDENCE = 0.95
OUTSIDE = "outside the ball"


@dataclass(frozen=True)
class Part:
    """What one batch of an evaluation found, for k images: `correct` (steps + 1, k); passes are for each image."""

    clean: Tensor
    correct: Tensor
    norm: Tensor
    forward_passes: float
    gradient_passes: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """An attack's outcome on n images. ``survives[t]`` says who is correct clean and at every iterate up to t."""

    attack: Attack
    clean: Tensor
    survives: Tensor
    max_norm: float
    forward_passes: float
    gradient_passes: float
    seconds: float

    @property
    def robust(self) -> Tensor:
        """(n,) bool: correct clean and at every iterate met."""
        return self.survives[-1]

    @property
    def outside(self) -> bool:
        """Whether the attack left its ball, so that the accuracy says nothing about robustness at eps."""
        return self.max_norm > radius(self.attack.ball) + 1e-6

    def row(self) -> dict[str, Any]:
        """The fields of an `attack` row that do not depend on where the network came from."""
        low, high = wilson(int(self.robust.sum()), len(self.robust))
        return {
            "n": len(self.clean),
            "attack": repr(self.attack),
            "norm": type(self.attack.ball).__name__,
            "eps": self.attack.ball.eps,
            "steps": len(self.survives) - 1,
            "clean": share(self.clean),
            "accuracy": share(self.robust),
            "ci_low": low,
            "ci_high": high,
            "max_norm": round(self.max_norm, 6),
            "note": OUTSIDE if self.outside else "",
            "forward_passes": round(self.forward_passes, 2),
            "gradient_passes": round(self.gradient_passes, 2),
            "seconds": round(self.seconds, 2),
        }

    def curve(self) -> list[dict[str, Any]]:
        """Accuracy after t = 0 … steps gradient steps, all from this one run: its iterates are nested."""
        rows = []
        for t, alive in enumerate(self.survives):
            low, high = wilson(int(alive.sum()), len(alive))
            rows.append({"steps": t, "accuracy": share(alive), "ci_low": low, "ci_high": high})
        return rows


def evaluate(
    net: nn.Module, attack: Attack, images: Split, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE
) -> Iterator[Part]:
    """Attack every image of a split, in batches of one size; `gather` makes one result of the parts."""
    compute.place(net)
    for index, count in full_batches(len(images), batch_size):
        began = time.perf_counter()
        x, y = compute.images(images.take(index)), images.labels[index].to(compute.device)
        streams = Streams(seed, index.tolist(), "attack")
        with borrowed(net), compute.autocast(), _Passes(net) as passes:
            with torch.no_grad():
                clean = net(x).argmax(1) == y
            found = attack(net, x, y, streams)
        if found.correct is None or found.best is None:
            raise ValueError(f"{attack} returned no verdicts")
        # What decided an image's verdict, and where its iteration ended: an unprojected one may be outside at either.
        norm = torch.maximum(attack.ball.norm(found.best - x), attack.ball.norm(found.x - x))
        part = Part(clean, found.correct, norm, *passes.each(len(x)), time.perf_counter() - began)
        yield _first(part, count)


def gather(attack: Attack, parts: list[Part]) -> Evaluation:
    """The parts of an evaluation as one; ``ValueError`` where there are none."""
    if not parts:
        raise ValueError("there are no images to attack; choose a split that has some")
    clean = torch.cat([part.clean for part in parts])
    correct = torch.cat([part.correct for part in parts], dim=1)
    return Evaluation(
        attack,
        clean,
        (correct.to(torch.int8).cummin(0).values.bool()) & clean,
        float(torch.cat([part.norm for part in parts]).max()),
        sum(part.forward_passes * len(part.clean) for part in parts) / len(clean),
        sum(part.gradient_passes * len(part.clean) for part in parts) / len(clean),
        sum(part.seconds for part in parts),
    )


def share(hits: Tensor) -> float:
    """(n,) bool -> the fraction that is true."""
    return float(hits.to(torch.float64).mean())


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a proportion (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(450, 1000)]
    [0.419, 0.481]
    """
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _first(part: Part, count: int) -> Part:
    """The part without the repeats that filled its batch."""
    return Part(
        part.clean[:count].cpu(), part.correct[:, :count].cpu(), part.norm[:count].cpu(),
        part.forward_passes, part.gradient_passes, part.seconds,
    )  # fmt: skip


class _Passes:
    """Counts the network's forward passes, and those of them that lead to an image gradient, in images."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.forward, self.gradient = net, 0, 0

    def __enter__(self) -> _Passes:
        self._handle = self.net.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def each(self, images: int) -> tuple[float, float]:
        """Forward and gradient passes for each of so many images."""
        return self.forward / images, self.gradient / images

    def _count(self, _net: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.forward += len(inputs[0])
        self.gradient += len(inputs[0]) * bool(inputs[0].requires_grad and torch.is_grad_enabled())
