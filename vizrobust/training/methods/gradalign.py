"""GradAlign (Andriushchenko & Flammarion 2020): keep the loss locally linear, so that one step stays a good attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import FGSM, Attack, Ball, ball_of
from vizrobust.models import borrowed
from vizrobust.rng import Streams
from vizrobust.spec import spec
from vizrobust.training.learner import Learned, Learner
from vizrobust.training.methods.method import Fields, excludes
from vizrobust.training.mix import Mix

# Gradients of a network that is sure of its images are far below cosine_similarity's own 1e-8.
TINY = 1e-20


@spec
@dataclass(frozen=True)
class GradAlign:
    """`weight` times 1 - the cosine between the input gradients at the image and at a random point of the ball (eq. 7).

    It is added to the loss on the examples of the recipe's attack, whose ball it uses; meant for ``FGSM()``. The authors'
    weights on CIFAR-10 are 0.2 at 8/255 and 2.0 at 16/255. Both gradients are taken in evaluation mode, so that
    BatchNorm sees the batch once. It costs about twice the passes that it counts, for it goes back through them.

    >>> GradAlign(weight=2.0)
    GradAlign(weight=2.0)
    """

    weight: float = 0.2

    replays = rounds = 1
    usual = FGSM()

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"GradAlign: weight must not be negative, got {self.weight:g}")

    def check(self, fields: Fields) -> None:
        if fields.attack is None or isinstance(fields.attack, Mix) or ball_of(fields.attack) is None:
            got = "none" if fields.attack is None else repr(fields.attack)
            raise ValueError(f"GradAlign needs a recipe whose attack has a ball, such as FGSM(), got {got}")
        excludes(self, fields, "compile", "torch.compile's networks have no gradient of a gradient")

    def learn(self, learner: Learner, attack: Attack | Mix | None, x: Tensor, y: Tensor, streams: Streams) -> Learned:
        assert attack is not None and not isinstance(attack, Mix)  # noqa: PT018
        adv = learner.attacked(attack, x, y, streams)
        ball = ball_of(attack)
        assert ball is not None
        near = _near(ball, x, streams.child("gradalign"))

        def loss(net: nn.Module) -> Tensor:
            return learner.mixed(net, x, adv, y) + self.weight * (1 - alignment(net, x, near, y)).mean()

        return Learned(adv, learner.update(loss))


def alignment(net: nn.Module, x: Tensor, near: Tensor, y: Tensor) -> Tensor:
    """Cosine between the loss gradients at `x` and at `near`, both (N, C, H, W): (N,), with a graph to the weights."""
    with borrowed(net):
        here, there = (_gradient(net, point, y).flatten(1) for point in (x, near))
    return F.cosine_similarity(here, there, eps=TINY)


def _gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x, create_graph=True)
    return grad


def _near(ball: Ball, x: Tensor, streams: Streams) -> Tensor:
    return (x + ball.sample(x, streams)).clamp_(0, 1)
