"""N-FGSM (de Jorge et al. 2022): one step from strong noise, without coming back to the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks import FGSM, Attack, radius
from vizrobust.models import borrowed
from vizrobust.rng import Streams
from vizrobust.spec import spec, vary
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields, needs
from vizrobust.training.mix import Mix


@spec
@dataclass(frozen=True)
class NFGSM:
    """A step of `step` radii from uniform noise of `noise` radii, clipped to [0, 1] and not to the ball.

    The examples lie up to (noise + step) eps away, so it is a way to train and no attack at eps.

    >>> NFGSM(noise=2.0, step=1.0)
    NFGSM()
    """

    noise: float = 2.0
    step: float = 1.0

    replays = rounds = 1
    usual = FGSM()

    def __post_init__(self) -> None:
        if self.noise < 0 or self.step < 0:
            raise ValueError(f"NFGSM: noise and step must not be negative, got {self.noise:g} and {self.step:g}")

    def check(self, fields: Fields) -> None:
        needs(self, fields, FGSM, "FGSM()")

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        assert isinstance(attack, FGSM)
        with learner.compute.autocast(), borrowed(learner.passing) as net:
            eps = radius(attack.ball)
            start = (x + vary(attack.ball, eps=self.noise * eps).sample(x, streams.child("noise"))).clamp_(0, 1)
            point = start.clone().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
            adv = (start + self.step * eps * attack.ball.steepest(grad, start)).clamp_(0, 1)
        return Learned(adv, learner.update(lambda net: learner.mixed(net, x, adv, y)))
