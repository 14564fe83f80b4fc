"""Defensive distillation (Papernot et al. 2016): a defence that only hides gradients, kept as an example of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import Attack
from vizrobust.rng import Streams
from vizrobust.spec import spec
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields, excludes
from vizrobust.training.mix import Mix


@spec
@dataclass(frozen=True)
class Distillation:
    """Two rounds at `temperature` T: a teacher on the labels, then a new network on the teacher's probabilities.

    Used at temperature 1 the student's logits are T times as far apart as a softmax can tell, its cross entropy is flat
    and its gradient vanishes: FGSM and PGD on it fail, C&W does not (Carlini & Wagner 2017, section V).

    >>> Distillation(temperature=100.0)
    Distillation()
    """

    temperature: float = 100.0

    replays = 1
    rounds = 2
    usual = None

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Distillation: temperature must be positive, got {self.temperature:g}")

    def check(self, fields: Fields) -> None:
        for name in ("attack", "clean_weight"):
            excludes(self, fields, name, "distillation learns from the clean images alone")
        excludes(self, fields, "label_smoothing", "the student has no labels to smooth")

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        truth = y
        if learner.teacher is not None:
            with torch.no_grad(), learner.compute.autocast():
                truth = (learner.teacher(x).float() / self.temperature).softmax(1)

        def loss(net: nn.Module) -> Tensor:
            return F.cross_entropy(net(x) / self.temperature, truth)

        return Learned(x, learner.update(loss))
