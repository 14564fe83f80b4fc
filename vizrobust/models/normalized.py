"""Normalization as the first layer inside a network, so that images stay in [0, 1] everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """``net((x - mean) / std)`` with one mean and standard deviation per channel; x is (N, C, H, W) in [0, 1].

    There is deliberately no clip: torch's clamp has zero gradient at the bound and would mask saturated pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise ValueError(f"normalization needs as many means as positive deviations, got {tuple(mean)} / {tuple(std)}")
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1), persistent=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)
