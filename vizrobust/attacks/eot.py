"""Expectation over transformation: attacks on networks that answer differently each time they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vizrobust.attacks.balls import Ball
from vizrobust.attacks.gradient import PGD
from vizrobust.attacks.threat import ball_of
from vizrobust.attacks.walk import Attack, Attacked, State, Walk, run
from vizrobust.rng import Streams, seeded
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class EoT:
    """`attack` on the mean logits of `samples` forward passes (expectation over transformation, Athalye et al. 2018).

    For networks that are random also in evaluation mode: the loss climbed, its gradient and the verdict are all
    those of the mean logits, drawn anew for every iterate. With a deterministic network the images are those of
    `attack` itself, bit for bit, at `samples` times the cost and more.

    Results repeat with the same seed, images and batch size. They are not the same in another batch, as a network's
    noise comes from torch's global generator and depends on an image's place in the batch.

    >>> EoT(attack=PGD(steps=10), samples=5)
    EoT(attack=PGD(steps=10), samples=5)
    """

    attack: Attack = PGD()
    samples: int = 20

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"EoT: samples must be at least 1, got {self.samples}")

    @property
    def ball(self) -> Ball | None:
        """That of the attack within."""
        return ball_of(self.attack)

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return tuple(EoTWalk(walk, self.samples) for walk in self.attack.stages(Expectation(net, self.samples, 0), x))

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class EoTWalk:
    """`walk` on the expectation of the network, with other noise at every step."""

    walk: Walk
    samples: int

    @property
    def name(self) -> str:
        return f"EoT {self.walk.name}"

    @property
    def member(self) -> str:
        return f"EoT {self.walk.member}"

    @property
    def steps(self) -> int:
        return self.walk.steps

    @property
    def minimal(self) -> bool:
        return getattr(self.walk, "minimal", False)

    @property
    def leaves_ball(self) -> bool:
        return getattr(self.walk, "leaves_ball", False)

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        return self.walk.begin(self._mean(net, streams.keys, torch.zeros_like(y)), x, y, streams)

    def step(self, net: nn.Module, state: State) -> None:
        self.walk.step(self._mean(net, state["keys"], state["t"]), state)

    def judge(self, net: nn.Module, state: State) -> None:
        self.walk.judge(self._mean(net, state["keys"], state["t"]), state)

    def _mean(self, net: nn.Module, keys: Tensor, t: Tensor) -> Expectation:
        # A generator serves the whole batch, so its seed stands for all the images in it and their steps.
        seed = int(Streams.of(keys.cpu(), t.cpu()).child("expectation").keys.sum())
        return Expectation(net, self.samples, seed)


class Expectation(nn.Module):
    """The mean of a random network's logits over `samples` passes, whose noise `seed` decides.

    The passes run one after the other and, for a gradient, once more, so that no more than one of them is held in
    memory. Torch's global generators are afterwards as they were.
    """

    def __init__(self, net: nn.Module, samples: int, seed: int) -> None:
        super().__init__()
        self.net, self.samples, self.seed = net, samples, seed

    def forward(self, x: Tensor) -> Tensor:
        return _Mean.apply(x, self)

    def mean(self, sample: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The mean of what `sample` returns with each sample's noise."""
        first = self._drawn(sample, 0, device)
        # As differences from the first: where all are alike, their mean is that value to the last bit.
        rest = torch.zeros_like(first)
        for number in range(1, self.samples):
            rest = rest + (self._drawn(sample, number, device) - first)
        return first + rest / self.samples

    def _drawn(self, sample: Callable[[], Tensor], number: int, device: torch.device) -> Tensor:
        with seeded((self.seed + number) % 2**63, device):
            return sample()


class _Mean(torch.autograd.Function):
    """`Expectation.forward` and its gradient, one sample at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, expectation: Expectation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.expectation = expectation
        kind = x.device.type
        ctx.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        return expectation.mean(lambda: expectation.net(x), x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        enabled, dtype = ctx.autocast

        def gradient() -> Tensor:
            with torch.enable_grad(), torch.autocast(x.device.type, dtype, enabled):
                point = x.detach().requires_grad_()
                logits = ctx.expectation.net(point)
            return torch.autograd.grad(logits, point, grad)[0]

        return ctx.expectation.mean(gradient, x.device), None
