"""TRADES (Zhang et al. 2019): be right on the images, and say the same in their neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks import PGD, Attack
from vizrobust.attacks.losses import kl
from vizrobust.rng import Streams
from vizrobust.spec import spec, vary
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields, excludes, needs
from vizrobust.training.mix import Mix


@spec
@dataclass(frozen=True)
class TRADES:
    """Cross entropy on the images plus `beta` times the divergence of the prediction on the examples (eq. 5).

    The examples climb that divergence, not the loss of the label: the recipe's PGD with ``loss="kl"``, from its uniform
    random start (the paper starts at Gaussian noise of deviation .001). Images and examples share one pass.

    >>> TRADES(beta=6)
    TRADES()
    """

    beta: float = 6.0

    replays = rounds = 1
    usual = PGD(steps=10)

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"TRADES: beta must not be negative, got {self.beta:g}")

    def check(self, fields: Fields) -> None:
        needs(self, fields, PGD, "PGD, such as PGD(steps=10)")
        excludes(self, fields, "clean_weight", "its loss has a clean part of weight 1 already")
        vary(fields.attack, loss="kl")

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        adv = learner.attacked(vary(attack, loss="kl"), x, y, streams)

        def loss(net: nn.Module) -> Tensor:
            on_clean, on_adv = net(torch.cat((x, adv))).chunk(2)
            return learner.cross_entropy(on_clean, y) + self.beta * kl(on_adv, on_clean.softmax(1)).mean()

        return Learned(adv, learner.update(loss))
