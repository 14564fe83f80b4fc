"""Free adversarial training (Shafahi et al. 2019): one backward pass serves the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.attacks import FGSM, Attack, radius
from vizrobust.rng import Streams
from vizrobust.spec import spec
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields, excludes, needs
from vizrobust.training.mix import Mix


@spec
@dataclass(frozen=True)
class Free:
    """Each batch is learnt from `replays` times; the perturbation takes an FGSM step each time (algorithm 1).

    It goes on from one batch to the next, as in the paper. An epoch is `replays` weight steps a batch, so divide the
    epochs by `replays` to compare at equal cost. BatchNorm sees each replay, for each is a weight step of its own.

    >>> Free(replays=4)
    Free(replays=4)
    """

    replays: int = 8

    rounds = 1
    usual = FGSM()

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"Free: replays must be at least 1, got {self.replays}")

    def check(self, fields: Fields) -> None:
        needs(self, fields, FGSM, "FGSM()")
        excludes(self, fields, "clean_weight", "every gradient of its pass is at the perturbed images")

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        assert isinstance(attack, FGSM)
        if learner.carried is None or learner.carried.shape[1:] != x.shape[1:]:
            learner.carried = torch.zeros_like(x)
        ball, eps, carried = attack.ball, radius(attack.ball), learner.carried
        losses = []
        for _ in range(self.replays):
            adv = ball.project_image(x, x + carried[: len(x)]).requires_grad_()
            losses.append(learner.update(lambda net, adv=adv: learner.cross_entropy(net(adv), y)))  # type: ignore[misc]
            grad, adv = adv.grad, adv.detach()
            assert grad is not None
            carried[: len(x)] = ball.project(adv - x + eps * ball.steepest(grad, adv))
        return Learned(adv, torch.stack(losses).mean())
