"""A network that reads scikit-learn's digits, trained here in a second, for tests that need one that knows its task."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.data import load
from vizrobust.models import CheckpointInfo, Normalized, architecture, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.rng import Streams


@cache
def digits_net() -> nn.Module:
    data = load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Normalized(architecture("small_cnn", data.shape, 10)(), data.mean, data.std)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(4):
        for index in Streams(0, [epoch], "order").permutation(len(data.train))[0].split(64):
            loss = F.cross_entropy(net(data.train.take(index)), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def save_digits_net(path: Path, noise: float = 0.0) -> None:
    """The network as a checkpoint file; with noise on its weights it is another one that knows the task nearly as well."""
    net, data = digits_net(), load("digits")
    generator = torch.Generator().manual_seed(1)
    state = {
        name: value + noise * value.std() * torch.randn(value.shape, generator=generator) if value.dim() > 1 else value
        for name, value in body_state(net).items()
    }
    save_checkpoint(path, state, CheckpointInfo("small_cnn", data.shape, data.classes, data.mean, data.std, data="digits"))


@cache
def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that the network reads rightly, with their labels."""
    data = load("digits")
    x, y = data.test.take(torch.arange(2 * n)), data.test.labels[: 2 * n]
    net = digits_net()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero()[:n, 0]
    assert len(right) == n
    return x[right], y[right]
