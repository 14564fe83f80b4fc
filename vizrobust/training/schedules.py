"""Learning rates over the weight steps of a training, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

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
