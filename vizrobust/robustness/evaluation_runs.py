"""Evaluations in a run folder, the examples they show, and the reference accuracies that a checkpoint records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks import FGSM, PGD, Attack, AttackResult, Linf
from vizrobust.compute import Compute, full_batches, size_class
from vizrobust.data import DataSet, Split, Subset, head
from vizrobust.intervals import share
from vizrobust.models import Checkpoint, evaluating
from vizrobust.models.folding import net_for
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN, PartialResult, RobustAccuracy, merge_results
from vizrobust.robustness.evaluation import BATCH_SIZE, Stop, evaluate
from vizrobust.runs import Row, RunFolder

# The keys of a partial result, and of its fields, in rows.jsonl.
KEYS = {"run": "walk", "component": "member", "indices": "images", "first_success_step": "broken_at"}
STOPS: dict[Stop, str] = {"success": "broken", "end": "end", "last": "last"}


def identity(data: str, split: str, seed: int, batch_size: int, precision: str) -> dict[str, Any]:
    """What the verdicts depend on besides checkpoint, attack and number of images."""
    return {"data": data, "split": split, "seed": seed, "batch_size": batch_size, "precision": precision}


def evaluate_in_folder(
    run: RunFolder, checkpoint: Checkpoint, attack: Attack, images: Split, compute: Compute, seed: int = 0,
    batch_size: int = BATCH_SIZE, *, net: nn.Module | None = None, indices: Sequence[int] | None = None,
    stop: Stop = "success", all_runs: bool = False,
) -> Iterator[PartialResult]:  # fmt: skip
    """As `evaluate`, with every partial result saved in the run folder before it is yielded; saved ones come first.

    A run folder may hold several checkpoints and attacks, and more images than are asked for now. `net` saves building
    the checkpoint's network again.
    """
    wanted = set(range(len(images)) if indices is None else indices)
    about = {"checkpoint": checkpoint.id, "attack": repr(attack), "until": STOPS[stop], "every_walk": all_runs}
    known = [
        _restricted(_partial_result(row), wanted)
        for row in run.rows()
        # The verdicts on unchanged images are the same whatever the attack.
        if all(row.get(key) == value for key, value in about.items() if row["walk"] != CLEAN or key == "checkpoint")
    ]
    yield from known
    network, folded = net_for(run, checkpoint) if net is None else (net, 0)
    record = {**about, "folded": folded} if folded else about
    for part in evaluate(
        network, attack, images, compute, seed, batch_size,
        indices=indices, known=known, stop=stop, all_runs=all_runs,
    ):  # fmt: skip
        run.add({**record, **_saved(part)})
        yield part


def evaluated(
    run: RunFolder, checkpoint: Checkpoint, attack: Attack, images: Split, compute: Compute, seed: int = 0,
    batch_size: int = BATCH_SIZE, *, report: Callable[[str, int, int], None] | None = None, **how: Any,
) -> RobustAccuracy:  # fmt: skip
    """`evaluate_in_folder`, merged into one result; `report` gets each attack run's name, images done and images in all."""
    parts, done = [], Counter[str]()
    for part in evaluate_in_folder(run, checkpoint, attack, images, compute, seed, batch_size, **how):
        parts.append(part)
        done[part.run] += len(part.indices)
        if report is not None:
            report(part.run, done[part.run], len(images))
    return merge_results(attack, parts)


def _saved(part: PartialResult) -> Row:
    """The fields that differ from their defaults, under their keys in rows.jsonl."""
    values = {field: getattr(part, field.name) for field in fields(part)}
    return {KEYS.get(field.name, field.name): value for field, value in values.items() if value != field.default}


def _partial_result(row: Row) -> PartialResult:
    values: dict[str, Any] = {}
    for field in fields(PartialResult):
        value = row.get(KEYS.get(field.name, field.name), field.default)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return PartialResult(**values)


def _restricted(part: PartialResult, wanted: set[int]) -> PartialResult:
    """The partial result of those of its images that are wanted; its costs in proportion."""
    kept = [k for k, index in enumerate(part.indices) if index in wanted]
    if len(kept) == len(part.indices):
        return part
    ratio = len(kept) / len(part.indices)
    columns = {
        name: tuple(column[k] for k in kept)
        for name in ("indices", "first_success_step", "norms", "predicted")
        if (column := getattr(part, name))
    }
    columns["nonfinite_gradients"] = tuple(index for index in part.nonfinite_gradients if index in wanted)
    costs = {name: round(getattr(part, name) * ratio) for name in ("forward_passes", "gradient_passes")}
    return replace(part, **columns, **costs, seconds=part.seconds * ratio)  # type: ignore[arg-type]


