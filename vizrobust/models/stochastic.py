"""Networks that draw random numbers in evaluation mode: each image gets noise of its own, whatever batch it is in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vizrobust.rng import Streams, generator_states, seeded, set_generator_states


class PerImageNoise(nn.Module):
    """A network whose noise for an image, if it has any, depends on the image's random stream alone.

    Torch's global generators serve a whole batch, so the noise of a stochastic network (dropout that stays on, random
    smoothing) depends on an image's position in it. Once a pass has drawn from them, `stochastic` is True, and that pass
    and all later ones are made image by image, each under a seed that is made from the image's stream (see `noise_from`)
    and from the state of the global generator before the pass: passes under one global seed repeat, and a second pass
    has other noise than the first. Gradients flow as through the network itself. A network that draws nothing is called
    with whole batches.

    >>> class Noisy(nn.Module):
    ...     def forward(self, x):
    ...         return x.flatten(1) + torch.rand_like(x).flatten(1)
    >>> net, x = PerImageNoise(Noisy()), torch.zeros(2, 1, 1, 2)
    >>> with seeded(0, x.device):
    ...     net.noise_from(lambda: Streams(0, ["a", "b"]))
    ...     pair = net(x)
    >>> with seeded(0, x.device):
    ...     net.noise_from(lambda: Streams(0, ["b"]))
    ...     bool((net(x[:1])[0] == pair[1]).all())
    True
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.stochastic = False
        self._streams: Callable[[], Streams] | None = None

    def noise_from(self, streams: Callable[[], Streams]) -> None:
        """The streams of the images of the passes to come; image i of a longer batch has stream i modulo their number."""
        self._streams = streams

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        if not self.stochastic or self._streams is None:
            before = generator_states(x.device)
            logits: Tensor = self.net(x)
            after = generator_states(x.device)
            self.stochastic = any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
            if not self.stochastic or self._streams is None:
                return logits
            set_generator_states(before, x.device)
        passed = int(torch.randint(2**62, ()))
        high, low = self._streams().child(f"network {passed}").integers(1 << 24, 2).unbind(1)
        seeds = ((high << 24) + low).tolist()
        found = []
        for i in range(len(x)):
            with seeded(seeds[i % len(seeds)] + i // len(seeds), x.device):
                found.append(self.net(x[i : i + 1]))
        return torch.cat(found)
