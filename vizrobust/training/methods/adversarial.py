"""Adversarial training (Madry et al. 2018), and standard training where the recipe has no attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vizrobust.attacks import Attack
from vizrobust.rng import Streams
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields
from vizrobust.training.mix import Mix


@dataclass(frozen=True)
class Adversarial:
    """Learn from the attack's examples: what a recipe without a `method` does."""

    replays = rounds = 1
    usual = None

    def check(self, fields: Fields) -> None:
        """Every recipe can be trained so."""

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        adv = learner.attacked(attack, x, y, streams)
        return Learned(adv, learner.update(lambda net: learner.mixed(net, x, adv, y)))