def adversarial_images(
    net: nn.Module, result: RobustAccuracy, images: Split, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE
) -> Tensor:
    """(n, C, H, W) on the CPU: each image's best example under the result's attack, made again from the same random streams."""
    network = PerImageNoise(compute.place(net))
    found = []
    with evaluating(network):
        for batch, count in full_batches(len(result.indices), size_class(len(result.indices), batch_size)):
            index = result.indices[batch]
            x, y = compute.images(images.take(index)), images.labels[index].to(compute.device)
            best = _attacked(network, result.attack, x, y, index.tolist(), seed).best
            assert best is not None
            found.append(best[:count].cpu())
    return torch.cat(found)


def _attacked(network: PerImageNoise, attack: Attack, x: Tensor, y: Tensor, indices: list[int], seed: int) -> AttackResult:
    """The attack's result; the noise of a stochastic network is each image's own, whatever the batch."""
    streams = Streams(seed, indices, "attack")
    network.noise_from(partial(streams.child, "example"))
    with seeded(seed, x.device):
        return attack(network, x, y, streams=streams)


SHOWN = 4


@dataclass(frozen=True)
class Examples:
    """k images and what an attack made of them; see `examples`.

    `x` and `adv` (k, C, H, W) in [0, 1] are the images before and after it, `labels` (k,) the true classes,
    `clean_probs` and `adv_probs` (k, classes) the probabilities that the network gives.
    """

    x: Tensor
    adv: Tensor
    labels: Tensor
    clean_probs: Tensor
    adv_probs: Tensor


def examples(
    net: nn.Module, result: RobustAccuracy, images: Split, compute: Compute, seed: int = 0, count: int = SHOWN
) -> Examples:
    """The first `count` images on which an attack succeeded, attacked again; the first correct ones where there are none.

    Raises ``ValueError`` where the network classifies no image correctly.

    >>> from vizrobust.attacks import FGSM, Linf
    >>> from vizrobust.compute import Compute
    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.tensor([0.9, 0.1, 0.6, 0.5]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> from vizrobust.robustness import evaluate, merge_results
    >>> net, attack, compute = nn.Flatten(), FGSM(ball=Linf(eps=0.1)), Compute("cpu")
    >>> shown = examples(net, merge_results(attack, evaluate(net, attack, images, compute)), images, compute)
    >>> shown.adv.flatten(1)
    tensor([[0.5000, 0.6000]])
    """
    misclassified = (result.correct & ~result.robust & ~result.undefined).nonzero()[:, 0]
    chosen = misclassified if len(misclassified) else result.correct.nonzero()[:, 0]
    if not len(chosen):
        raise ValueError("the network classifies no image correctly, so there is no example to show")
    index = result.indices[chosen[:count]]
    shown = Subset(images, index)
    x = compute.images(shown.take(torch.arange(len(index))))
    y = shown.labels.to(compute.device)
    network = PerImageNoise(compute.place(net))
    with evaluating(network):
        found = _attacked(network, result.attack, x, y, index.tolist(), seed)
        adv = found.x if found.best is None else found.best
        with torch.no_grad(), seeded(seed, compute.device):
            clean_probs, adv_probs = network(x).softmax(1), network(adv).softmax(1)
    return Examples(x.cpu(), adv.cpu(), y.cpu(), clean_probs.cpu(), adv_probs.cpu())


REFERENCE_IMAGES = 1000
REFERENCE_STEPS = 50


def reference_accuracies(
    net: nn.Module, data: DataSet, compute: Compute, eps: float | None = None,
    images: int = REFERENCE_IMAGES, steps: int = REFERENCE_STEPS,
) -> dict[str, Any]:  # fmt: skip
    """Shares of the first test images that `net` gets right, as a `CheckpointInfo.metrics` holds them.

    ``clean``, ``fgsm`` (one step) and ``robust`` (PGD with so many `steps`, text in ``attack``), both in the L-inf
    ball of radius `eps` (None: the data set's), on ``n`` images; in float32 whatever the precision of `compute`.
    ``constant_prediction`` is there only where the network predicts one class for all of them: its name.

    >>> from vizrobust.data import load
    >>> from vizrobust.models import load_checkpoint
    >>> net = load_checkpoint("mnist-k0").net()
    >>> sorted(reference_accuracies(net, load("mnist5k"), Compute("cpu"), images=5, steps=1))
    ['attack', 'clean', 'fgsm', 'n', 'robust']
    """
    ball = Linf(eps=data.eps if eps is None else eps)
    tested, strong = head(data.test, images), PGD(steps=steps, ball=ball)
    one_step, found = (
        merge_results(attack, list(evaluate(net, attack, tested, compute.in_fp32()))) for attack in (FGSM(ball), strong)
    )
    constant = found.constant_prediction
    return {
        **({} if constant is None else {"constant_prediction": data.classes[constant]}),
        "clean": found.clean,
        "fgsm": share(one_step.robust),
        "robust": share(found.robust),
        "attack": repr(strong),
        "n": len(tested),
    }
