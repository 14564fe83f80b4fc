"""Evaluations and adversarial images in a run folder, the examples they show, and a checkpoint's reference accuracies."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.attacks import FGSM, L1, L2, PGD, Attack, AttackResult, Ball, Linf, ball_of, epsilon
from vizrobust.compute import Compute, full_batches, size_class
from vizrobust.data import DataSet, Split, Subset, head
from vizrobust.intervals import share
from vizrobust.models import Checkpoint, evaluating
from vizrobust.models.folding import net_for
from vizrobust.models.forward import PerImageNoise, predicted_classes
from vizrobust.models.object_code import own_sources
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN, PartialResult, RobustAccuracy, merge_results
from vizrobust.robustness.evaluation import BATCH_SIZE, Stop, evaluate
from vizrobust.runs import Row, RunFolder, write_atomic, write_png
from vizrobust.spec import vary

# The keys of a partial result, and of its fields, in rows.jsonl.
KEYS = {"run": "walk", "component": "member", "indices": "images", "first_success_step": "broken_at"}
STOPS: dict[Stop, str] = {"success": "broken", "end": "end", "last": "last"}


def identity(data: str, split: str, seed: int, batch_size: int, precision: str) -> dict[str, Any]:
    """What the verdicts depend on besides checkpoint, attack and number of images."""
    return {"data": data, "split": split, "seed": seed, "batch_size": batch_size, "precision": precision}


def attack_key(attack: Attack) -> dict[str, str]:
    """What tells an attack's rows from others: its text, and the hash of what that does not tell (see `own_sources`)."""
    own = own_sources(attack)
    return {"attack": repr(attack), **({"sources": own} if own else {})}


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
    about = {"checkpoint": checkpoint.id, **attack_key(attack), "until": STOPS[stop], "every_walk": all_runs}
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
    for one in fields(PartialResult):
        value = row.get(KEYS.get(one.name, one.name), one.default)
        values[one.name] = tuple(value) if isinstance(value, list) else value
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


LEVELS = 255
# A norm may exceed the radius by the rounding of its sum.
ROUNDING = 1e-6


@dataclass(frozen=True)
class AdversarialImages:
    """n images after an attack: `adversarial` and `clean` (n, C, H, W) float32 in [0, 1], the rest (n,).

    `predictions` are the network's classes for the adversarial images, `norms` the size of each change in the attack's
    norm, `indices` the images' places in the split; `about` says where they are from.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    predictions: Tensor
    norms: Tensor
    indices: Tensor
    classes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, file: str | Path) -> None:
        """Write one .npz file, which ``npz:FILE`` reads as a data set of the adversarial images, every bit the same.

        Arrays: x_test and x_clean (n, H, W, C), y_test, predictions, norms, indices, classes; `about` is JSON with the
        sha256 of both arrays of images.

        >>> from tempfile import TemporaryDirectory
        >>> from vizrobust.data import load
        >>> x, y = torch.rand(2, 1, 3, 4), torch.tensor([0, 1])
        >>> with TemporaryDirectory() as folder:
        ...     AdversarialImages(x / 2, x, y, y, y.float(), y, ("a", "b")).save(f"{folder}/kept.npz")
        ...     again = load(f"npz:{folder}/kept.npz").test.take(torch.arange(2))
        >>> torch.equal(again, x)
        True
        """
        images = {name: _last(x) for name, x in (("x_test", self.adversarial), ("x_clean", self.clean))}
        hashes = {f"{name}_sha256": hashlib.sha256(x.tobytes()).hexdigest() for name, x in images.items()}
        others = ("predictions", "norms", "indices")
        arrays: dict[str, Any] = {
            **images,
            "y_test": self.labels.numpy(),
            **{name: getattr(self, name).numpy() for name in others},
            "about": np.array(json.dumps({**self.about, **hashes})),
        }
        if self.classes:
            arrays["classes"] = np.array(self.classes)
        write_atomic(file, lambda opened: np.savez_compressed(opened, **arrays))

    def save_png(self, folder: str | Path) -> None:
        """Write 8-bit PNGs, ``FOLDER/CLASS/INDEX.png``, which ``imagefolder:FOLDER`` reads; first bring them to `eight_bit`."""
        values = (_last(self.adversarial) * LEVELS).round().astype(np.uint8)
        for pixels, label, index, found in zip(
            values, self.labels.tolist(), self.indices.tolist(), self.predictions.tolist(), strict=True
        ):
            path = Path(folder) / (self.classes[label] if self.classes else str(label)) / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = {"vizrobust": json.dumps({**self.about, "index": index, "label": label, "prediction": found})}
            write_png(path, pixels[..., 0] if pixels.shape[-1] == 1 else pixels, texts)


def _last(x: Tensor) -> np.ndarray[Any, Any]:
    """(n, C, H, W) -> (n, H, W, C), as data sets in .npz files have it."""
    return np.ascontiguousarray(x.float().permute(0, 2, 3, 1).numpy())


def predicted(net: nn.Module, x: Tensor, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE) -> Tensor:
    """(n, C, H, W) -> (n,): the classes, -1 where the outputs are not finite; in batches as an evaluation makes them."""
    network, found = PerImageNoise(compute.place(net)), []
    for batch, count in full_batches(len(x), size_class(len(x), batch_size)):
        network.noise_from(partial(Streams, seed, batch.tolist(), CLEAN))
        with evaluating(network), compute.autocast(), torch.no_grad(), seeded(0, compute.device):
            logits = network(compute.images(x[batch]))[:count].cpu()
        found.append(predicted_classes(logits))
    return torch.cat(found)


def rounded(ball: Ball | None, x: Tensor, adv: Tensor) -> Tensor:
    """The 8-bit image nearest to `adv`, or one inside the ball around `x` where that leaves it; all (n, C, H, W).

    In L-inf the nearest 8-bit values inside; else values are rounded towards the image where rounding made the norm
    too large. An image `x` that is not in 8 bits itself may have none inside; then the one nearest to it.

    >>> x = torch.zeros(1, 1, 1, 2)
    >>> rounded(Linf(eps=0.3), x, x + 0.3) * 255
    tensor([[[[76., 76.]]]])
    """
    nearest = (adv * LEVELS).round()
    if ball is None or ball.eps is None:
        return nearest / LEVELS
    if isinstance(ball, Linf):
        # The hair keeps x + eps itself, where that is a whole number of levels.
        reach = epsilon(ball) * LEVELS + 1e-4
        low, high = (x * LEVELS - reach).ceil(), (x * LEVELS + reach).floor()
        return torch.maximum(torch.minimum(nearest, high), low).clamp_(0, LEVELS) / LEVELS
    if isinstance(ball, L1 | L2):
        inward = torch.where(adv > x, (adv * LEVELS + 1e-4).floor(), (adv * LEVELS - 1e-4).ceil())
        outside = ball.norm(nearest / LEVELS - x) > epsilon(ball) + ROUNDING
        return torch.where(outside.reshape(-1, 1, 1, 1), inward, nearest).clamp_(0, LEVELS) / LEVELS
    return torch.where(adv == x, (x * LEVELS).round(), nearest) / LEVELS


class Rounded(nn.Module):
    """A network that sees its images in 8 bits; its gradient passes through the rounding unchanged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x + ((x.detach() * LEVELS).round() / LEVELS - x.detach()))


