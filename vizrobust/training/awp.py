"""Adversarial weight perturbation (Wu et al. 2020): the gradient is taken where the weights are worst, nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
            weight.add_(gamma * weight.norm() / direction.norm().clamp_min(TINY) * direction)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
