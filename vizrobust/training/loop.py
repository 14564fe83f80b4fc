"""The training loop: batches and epochs until the recipe ends, with accuracy monitored on validation images."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vizrobust.attacks import BIM, FGSM, PGD, Attack, EpsShare, Linf, ball_of
from vizrobust.attacks.threat_models import widened
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head, in_memory
from vizrobust.intervals import share
from vizrobust.models import evaluating
from vizrobust.requests import ParameterError
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.spec import vary
from vizrobust.training.data_parallel import shard_of
from vizrobust.training.examples import AUGMENTATIONS, MultiAttack, attacks_of
from vizrobust.training.recipe import TrainingRecipe, first_network
from vizrobust.training.train_state import TrainState, copies

MONITOR_STEPS = 10
# Robust accuracy has collapsed when it is so far below its best; Wong et al. (2020) stop at the same fall.
FALL = 0.2
# And it was never there when the training attack leaves so much more.
GAP = 0.3

Row = dict[str, Any]


def accuracies(net: nn.Module, attack: Attack | MultiAttack | None, data: DataSet, compute: Compute, images: int) -> Row:
    """Clean and robust accuracy in evaluation mode and fp32, under what `monitor_attacks` says; no random state is touched.

    Of several attacks the image must survive each; what each leaves by itself is ``val_robust_each``. Of a single attack by
    gradients ``val_attack`` is what it leaves itself: far above ``val_robust``, the network has learnt to fool it.
    ``constant_prediction`` is there only where the network predicts one class for every image: its name.
    """
    split, compute = head(data.val, images), compute.in_fp32()
    found = [merge_results(one, list(evaluate(net, one, split, compute))) for one in monitor_attacks(attack, data.usual_eps)]
    robust = torch.stack([one.robust for one in found])
    row: Row = {"val_clean": found[0].clean, "val_robust": share(robust.all(0))}
    if found[0].constant_prediction is not None:
        row["constant_prediction"] = data.classes[found[0].constant_prediction]
    if len(found) > 1:
        row["val_robust_each"] = [share(one) for one in robust]
    if isinstance(attack, FGSM | BIM | PGD):
        row["val_attack"] = share(merge_results(attack, list(evaluate(net, attack, split, compute))).robust)
    return row


def monitor_attacks(attack: Attack | MultiAttack | None, eps: float) -> tuple[Attack, ...]:
    """What is measured while training goes on: a short PGD in each attack's ball, or a short run of one without a ball.

    Standard training, and a ball without a radius, are watched in the L-inf ball of radius `eps`.
    """
    short = []
    for one in attacks_of(attack) or (PGD(),):
        ball = ball_of(one)
        if ball is None:
            short.append(vary(one, steps=MONITOR_STEPS))
        else:
            short.append(PGD(steps=MONITOR_STEPS, ball=ball if ball.eps is not None else Linf(eps=eps)))
    return tuple(dict.fromkeys(short))


def overfits_attack(row: Row) -> bool:
    """Whether a network holds out against its training attack alone: 30 points or more above what a short PGD leaves.

    >>> overfits_attack({"val_attack": 0.9, "val_robust": 0.1}), overfits_attack({"val_robust": 0.1})
    (True, False)
    """
    return bool(round(row.get("val_attack", 0.0) - row["val_robust"], 6) >= GAP)


def collapse(rows: Sequence[Row]) -> Row | None:
    """Whether the last of these epochs is a catastrophic overfitting (Wong et al. 2020): what fell, or None.

    Robust accuracy is 20 points or more below its best epoch, and clean accuracy fell by less than half as much: where
    both fall, the learning rate was too high.

    >>> rows = [{"epoch": 1, "val_clean": 0.6, "val_robust": 0.4}, {"epoch": 2, "val_clean": 0.7, "val_robust": 0.05}]
    >>> collapse(rows)
    {'epoch': 2, 'best_epoch': 1, 'before': 0.4, 'after': 0.05}
    """
    *earlier, last = rows
    if not earlier:
        return None
    best = max(earlier, key=lambda row: float(row["val_robust"]))
    fall = round(best["val_robust"] - last["val_robust"], 6)
    if fall < FALL or best["val_clean"] - last["val_clean"] >= fall / 2:
        return None
    return {"epoch": last["epoch"], "best_epoch": best["epoch"], "before": best["val_robust"], "after": last["val_robust"]}


# How often an epoch is trained again after a collapse before training ends with what there was before it.
RETRIES = 3
# Between the seeds of a method's stages.
STAGE_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Progress:
    """Where an epoch is: `batch` of `batches` done, with the mean loss so far."""

    epoch: int
    batch: int
    batches: int
    loss: float


@dataclass
class EpochTotals:
    """What an epoch has counted up to `batch`: images, losses and perturbations summed over images, gradient passes."""

    batch: int = 0
    images: int = 0
    made: int = 0
    passes: int = 0
    loss: float = 0.0
    linf: float = 0.0
    l2: float = 0.0


class Trainer:
    """A network on its way through a recipe; its state after each batch is all that the rest depends on.

    Every random number is a function of (seed, epoch, image), so a run that resumes continues bit for bit
    as if it had never stopped, at the same thread count. Of several processes each learns from its part of every batch,
    and all hold the same weights.
    """

    def __init__(self, recipe: TrainingRecipe, data: DataSet, compute: Compute) -> None:
        self.recipe, self.data, self.compute = recipe, data, compute
        # Every epoch reads all training images: small files are decoded once.
        self.train_images = in_memory(data.split("train"))
        net = self._network(0)
        self.batches = math.ceil(len(data.train) / recipe.batch_size)
        # One image has no statistics of a batch: a last batch of one joins the one before it.
        if _has_batchnorm(net) and self.batches > 1 and len(data.train) % recipe.batch_size == 1:
            self.batches -= 1
        updates = recipe.epochs * self.batches * recipe.training_method.minibatch_replays
        self.train_state = TrainState(recipe.update_settings, net, compute, updates)
        self.metrics: list[dict[str, Any]] = []
        self.tally = EpochTotals()
        self.retries = 0
        self.best: dict[str, Tensor] | None = None

    def _network(self, number: int) -> nn.Module:
        """The network of this stage before it has learnt anything."""
        net = first_network(self.recipe, self.data, self.recipe.seed + STAGE_SEED_STEP * number)
        return self.compute.place(net)

    @property
    def net(self) -> nn.Module:
        """The network under training."""
        return self.train_state.net

    @property
    def epoch(self) -> int:
        """How many epochs are done, over all stages of the method."""
        return len(self.metrics)

    @property
    def epochs(self) -> int:
        """How many epochs there are at most, over all stages of the method."""
        return self.recipe.epochs * self.recipe.training_method.stages

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or one of the recipe's reasons to end early has come."""
        return self.epoch >= self.epochs or (self.epoch > 0 and "ended" in self.metrics[-1])

    def state(self) -> dict[str, Any]:
        """All that is needed to go on; loads with ``weights_only=True``."""
        return {
            **self.train_state.state(),
            "metrics": self.metrics,
            "tally": asdict(self.tally),
            "retries": self.retries,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["round"] > self.train_state.stage:
            self.train_state.next_stage(self._network(state["round"]))
        self.train_state.restore(state)
        self.metrics, self.tally = list(state["metrics"]), EpochTotals(**state["tally"])
        self.retries, self.best = state["retries"], state["best"]

    def outcome(self) -> nn.Module:
        """The network that training ends with: that of the best epoch where the recipe stops early."""
        net = copy.deepcopy(self.train_state.eval_model)
        if self.best is not None:
            net.load_state_dict(self.best)
        return net

    def attack_now(self) -> Attack | MultiAttack | None:
        """The recipe's attack with this epoch's eps (and alpha, where it is fixed, in proportion); of a mix, each."""
        attack = self.recipe.attack
        if attack is None or self.epoch >= self.recipe.ramp:
            return attack
        part = (self.epoch + 1) / (self.recipe.ramp + 1)
        if isinstance(attack, MultiAttack):
            return replace(attack, attacks=tuple(_weaker(one, part) for one in attack.attacks))
        return _weaker(attack, part)

    def dry_run(self) -> None:
        """Begin every attack on one image: ``ValueError`` where network, images and attack do not fit each other."""
        index = torch.zeros(1, dtype=torch.int64)
        streams = Streams(self.recipe.seed, [0], "rehearsal")
        x, y = self._images(index, streams)
        self._check_size(x)
        self._check_batchnorm(x)
        with evaluating(self.net):
            for attack in attacks_of(self.recipe.attack):
                for walk in attack.runs(self.net, x):
                    walk.start(self.net, x, y, streams)

    def _check_size(self, x: Tensor) -> None:
        """``ValueError`` where the network cannot take an image, such as one smaller than its filters."""
        with evaluating(self.net), torch.no_grad():
            try:
                self.net(x)
            except RuntimeError as error:
                channels, height, width = x.shape[1:]
                size = f"{height} x {width} pixels and {channels} channel{'s' if channels > 1 else ''}"
                why = " ".join(str(error).split())
                raise ValueError(
                    f"{self.recipe.arch} cannot take images of {size} ({why}); choose another architecture or size of image"
                ) from error

    def _check_batchnorm(self, x: Tensor) -> None:
        """``ValueError`` where the batches are single images and the network cannot be trained on one."""
        if 1 in (self.recipe.batch_size, len(self.data.train)) and _has_batchnorm(self.net):
            try:
                copy.deepcopy(self.net).train()(x)
            except ValueError as error:
                raise ValueError(
                    f"{self.recipe.arch} has BatchNorm over maps of one pixel, which needs batches of two images or more; "
                    f"batch_size is {self.recipe.batch_size}, and there are {len(self.data.train)} training images"
                ) from error

    def run_epoch(self) -> Iterator[Progress]:
        """One pass over the training images, or the rest of it; afterwards `metrics` has one row more.

        Its ``gradient_passes`` are forward and backward passes for each training image: K of the attack and one of the
        weight step, or as many of the latter as examples of the image are learnt from.
        """
        if self.train_state.stage < self.epoch // self.recipe.epochs:
            self.train_state.next_stage(self._network(self.train_state.stage + 1))
        recipe, number = self.recipe, str(self.epoch)
        if self.retries:
            number += f" again {self.retries}"
        attack = self.attack_now()
        order = Streams(recipe.seed, [number], "order").permutation(len(self.data.train))[0]
        while self.tally.batch < self.batches:
            batch = self.tally.batch
            end = None if batch == self.batches - 1 else (batch + 1) * recipe.batch_size
            index = order[batch * recipe.batch_size : end]
            own, self.train_state.shard_weight = shard_of(index, self.compute.processes)
            streams = Streams(recipe.seed, [f"{number}/{i}" for i in own.tolist()], "train")
            self._learn(attack, own, len(index), streams)
            yield Progress(self.epoch + 1, batch + 1, self.batches, self.tally.loss / self.tally.images)
        self._close(attack)

    def _learn(self, attack: Attack | MultiAttack | None, index: Tensor, images: int, streams: Streams) -> None:
        """Learn from the images at `index`, this process's of the batch's `images`."""
        tally, train_state = self.tally, self.train_state
        x, y = self._images(index, streams)
        rate = train_state.schedule.get_last_lr()[0]
        with counting(train_state.compiled) as passes:
            result = self.recipe.training_method.train_step(train_state, attack, x, y, streams)
        delta = (result.examples - copies(x, result.examples)).flatten(1)
        count = len(index)
        sums = torch.stack((widened(result.loss) * count, delta.abs().amax(1).sum(), delta.norm(dim=1).sum()))
        counts = sums.new_tensor([len(delta), passes["gradient"]])
        # One exchange and one wait for the device a batch; where each process learns from all images they count once.
        sums = self.compute.processes.sum(torch.cat((sums, counts)) * (train_state.shard_weight * images / count))
        loss, linf, l2, made, passed = sums.tolist()
        tally.batch, tally.images = tally.batch + 1, tally.images + images
        tally.loss, tally.linf, tally.l2 = tally.loss + loss, tally.linf + linf, tally.l2 + l2
        tally.made, tally.passes = tally.made + round(made), tally.passes + round(passed)
        if not math.isfinite(tally.loss):
            kept = f"state.pt keeps the state after epoch {self.epoch}" if self.epoch else "nothing was kept yet"
            raise ParameterError(
                "the loss became %s in epoch %s, batch %s, at learning rate %.2g; try a lower {lr} (%s)",
                tally.loss, self.epoch + 1, tally.batch, rate, kept,
            )  # fmt: skip

    def _close(self, attack: Attack | MultiAttack | None) -> None:
        """The epoch's row, and what follows from it."""
        recipe, tally = self.recipe, self.tally
        row: dict[str, Any] = {"epoch": self.epoch + 1, "loss": tally.loss / tally.images, "lr": self._rate()}
        row |= self._watch()
        row["gradient_passes"] = round(tally.passes / tally.images, 4)
        if attack is not None:
            radii = [one.threat_model()[1] for one in attacks_of(attack)]
            row["eps"] = radii if isinstance(attack, MultiAttack) else radii[0]
            row |= {"delta_linf": tally.linf / tally.made, "delta_l2": tally.l2 / tally.made}
        if self.retries:
            row["retries"] = self.retries
        self.metrics.append(row)
        self.tally, self.retries = EpochTotals(), 0
        # Of a teacher's epochs none counts: what is kept is a network of the last stage.
        rows = self.metrics[self.train_state.stage * recipe.epochs :]
        is_last = self.train_state.stage == recipe.training_method.stages - 1
        if recipe.attack is not None and (fallen := collapse(rows)):
            row["collapse"] = fallen
        if recipe.early_stopping is not None and is_last:
            best = max(rows, key=lambda one: float(one["val_robust"]))
            if best is row:
                self.best = {key: value.clone() for key, value in self.train_state.eval_model.state_dict().items()}
            elif self.epoch - best["epoch"] >= recipe.early_stopping:
                row["ended"] = f"no better robust accuracy than {best['val_robust']:.1%} in epoch {best['epoch']}"
        if recipe.until_clean is not None and is_last and row["val_clean"] >= recipe.until_clean:
            row["ended"] = f"clean accuracy reached {row['val_clean']:.1%}"

    def roll_back(self, state: dict[str, Any]) -> str:
        """After a collapse, back to the `state` before that epoch, as the recipe says; returns what was done about it.

        Training ends there, or the epoch will be trained again in another order and from other random points, at most
        `RETRIES` times.
        """
        fallen, retries = self.metrics[-1]["collapse"], self.metrics[-1].get("retries", 0) + 1
        self.restore(state)
        fell = f"robust accuracy collapsed in epoch {fallen['epoch']}, from {fallen['before']:.1%} to {fallen['after']:.1%}"
        if self.recipe.on_collapse == "rollback" and retries <= RETRIES:
            self.retries = retries
            return f"{fell}; the epoch is trained again in another order"
        self.metrics[-1] = {**self.metrics[-1], "ended": fell}
        return f"{fell}; training ends with the weights before it"

    def _watch(self) -> dict[str, Any]:
        return accuracies(self.train_state.eval_model, self.recipe.attack, self.data, self.compute, self.recipe.watch)

    def _rate(self) -> float:
        return float(self.train_state.schedule.get_last_lr()[0])

    def _images(self, index: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        x = AUGMENTATIONS[self.recipe.augment](self.train_images.take(index), streams.child("augment"))
        return self.compute.images(x), self.data.train.labels[index].to(self.compute.device)


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


def _has_batchnorm(net: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def _weaker(attack: Attack, part: float) -> Attack:
    alpha = getattr(attack, "alpha", None)
    eps = attack.threat_model()[1]
    if eps is None:
        raise ValueError(f"{attack} has no eps: write eps=…, or fit the attack to a data set")
    return (
        vary(attack, eps=eps * part)
        if alpha is None or isinstance(alpha, EpsShare)
        else vary(attack, eps=eps * part, alpha=alpha * part)
    )
