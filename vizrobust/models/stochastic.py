"""Networks that draw random numbers in evaluation mode: each image gets noise of its own, whatever batch it is in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vizrobust.models.forward import evaluating
from vizrobust.rng import Streams, generator_states, seeded


def is_stochastic(net: nn.Module, x: Tensor) -> bool:
    """Whether a pass of images (N, C, H, W) in evaluation mode draws from torch's global generators, as dropout does.

    >>> is_stochastic(nn.Flatten(), torch.zeros(1, 1, 2, 2))
    False
    """
    with evaluating(net), torch.no_grad(), seeded(0, x.device):
        before = generator_states(x.device)
        net(x)
        after = generator_states(x.device)
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


class StochasticNetwork(nn.Module):
    """A stochastic network whose noise for an image depends on the image's random stream alone.

    Torch's global generators serve a whole batch, so an image's noise depends on its position in it. Here each image has
    a forward pass of its own, under a seed that is made from its stream (see `noise_from`) and from the state of the
    global generator before the pass: passes under one global seed repeat, and a second pass has other noise than the
    first. Gradients flow as through the network itself.

    >>> class Noisy(nn.Module):
    ...     def forward(self, x):
    ...         return x.flatten(1) + torch.rand_like(x).flatten(1)
    >>> net, x = StochasticNetwork(Noisy()), torch.zeros(2, 1, 1, 2)
    >>> with seeded(0, x.device):
    ...     net.noise_from(Streams(0, ["a", "b"]))
    ...     pair = net(x)
    >>> with seeded(0, x.device):
    ...     net.noise_from(Streams(0, ["b"]))
    ...     bool((net(x[:1])[0] == pair[1]).all())
    True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.streams: Streams | None = None

    def noise_from(self, streams: Streams) -> None:
        """The streams of the images of the passes to come; image i of a longer batch has stream i modulo their number."""
        self.streams = streams

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        if self.streams is None:
            return self.net(x)
        passed = int(torch.randint(2**62, ()))
        high, low = self.streams.child(f"network {passed}").integers(1 << 24, 2).unbind(1)
        seeds = ((high << 24) + low).tolist()
        logits = []
        for i in range(len(x)):
            with seeded(seeds[i % len(seeds)] + i // len(seeds), x.device):
                logits.append(self.net(x[i : i + 1]))
        return torch.cat(logits)
