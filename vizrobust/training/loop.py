"""The training loop: adversarial examples of the present weights, one weight step for each batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import PGD, Attack, Linf, ball_of, threat
from vizrobust.compute import Compute
from vizrobust.data import DataSet, first, kept
from vizrobust.models import Normalized, architecture, borrowed
from vizrobust.rng import Streams, seeded
from vizrobust.robustness import evaluate, gather, share
from vizrobust.spec import vary
from vizrobust.training.augment import AUGMENTATIONS
from vizrobust.training.mix import Mix, examples, members
from vizrobust.training.recipe import Training

WATCHED_IMAGES = 200
WATCHED_STEPS = 10


@dataclass(frozen=True)
class Progress:
    """Where an epoch is: `batch` of `batches` done, with the mean loss so far."""

    epoch: int
    batch: int
    batches: int
    loss: float


class Trainer:
    """A network on its way through a recipe; its state after each epoch is all that the rest depends on.

    Every random number is a function of (seed, epoch, image), so a run that is taken up again goes on bit for bit
    as if it had never stopped, at the same thread count.
    """

    def __init__(self, recipe: Training, data: DataSet, compute: Compute) -> None:
        self.recipe, self.data, self.compute = recipe, data, compute
        # Every epoch reads all training images: small files are decoded once.
        self.train_images = kept(data.train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            body = architecture(recipe.arch, data.shape, len(data.classes))()
        self.net = compute.place(Normalized(body, data.mean, data.std))
        self.batches = math.ceil(len(data.train) / recipe.batch_size)
        self.optimizer = _optimizer(recipe, self.net)
        total = recipe.epochs * self.batches
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.lr, total_steps=total + 1)
        self.metrics: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.metrics)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the accuracy is reached that ends training early."""
        until = self.recipe.until_clean
        return self.epoch >= self.recipe.epochs or (
            until is not None and bool(self.metrics) and self.metrics[-1]["val_clean"] >= until
        )

    def state(self) -> dict[str, Any]:
        """All that is needed to go on; loads with ``weights_only=True``."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "metrics": self.metrics,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.metrics = list(state["metrics"])

    def attack_now(self) -> Attack | Mix | None:
        """The recipe's attack with this epoch's eps (and alpha, where it is fixed, in proportion); of a mix, each."""
        attack = self.recipe.attack
        if attack is None or self.epoch >= self.recipe.ramp:
            return attack
        part = (self.epoch + 1) / (self.recipe.ramp + 1)
        if isinstance(attack, Mix):
            return replace(attack, attacks=tuple(_weaker(one, part) for one in attack.attacks))
        return _weaker(attack, part)

    def rehearse(self) -> None:
        """Begin every attack on one image: ``ValueError`` where it does not fit the network or the images."""
        index = torch.zeros(1, dtype=torch.int64)
        streams = Streams(self.recipe.seed, [0], "rehearsal")
        x, y = self._images(index, streams)
        with borrowed(self.net):
            for attack in members(self.recipe.attack):
                for walk in attack.stages(self.net, x):
                    walk.begin(self.net, x, y, streams)

    def run_epoch(self) -> Iterator[Progress]:
        """One pass over the training images; afterwards `metrics` has one row more.

        Its ``gradient_passes`` are forward and backward passes for each training image: K of the attack and one of the
        weight step, or as many of the latter as examples of the image are learnt from.
        """
        recipe, compute, number = self.recipe, self.compute, self.epoch
        attack = self.attack_now()
        order = Streams(recipe.seed, [number], "order").permutation(len(self.data.train))[0]
        total = torch.zeros((), device=compute.device, dtype=torch.float64)
        norms = torch.zeros(2, device=compute.device, dtype=torch.float64)
        made = passed = 0
        for batch in range(self.batches):
            index = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            streams = Streams(recipe.seed, [f"{number}/{i}" for i in index.tolist()], "train")
            x, y = self._images(index, streams)
            rate = self.schedule.get_last_lr()[0]
            with counting(self.net) as passes:
                adv = self._attacked(attack, x, y, streams)
                loss = self._step(x, adv, y, number * self.batches + batch)
            passed += passes["gradient"]
            total += loss.detach() * len(index)
            if attack is not None:
                made += len(adv)
                delta = (adv - _copies(x, adv)).flatten(1)
                norms += torch.stack((delta.abs().amax(1).sum(), delta.norm(dim=1).sum())).to(norms)
            seen = min((batch + 1) * recipe.batch_size, len(order))
            mean = float(total) / seen
            if not math.isfinite(mean):
                kept = f"the state after epoch {number} is kept" if number else "nothing was kept yet"
                raise ValueError(
                    f"the loss became {mean} in epoch {number + 1}, batch {batch + 1}, at learning rate {rate:.2g}; "
                    f"try a lower --lr ({kept})"
                )
            yield Progress(number + 1, batch + 1, self.batches, mean)
        row: dict[str, Any] = {"epoch": number + 1, "loss": mean, "lr": self.schedule.get_last_lr()[0], **self._watch()}
        row["gradient_passes"] = round(passed / len(order), 4)
        if attack is not None:
            linf, l2 = (norms / made).tolist()
            radii = [threat(one)[1] for one in members(attack)]
            row |= {"eps": radii if isinstance(attack, Mix) else radii[0], "delta_linf": linf, "delta_l2": l2}
        self.metrics.append(row)

    def _images(self, index: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        x = AUGMENTATIONS[self.recipe.augment](self.train_images.take(index), streams.child("augment"))
        return self.compute.images(x), self.data.train.labels[index].to(self.compute.device)

    def _attacked(self, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        if attack is None:
            return x
        with self.compute.autocast():
            return examples(attack, self.net, x, y, streams.child("attack"))

    def _step(self, x: Tensor, adv: Tensor, y: Tensor, number: int) -> Tensor:
        """One weight step; BatchNorm sees the batch in one pass, whatever the attacks did."""
        weight = self.recipe.clean_weight if self.recipe.attack is not None else 0.0
        truth = _copies(y, adv)
        self.net.train()
        # Dropout and its like draw from the global generator: seeded here so that a resume draws the same.
        with seeded(self.recipe.seed * 1_000_003 + number, self.compute.device), self.compute.autocast():
            if weight == 0:
                loss = F.cross_entropy(self.net(adv), truth)
            else:
                on_adv, on_clean = self.net(torch.cat((adv, x))).split((len(adv), len(x)))
                loss = (1 - weight) * F.cross_entropy(on_adv, truth) + weight * F.cross_entropy(on_clean, y)
        self.optimizer.zero_grad(set_to_none=True)
        self.compute.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def _watch(self) -> dict[str, Any]:
        """Clean and robust accuracy on a slice of the validation images, under what `watched` says.

        Of several attacks the image must survive each; what each leaves by itself is ``val_robust_each``.
        """
        images, compute = first(self.data.val, WATCHED_IMAGES), self.compute.in_fp32()
        found = [
            gather(attack, list(evaluate(self.net, attack, images, compute)))
            for attack in watched(self.recipe.attack, self.data.eps)
        ]
        robust = torch.stack([one.robust for one in found])
        row: dict[str, Any] = {"val_clean": share(found[0].clean), "val_robust": share(robust.all(0))}
        return row if len(found) == 1 else row | {"val_robust_each": [share(one) for one in robust]}


@contextmanager
def counting(net: nn.Module) -> Iterator[Counter[str]]:
    """Counts under ``gradient`` the images that go through `net` for a gradient: an attack's, or that of the weights."""
    passes: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training or inputs[0].requires_grad:
            passes["gradient"] += len(inputs[0])

    handle = net.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def watched(attack: Attack | Mix | None, eps: float) -> tuple[Attack, ...]:
    """What is measured while training goes on: a short PGD in each attack's ball, or a short run of one without a ball.

    Standard training, and a ball without a radius, are watched in the L-inf ball of radius `eps`.
    """
    short = []
    for one in members(attack) or (PGD(),):
        ball = ball_of(one)
        if ball is None:
            short.append(vary(one, steps=WATCHED_STEPS))
        else:
            short.append(PGD(steps=WATCHED_STEPS, ball=ball if ball.eps is not None else Linf(eps=eps)))
    return tuple(dict.fromkeys(short))


def _weaker(attack: Attack, part: float) -> Attack:
    alpha = getattr(attack, "alpha", None)
    eps = threat(attack)[1]
    if eps is None:
        raise ValueError(f"{attack} has no eps: write eps=…, or fit the attack to a data set")
    changes = {"eps": eps * part}
    return vary(attack, **changes) if alpha is None else vary(attack, **changes, alpha=alpha * part)


def _copies(one: Tensor, like: Tensor) -> Tensor:
    """As many copies of a batch's images or labels, one after the other, as there are in `like`."""
    return one if len(one) == len(like) else torch.cat([one] * (len(like) // len(one)))


def _optimizer(recipe: Training, net: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
