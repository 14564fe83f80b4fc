"""The gradient ascent that all unforeseen attacks share, and pattern sizes for images of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import State, initial_state, random_targets, record
from vizrobust.attacks.losses import LOSSES
from vizrobust.rng import Streams
from vizrobust.spec import lookup

# The attack's variables: "z" is optimized, the rest are random constants of the image; row i belongs to image i.
Params = Mapping[str, Tensor]


class Unforeseen(Protocol):
    """An attack that changes an image through a differentiable parametrization, of strength `eps` in its own units.

    ``alpha=None`` is `range` / sqrt(steps), UAR's rule; `targeted` draws a wrong class for each image and goes
    towards it, UAR's protocol. ``eps=0`` leaves images as they are.
    """

    @property
    def eps(self) -> float | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def targeted(self) -> bool: ...
    @property
    def loss(self) -> str: ...
    @property
    def range(self) -> float:
        """How far the variable can go from its middle, in its own units; a step is a share of it."""

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> the variables: a random ``z`` that is allowed, and the constants of each image."""

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """(N, C, H, W) in [0, 1], differentiable in ``params["z"]``."""

    def step(self, params: Params, grad: Tensor, alpha: float) -> Tensor:
        """The next ``z``, uphill, not yet projected; ``params["step"]`` (N,) counts the steps of each image from 1."""

    def project(self, params: Params) -> Tensor:
        """The nearest ``z`` that is allowed, or one near it."""


@dataclass(frozen=True)
class UnforeseenRun:
    """`steps` steps uphill from a random variable; the images of a batch may be at different steps."""

    attack: Unforeseen

    @property
    def name(self) -> str:
        return type(self.attack).__name__

    @property
    def component(self) -> str:
        return self.name

    @property
    def steps(self) -> int:
        return self.attack.steps

    @property
    def alpha(self) -> float:
        return self.attack.range / math.sqrt(max(self.steps, 1)) if self.attack.alpha is None else self.attack.alpha

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        target = random_targets(net, x, y, streams) if self.attack.targeted else y
        with torch.no_grad(), _full_precision(x):
            params = self.attack.init(x, streams)
            start = self.attack.apply(x, params)
        return {
            **initial_state(x, y, start, streams),
            "target": target,
            **{f"params.{name}": value for name, value in params.items()},
        }

    def step(self, net: nn.Module, state: State) -> None:
        params = {name.removeprefix("params."): value for name, value in state.items() if name.startswith("params.")}
        params["z"] = params["z"].detach().requires_grad_()
        with _full_precision(state["x"]):
            image = self.attack.apply(state["x"], params)
        logits = net(image)
        ascent_loss = self._ascent_loss(logits, state)
        (grad,) = torch.autograd.grad(ascent_loss.sum(), params["z"])
        record(state, logits.detach(), ascent_loss)
        with torch.no_grad(), _full_precision(state["x"]):
            params["step"] = state["step"]
            params["z"] = self.attack.step(params, grad, self.alpha)
            params["z"] = state["params.z"] = self.attack.project(params)
            state["adv"] = self.attack.apply(state["x"], params)

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        record(state, logits, self._ascent_loss(logits, state))

    def _ascent_loss(self, logits: Tensor, state: State) -> Tensor:
        """What is climbed: (N,)."""
        loss = lookup(LOSSES, self.attack.loss, "loss")(logits, state["target"])
        return -loss if self.attack.targeted else loss


def _full_precision(x: Tensor) -> torch.autocast:
    """The network may run in bf16; images are made in the precision in which they came."""
    return torch.autocast(x.device.type, enabled=False)


def epsilon(attack: Unforeseen) -> float:
    """The attack's eps; ``ValueError`` where it is still to be chosen."""
    if attack.eps is None:
        name = type(attack).__name__
        raise ValueError(f"{name}() has no eps: write {name}(eps=…); vizrobust.attacks.strengths gives some for a size of image")
    return attack.eps


def opacity(eps: float, full: float) -> float:
    """The opacity of what a reference draws whatever eps is: whole from its smallest published eps, `full`, on.

    Below, it goes with eps to 0, so that no strength is no change.

    >>> opacity(0.0, 0.1), opacity(0.05, 0.1), opacity(0.3, 0.1)
    (0.0, 0.5, 1.0)
    """
    return min(1.0, eps / full)


def clip(x: Tensor) -> Tensor:
    """Into [0, 1], with the gradient passed through unchanged: torch's clamp would mask every saturated pixel.

    >>> x = torch.tensor([-0.5, 0.0, 1.0], requires_grad=True)
    >>> torch.autograd.grad(clip(x).sum(), x)[0]
    tensor([1., 1., 1.])
    """
    return x.detach().clamp(0, 1) + (x - x.detach())


def check(attack: Unforeseen) -> None:
    """``ValueError`` for a field that no unforeseen attack can have."""
    name = type(attack).__name__
    lookup(LOSSES, attack.loss, "loss")
    for field in ("eps", "alpha", "steps"):
        value = getattr(attack, field)
        if value is not None and (value < 0 or value == math.inf):
            raise ValueError(f"{name}: {field} must be finite and not negative, got {value:g}")


def side(x: Tensor) -> int:
    """The shorter side of images (N, C, H, W), in pixels: what patterns are scaled by."""
    return min(x.shape[-2:])


def between(x: Tensor, small: float, large: float) -> float:
    """On the line through `small` at 32 pixels and `large` at 224, but no further down than at 32 pixels.

    >>> import torch
    >>> [between(torch.empty(1, 3, size, size), 4, 16) for size in (28, 32, 128, 224)]
    [4.0, 4.0, 10.0, 16.0]
    """
    return small + (large - small) * max(side(x) - 32, 0) / 192
