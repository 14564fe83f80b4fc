"""Threat models: the set of perturbations an attack may use, as norm, projection, steepest step and sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from vizrobust.rng import Streams
from vizrobust.spec import named, spec

# Norms are divided by; this keeps a norm of 0 from being one.
TINY = 1e-12


@runtime_checkable
class Ball(Protocol):
    """Perturbations (N, C, H, W) of norm at most `eps`, in units of [0, 1] pixels.

    ``eps=None`` stands for the default of the data set at hand, which `fit` fills in.
    """

    @property
    def eps(self) -> float | None: ...
    def norm(self, delta: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,)"""

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation in the ball."""

    def steepest(self, grad: Tensor) -> Tensor:
        """The direction of norm 1 in which a function with this gradient grows fastest; 0 where the gradient is 0."""

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        """Uniform in the ball, shaped and typed like `like`, each image from its own stream."""


def radius(ball: Ball) -> float:
    """The ball's eps; ``ValueError`` where it is still to be filled in."""
    if ball.eps is None:
        name = type(ball).__name__
        raise ValueError(f"{name}() has no eps: write {name}(eps=8/255), or fit the attack to a data set")
    return ball.eps


@spec
@dataclass(frozen=True)
class Linf:
    """No pixel changes by more than eps.

    >>> import torch
    >>> Linf(eps=8 / 255).norm(torch.full((2, 1, 4, 3), -0.5))
    tensor([0.5000, 0.5000])
    """

    eps: float | None = None

    def __post_init__(self) -> None:
        _check_eps(self)
        if self.eps is not None and self.eps > 1:
            raise ValueError(f"Linf: eps {self.eps:g} is above 1; images are in [0, 1], so write {self.eps:g}/255")

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)

    def project(self, delta: Tensor) -> Tensor:
        eps = radius(self)
        return delta.clamp(-eps, eps)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        return (2 * streams.uniform(*like.shape[1:]) - 1).to(like) * radius(self)


@spec
@dataclass(frozen=True)
class L2:
    """The change's Euclidean length over all pixels and channels is at most eps.

    >>> import torch
    >>> L2(eps=1.0).project(torch.full((1, 1, 4, 4), 1.0)).norm()
    tensor(1.)
    """

    eps: float | None = None

    def __post_init__(self) -> None:
        _check_eps(self)

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor) -> Tensor:
        return delta * per_image((radius(self) / self.norm(delta).clamp_min(TINY)).clamp_max(1), delta)

    def steepest(self, grad: Tensor) -> Tensor:
        # Brought to size 1 first: the squares of a vanishing gradient underflow, and not to move would mask it.
        largest = grad.abs().flatten(1).amax(1)
        grad = grad / per_image(largest.masked_fill(largest == 0, 1), grad)
        return grad / per_image(self.norm(grad).clamp_min(TINY), grad)

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        direction = self.steepest(streams.normal(*like.shape[1:]).to(like))
        # The volume within radius r grows as r^d, so r = u^(1/d) is uniform over the ball.
        length = streams.uniform().to(like) ** (1 / like[0].numel())
        return direction * per_image(length, like) * radius(self)


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to multiply with images."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def _check_eps(ball: Ball) -> None:
    if ball.eps is None:
        return
    if ball.eps == math.inf:
        raise ValueError(f"{type(ball).__name__}: eps must be finite, got {ball.eps:g}")
    if ball.eps < 0:
        raise ValueError(f"{type(ball).__name__}: eps must not be negative, got {ball.eps:g}")


BALLS = named(Linf, L2)
