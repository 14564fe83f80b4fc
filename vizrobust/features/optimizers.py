"""How an image climbs: normalized gradient ascent, Adam and its relative, or a single look at the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vizrobust.spec import named, spec

Step = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Optimizer(Protocol):
    """``optimizer.begin(z)`` gives a function (z, gradient) -> next z. Images of a batch never meet in it."""

    def begin(self, z: Tensor) -> Step: ...


@spec
@dataclass(frozen=True)
class Ascent:
    """Each step is the gradient brought to length `rate` * sqrt(number of coordinates), image by image."""

    rate: float = 0.005

    def begin(self, z: Tensor) -> Step:
        length = self.rate * z[0].numel() ** 0.5
        return lambda z, grad: z + length * _unit(grad)


@spec
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015): every coordinate has its own step size, so images of a batch stay apart."""

    lr: float = 0.05

    def begin(self, z: Tensor) -> Step:
        own = z.clone()
        return _climbing(own, torch.optim.Adam([own], lr=self.lr))


@spec
@dataclass(frozen=True)
class NAdam:
    """Adam that looks ahead along its momentum (Dozat 2016), as MACO uses it. Coordinate by coordinate too."""

    lr: float = 1.0

    def begin(self, z: Tensor) -> Step:
        own = z.clone()
        return _climbing(own, torch.optim.NAdam([own], lr=self.lr))


@spec
@dataclass(frozen=True)
class Glance:
    """The gradient itself as a picture: .5 + .5 * gradient / (`deviations` * its deviation), clipped (Tsipras et al. 2019)."""

    deviations: float = 3.0

    def begin(self, z: Tensor) -> Step:
        def step(z: Tensor, grad: Tensor) -> Tensor:
            flat = grad.flatten(1)
            spread = (flat - flat.mean(1, keepdim=True)).norm(dim=1) / z[0].numel() ** 0.5
            return 0.5 + 0.5 * grad / _as_rows(self.deviations * spread.clamp_min(1e-12), grad)

        return step


def _climbing(own: Tensor, optimizer: torch.optim.Optimizer) -> Step:
    """torch's optimizer of the one tensor `own`, uphill."""

    def step(z: Tensor, grad: Tensor) -> Tensor:
        own.copy_(z)
        own.grad = -grad
        optimizer.step()
        return own.clone()

    return step


def _unit(grad: Tensor) -> Tensor:
    return grad / _as_rows(grad.flatten(1).norm(dim=1).clamp_min(1e-12), grad)


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, …), one value for each row of `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


OPTIMIZERS = named(Ascent, Adam, NAdam, Glance)
