"""The state of a training run: network, optimizer, learning rate, moving average, and one weight step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from vizrobust.attacks import Attack
from vizrobust.compute import Compute
from vizrobust.rng import Streams, seeded
from vizrobust.training.data_parallel import all_reduce_mean, share_statistics
from vizrobust.training.examples import MultiAttack, examples

# The tenths at which robust overfitting was studied: epochs 100 and 150 of 200 (Rice et al. 2020).
DROPS, FACTOR = (0.5, 0.75), 0.1


def one_cycle(optimizer: Optimizer, lr: float, updates: int) -> LRScheduler:
    """Up to `lr` over the first 30 % of the steps, then down to nothing (Smith & Topin 2019)."""
    return OneCycleLR(optimizer, lr, total_steps=updates + 1)


def cosine(optimizer: Optimizer, lr: float, updates: int) -> LRScheduler:  # noqa: ARG001
    """From `lr` to 0 along half a cosine (Loshchilov & Hutter 2017)."""
    return CosineAnnealingLR(optimizer, updates)


def piecewise(optimizer: Optimizer, lr: float, updates: int) -> LRScheduler:  # noqa: ARG001
    """`lr`, a tenth of it after half of the steps, a hundredth after three quarters."""
    return MultiStepLR(optimizer, [round(part * updates) for part in DROPS], FACTOR)


def constant(optimizer: Optimizer, lr: float, updates: int) -> LRScheduler:  # noqa: ARG001
    """`lr` throughout."""
    return LambdaLR(optimizer, lambda _step: 1.0)


SCHEDULES: dict[str, Callable[[Optimizer, float, int], LRScheduler]] = {
    "one-cycle": one_cycle,
    "cosine": cosine,
    "piecewise": piecewise,
    "constant": constant,
}


OPTIMIZERS = ("adam", "sgd")

# Below this length a gradient has no direction.
TINY = 1e-12


@contextmanager
def perturbed(net: nn.Module, gamma: float, gradients: Callable[[list[nn.Parameter]], Iterable[Tensor]]) -> Iterator[None]:
    """Inside, each weight tensor w is moved by gamma * |w| along its gradient (eq. 10); afterwards all are as they were.

    `gradients` gives the loss's gradients for a list of weights, in one pass of its own.
    Biases and the scales of norm layers, tensors of one dimension, stay. The pass that finds the direction leaves no
    trace in BatchNorm's running statistics: they see the batch once, in the pass inside. gamma 0 does nothing.
    """
    if gamma == 0:
        yield
        return
    weights = [weight for weight in net.parameters() if weight.ndim > 1 and weight.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    before = [weight.detach().clone() for weight in weights]
    directions = gradients(weights)
    with torch.no_grad():
        for buffer, old in buffers:
            buffer.copy_(old)
        for weight, direction in zip(weights, directions, strict=True):
            direction = direction.nan_to_num(0.0, 0.0, 0.0)
            weight.add_(gamma * weight.norm() / direction.norm().clamp_min(TINY) * direction)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


LossOf = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class UpdateSettings:
    """What a weight step depends on besides the network and the batch; `TrainingRecipe.update_settings` makes it.

    `clean_weight` is the clean images' share of the loss, 0 for standard training. The other fields are the recipe's.

    >>> UpdateSettings(lr=1e-3).optimizer
    'adam'
    """

    lr: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    ema: float | None = None
    awp: float = 0.0
    label_smoothing: float = 0.0
    clean_weight: float = 0.0
    seed: int = 0
    compile: bool = False


@dataclass(frozen=True)
class StepResult:
    """What came of one batch: the examples that were learnt from, (k N, C, H, W), and the mean loss over them, ()."""

    examples: Tensor
    loss: Tensor


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An update in place (averages, weights, number averaged so far), for torch's `AveragedModel`.

    The weights of i steps ago count decay**i, divided by the sum of all such (Kingma & Ba 2015, section 3: the bias of
    the beginning). Without the division .999 would still be half the untrained network after 700 steps.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], averaged: Tensor | int) -> None:
        share = (1 - decay) / (1 - decay ** (int(averaged) + 1))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share)

    return update


class TrainState:
    """A network under training. `update` is one weight step; everything that the next one depends on is in `state`.

    `teacher` is the network of the stage before, where a method trains in stages; `persistent_delta` is a perturbation that a
    method takes from one batch to the next. Of several processes each has its own part of every batch, `shard_weight` of its
    images; all of them take the same step. `compiled` is the network that batches go through, compiled where the recipe
    says so.
    """

    def __init__(self, settings: UpdateSettings, net: nn.Module, compute: Compute, updates: int) -> None:
        self.settings, self.net, self.compute = settings, net, compute
        self.updates = updates
        self.teacher: nn.Module | None = None
        self.persistent_delta: Tensor | None = None
        self.stage = 0
        self.shard_weight = 1.0
        self._begin()

    def _begin(self) -> None:
        settings = self.settings
        share_statistics(self.net, self.compute.processes)
        # The same network; its first passes take minutes, and only its own passes are faster for it.
        self.compiled: nn.Module = torch.compile(self.net) if settings.compile else self.net  # type: ignore[assignment]
        self.optimizer = _optimizer(settings, self.net)
        self.schedule = SCHEDULES[settings.schedule](self.optimizer, settings.lr, self.updates)
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            self.average = AveragedModel(self.net, multi_avg_fn=moving_average(settings.ema))

    @property
    def eval_model(self) -> nn.Module:
        """The network whose accuracy counts and that is kept: the moving average where there is one."""
        return self.net if self.average is None else self.average.module

    def next_stage(self, net: nn.Module) -> None:
        """A new stage: the network so far becomes the `teacher` of `net`, which has not learnt anything yet."""
        self.teacher = copy.deepcopy(self.eval_model).eval().requires_grad_(False)
        self.net, self.persistent_delta = net, None
        self.stage += 1
        self._begin()

    def state(self) -> dict[str, Any]:
        """Loads with ``weights_only=True``."""
        held: dict[str, Any] = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "round": self.stage,
            "carried": self._persistent_delta_of_all(),
        }
        if self.average is not None:
            held["average"] = self.average.state_dict()
        if self.teacher is not None:
            held["teacher"] = self.teacher.state_dict()
        return held

    def _persistent_delta_of_all(self) -> Tensor | None:
        """In the order of a batch's slots, of which every size-th is this process's."""
        processes = self.compute.processes
        if self.persistent_delta is None or processes.size == 1:
            return self.persistent_delta
        parts = processes.all_gather([self.persistent_delta])
        whole = self.persistent_delta.new_empty((sum(map(len, parts)), *self.persistent_delta.shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank :: processes.size] = part.to(whole)
        return whole

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a `state` of the same stage."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        persistent_delta, processes = state["carried"], self.compute.processes
        self.persistent_delta = (
            persistent_delta
            if persistent_delta is None
            else persistent_delta[processes.rank :: processes.size].to(self.compute.device, copy=True)
        )
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])

    def attacked(self, attack: Attack | MultiAttack | None, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """The attack's examples against the present weights; the images themselves where there is no attack."""
        if attack is None:
            return x
        with self.compute.autocast():
            return examples(attack, self.compiled, x, y, streams.child("attack"))

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean over the batch, with the recipe's label smoothing (Szegedy et al. 2016)."""
        return F.cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)

    def mixed(self, net: nn.Module, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        """The loss on the examples, with the recipe's share of the clean one."""
        weight = self.settings.clean_weight
        truth = copies(y, adv)
        if weight == 0:
            return self.cross_entropy(net(adv), truth)
        # One pass over both, so that BatchNorm sees the batch once.
        on_adv, on_clean = net(torch.cat((adv, x))).split((len(adv), len(x)))
        return (1 - weight) * self.cross_entropy(on_adv, truth) + weight * self.cross_entropy(on_clean, y)

    def update(self, loss_of: LossOf) -> Tensor:
        """One weight step down ``loss_of(net)``, the network in training mode; returns the loss, detached."""
        train_mode(self.net)
        # Dropout and its like draw from the global generator: seeded here so that a resume draws the same.
        number = self.stage * self.updates + self.schedule.last_epoch
        with perturbed(self.net, self.settings.awp, lambda weights: self._gradients(loss_of, number, weights)):
            loss = self._loss(loss_of, number)
            self.optimizer.zero_grad(set_to_none=True)
            self.compute.backward(loss)
        self._meet()
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        return loss.detach()

    def _gradients(self, loss_of: LossOf, number: int, weights: list[nn.Parameter]) -> list[Tensor]:
        return self._met(torch.autograd.grad(self._loss(loss_of, number), weights))

    def _met(self, gradients: Iterable[Tensor]) -> list[Tensor]:
        return all_reduce_mean(gradients, self.shard_weight, self.compute.processes)

    def _meet(self) -> None:
        """Every process's gradients become those of the whole batch."""
        if self.compute.processes.size > 1:
            weights = [weight for weight in self.net.parameters() if weight.grad is not None]
            for weight, gradient in zip(weights, self._met(weight.grad for weight in weights), strict=True):  # type: ignore[misc]
                weight.grad = gradient

    def _loss(self, loss_of: LossOf, number: int) -> Tensor:
        with seeded(self.settings.seed * 1_000_003 + number, self.compute.device), self.compute.autocast():
            return loss_of(self.compiled)


def train_mode(net: nn.Module) -> None:
    """Training mode, but for layers that do not learn: BatchNorm there keeps its statistics.

    >>> net = nn.Sequential(nn.BatchNorm2d(2).requires_grad_(False), nn.BatchNorm2d(2))
    >>> train_mode(net)
    >>> [layer.training for layer in net]
    [False, True]
    """
    net.train()
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(weight.requires_grad for weight in own):
            module.eval()


def copies(one: Tensor, like: Tensor) -> Tensor:
    """As many copies of a batch's images or labels, one after the other, as there are in `like`."""
    return one if len(one) == len(like) else torch.cat([one] * (len(like) // len(one)))


def _optimizer(settings: UpdateSettings, net: nn.Module) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
