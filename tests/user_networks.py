"""Networks as a user writes them, for ``--arch tests/user_networks.py:NAME``; none takes its layers from the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network_a() -> nn.Module:
    """Digits of 28 px; layers 0, 2, 5 and 7 have weights."""
    return _sequential(1, 1568, 10)


def network_b() -> nn.Module:
    """The same for colour images of 32 px."""
    return _sequential(3, 2048, 10)


def sequential(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The same for any image."""
    return _sequential(shape[0], 32 * (shape[1] // 4) * (shape[2] // 4), classes)


def _sequential(channels: int, features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(features, 100), nn.ReLU(),
        nn.Linear(100, classes),
    )  # fmt: skip


class NamedB(nn.Module):
    """Network B with names in place of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 4, 2, 1)
        self.conv2 = nn.Conv2d(16, 32, 4, 2, 1)
        self.linear1 = nn.Linear(2048, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.linear2(torch.relu(self.linear1(x.flatten(1))))


class NetworkL(nn.Module):
    """Digits of 28 px; two convolutions, each behind it a 2 x 2 max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.linear1 = nn.Linear(3136, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.linear2(torch.relu(self.linear1(x.flatten(1))))


class Small(nn.Module):
    """A network in miniature with a BatchNorm, for any image."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Fixed(Small):
    """The same, but it decides for itself how many classes there are."""

    def __init__(self) -> None:
        super().__init__((3, 20, 16), 7)


def two_outputs(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network that returns no logits."""

    class Two(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return x, super().forward(x)

    return Two(shape, classes)
