"""Data-parallel training: every process learns from its part of each batch, and all take the same weight step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vizrobust.parallel import Processes


def shard_of(index: Tensor, processes: Processes) -> tuple[Tensor, float]:
    """Which images of a batch are this process's, and what its mean loss weighs in that of the batch.

    Every size-th image, so that an image's slot in a batch belongs to the same process in every batch. Where there are
    fewer images than processes, each learns from all of them, so that no process stands aside.

    >>> shard_of(torch.arange(7), Processes(1, 2))
    (tensor([1, 3, 5]), 0.42857142857142855)
    >>> shard_of(torch.arange(1), Processes(1, 2))
    (tensor([0]), 0.5)
    """
    if len(index) < processes.size:
        return index, 1 / processes.size
    own = index[processes.rank :: processes.size]
    return own, len(own) / len(index)


def all_reduce_mean(gradients: Iterable[Tensor], shard_weight: float, processes: Processes) -> list[Tensor]:
    """The gradients of the batch's mean loss from those of each process's part, in one exchange; the same bits on all."""
    gradients = list(gradients)
    if processes.size == 1:
        return gradients
    flat = processes.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]) * shard_weight)
    parts = flat.split([gradient.numel() for gradient in gradients])  # type: ignore[no-untyped-call]
    return [part.reshape(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


def share_statistics(net: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of the network see the whole batch: its statistics are summed over the processes.

    torch's own SyncBatchNorm refuses CPUs. The modules stay where and what they are, and so does the state.
    """
    if processes.size == 1:
        return
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SharedBatchNorm
            module.processes = processes  # type: ignore[assignment]


class SharedBatchNorm(_BatchNorm):
    """BatchNorm whose statistics in training are those of all processes' parts together (Ioffe & Szegedy 2015)."""

    processes: Processes

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() / x.shape[1]
        wide = x.float()
        # One exchange: each part's mean and spread, put together in float64, where subtracting squares loses nothing.
        own = wide.mean(axes)
        inner = wide - own.reshape(shape)
        own_mean, own_spread = own.double(), inner.square().sum(axes).double()
        parts = torch.cat((count * own_mean, own_spread + count * own_mean.square(), own_mean.new_tensor([count])))
        sums = _Sum.apply(parts, self.processes)
        total = sums[-1].detach()
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean.square()).clamp_min(0).float()
        centred = inner + (own_mean - mean).float().reshape(shape)
        with torch.no_grad():
            self._follow(mean, variance * total / (total - 1).clamp_min(1))
        normed = centred * (variance + self.eps).rsqrt().reshape(shape)
        if self.weight is not None:
            normed = normed * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normed.to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as torch keeps them."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            assert self.num_batches_tracked is not None
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any number of dimensions: it takes the place of each kind of BatchNorm."""


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each process's part does to the others' losses comes back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.sum(gradients[0]), None
