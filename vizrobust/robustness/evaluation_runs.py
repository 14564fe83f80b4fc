"""Evaluations in a run folder, the examples they show, and the accuracies that a checkpoint records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks import FGSM, PGD, Attack, Linf
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, Subset, first
from vizrobust.intervals import share
from vizrobust.models import Checkpoint, borrowed
from vizrobust.rng import Streams
from vizrobust.robustness.accuracy import CLEAN, Evaluation, Part, gather
from vizrobust.robustness.evaluation import BATCH_SIZE, Until, evaluate
from vizrobust.runs import Row, Run


def identity(data: str, split: str, seed: int, batch_size: int, precision: str) -> dict[str, Any]:
    """What the verdicts depend on besides checkpoint, attack and number of images."""
    return {"data": data, "split": split, "seed": seed, "batch_size": batch_size, "precision": precision}


def evaluate_into(
    run: Run, checkpoint: Checkpoint, attack: Attack, images: Split, compute: Compute, seed: int = 0,
    batch_size: int = BATCH_SIZE, *, net: nn.Module | None = None, only: Sequence[int] | None = None,
    until: Until = "broken", every_walk: bool = False,
) -> Iterator[Part]:  # fmt: skip
    """As `evaluate`, with every part saved in the run before it is yielded; first come those that were there.

    A run may hold several checkpoints and attacks, and more images than are asked for now. `net` saves building
    the checkpoint's network again.
    """
    places = set(range(len(images)) if only is None else only)
    about = {"checkpoint": checkpoint.id, "attack": repr(attack), "until": until, "every_walk": every_walk}
    known = [
        _among(_part(row), places)
        for row in run.rows()
        # The verdicts on unchanged images are the same whatever the attack.
        if all(row.get(key) == value for key, value in about.items() if row["walk"] != CLEAN or key == "checkpoint")
    ]
    yield from known
    network = checkpoint.net() if net is None else net
    for part in evaluate(
        network, attack, images, compute, seed, batch_size,
        only=only, known=known, until=until, every_walk=every_walk,
    ):  # fmt: skip
        run.add({**about, **asdict(part)})
        yield part


def evaluated(run: Run, checkpoint: Checkpoint, attack: Attack, images: Split, compute: Compute, **how: Any) -> Evaluation:
    """`evaluate_into`, gathered."""
    return gather(attack, evaluate_into(run, checkpoint, attack, images, compute, **how))


def _part(row: Row) -> Part:
    values: dict[str, Any] = {}
    for field in fields(Part):
        value = row[field.name]
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return Part(**values)


def _among(part: Part, places: set[int]) -> Part:
    """The part for those of its images that are asked for; its costs in proportion."""
    kept = [k for k, place in enumerate(part.images) if place in places]
    if len(kept) == len(part.images):
        return part
    if not kept:
        return replace(part, images=(), broken_at=(), norms=(), seconds=0.0, forward_passes=0, gradient_passes=0)
    images, broken_at = (tuple(column[k] for k in kept) for column in (part.images, part.broken_at))
    norms = tuple(part.norms[k] for k in kept)
    ratio = len(kept) / len(part.images)
    return replace(
        part, images=images, broken_at=broken_at, norms=norms, seconds=part.seconds * ratio,
        forward_passes=round(part.forward_passes * ratio), gradient_passes=round(part.gradient_passes * ratio),
    )  # fmt: skip


SHOWN = 4


@dataclass(frozen=True)
class Examples:
    """k images: `x` and `adv` (k, C, H, W), `labels` (k,), the class probabilities of both (k, classes)."""

    x: Tensor
    adv: Tensor
    labels: Tensor
    clean_probs: Tensor
    adv_probs: Tensor


def examples(net: nn.Module, result: Evaluation, images: Split, compute: Compute, seed: int = 0, count: int = SHOWN) -> Examples:
    """The first images that an evaluation found broken, attacked again; the first correct ones where none is."""
    broken = (result.clean & ~result.robust).nonzero()[:, 0]
    chosen = broken if len(broken) else result.clean.nonzero()[:, 0]
    if not len(chosen):
        raise ValueError("the network classifies no image correctly, so there is no example to show")
    index = result.images[chosen[:count]]
    shown = Subset(images, index)
    x = compute.images(shown.take(torch.arange(len(index))))
    y = shown.labels.to(compute.device)
    compute.place(net)
    with borrowed(net):
        found = result.attack(net, x, y, Streams(seed, index.tolist(), "attack"))
        adv = found.x if found.best is None else found.best
        with torch.no_grad():
            clean_probs, adv_probs = net(x).softmax(1), net(adv).softmax(1)
    return Examples(x.cpu(), adv.cpu(), y.cpu(), clean_probs.cpu(), adv_probs.cpu())


HEADLINE_IMAGES = 1000
HEADLINE_STEPS = 50


def headline(
    net: nn.Module, data: DataSet, compute: Compute, eps: float | None = None,
    images: int = HEADLINE_IMAGES, steps: int = HEADLINE_STEPS,
) -> dict[str, Any]:  # fmt: skip
    """Shares of the first test images that `net` gets right, as a `Description.metrics` holds them.

    ``clean``, ``fgsm`` (one step) and ``robust`` (PGD with so many `steps`, text in ``attack``), both in the L-inf
    ball of radius `eps` (None: the data set's), on ``n`` images; in float32 whatever the precision of `compute`.
    """
    ball = Linf(eps=data.eps if eps is None else eps)
    tested, strong = first(data.test, images), PGD(steps=steps, ball=ball)
    one_step, found = (gather(attack, list(evaluate(net, attack, tested, compute.in_fp32()))) for attack in (FGSM(ball), strong))
    return {
        "clean": share(found.clean),
        "fgsm": share(one_step.robust),
        "robust": share(found.robust),
        "attack": repr(strong),
        "n": len(tested),
    }