def eight_bit(
    net: nn.Module, attack: Attack, kept: AdversarialImages, compute: Compute, seed: int = 0, batch_size: int = BATCH_SIZE
) -> AdversarialImages:
    """The images in 8 bits inside the ball, with the network's classes for them.

    Images that rounding brought back to their class are attacked again, through the rounding and in a ball whose
    L-inf radius is a whole number of levels, and take what that finds if it is misclassified.
    """
    ball = ball_of(attack)
    adv = rounded(ball, kept.clean, kept.adversarial)
    found = predicted(net, adv, compute, seed, batch_size)
    back = ((found == kept.labels) & (kept.predictions != kept.labels)).nonzero()[:, 0]
    if len(back):
        again = attack
        if isinstance(ball, Linf) and ball.eps is not None:
            again = vary(attack, eps=int(ball.eps * LEVELS + 1e-4) / LEVELS)
        streams = Streams(seed, kept.indices[back].tolist(), "attack").child("8 bits")
        x, y = compute.images(kept.clean[back]), kept.labels[back].to(compute.device)
        with seeded(seed, compute.device):
            best = again(Rounded(compute.place(net)), x, y, streams=streams).best
        assert best is not None
        tried = rounded(ball, kept.clean[back], best.cpu())
        classes = predicted(net, tried, compute, seed, batch_size)
        better = classes != kept.labels[back]
        adv[back[better]], found[back[better]] = tried[better], classes[better]
    norms = (ball or Linf()).norm(adv - kept.clean)
    return AdversarialImages(kept.clean, adv, kept.labels, found, norms, kept.indices, kept.classes, {**kept.about, "bits": 8})


def outside(ball: Ball, clean: Tensor, adv: Tensor) -> Tensor:
    """(n,) bool: the images that leave the ball around the clean ones by more than rounding (1e-6).

    >>> outside(Linf(eps=0.1), torch.zeros(2, 1, 1, 1), torch.tensor([0.1, 0.2]).reshape(2, 1, 1, 1))
    tensor([False,  True])
    """
    return ball.norm(adv - clean) > epsilon(ball) + ROUNDING
