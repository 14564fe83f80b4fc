"""What an unforeseen attack is: its usual strengths by the size of images, and the ascent that all of them share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import Attack, AttackRun, State, ball_of, initial_state, input_gradient, random_targets, record
from vizrobust.attacks.losses import LOSSES
from vizrobust.attacks.threat_models import EpsShare, is_positive, step_size
from vizrobust.rng import Streams
from vizrobust.spec import lookup

Three = tuple[float, float, float]

# The strengths that UAR calibrates to L-inf 2, 4 and 8 of 255, which are what the later paper calls low, medium and high.
SOURCES = {
    "uar-cifar": "Kang et al. 2019, CIFAR-10 calibration, matched to L-inf 2, 4 and 8/255",
    "uar-imagenet": "Kang et al. 2019, ImageNet-100 calibration, matched to L-inf 2, 4 and 8/255",
    "ua-cifar": "Kaufmann et al. 2023, CIFAR-10",
    "ua-imagenet": "Kaufmann et al. 2023, ImageNet",
    "by-eye": "chosen here by eye on 64 pixels: objects stay recognisable; nothing is published for this attack at this size",
    # Of mnist-k0's 99.5 % right at first, these leave 71 to 94, 30 to 70 and 0 to 17 at low, medium and high.
    "measured": "measured here with: vizrobust attack mnist-k0 mnist-k8 --images 200 --attack 'NAME(eps=…)'; none is published",
    "weak": "Kaufmann et al. 2023, CIFAR-10; on digits they break almost nothing, and larger ones neither (measured on mnist-k0)",
}
# By the size of images: "digits" have one channel and no side above 32 pixels, else "small" ones a side below 96.
SIZES = ("digits", "small", "large")
TABLE = """
Elastic      | 0.125 0.25 0.5 measured | 0.25 0.5 1 uar-cifar        | 0.5 2 4 uar-imagenet
JPEG-Linf    | 0.5 1 2 measured        | 0.0625 0.125 0.25 uar-cifar | 0.125 0.25 0.5 uar-imagenet
JPEG-L2      | 16 32 64 measured       | 0.5 1 2 uar-cifar           | 16 32 64 uar-imagenet
JPEG-L1      | 256 512 1024 measured   | 8 64 256 uar-cifar          | 1024 4096 16384 uar-imagenet
Fog          | 0.125 0.25 0.5 measured | 0.5 1 2 by-eye              | 256/255 512/255 2048/255 uar-imagenet
Snow         | 0.125 0.25 0.5 measured | 0.125 0.25 0.5 by-eye       | 0.125 0.25 2 uar-imagenet
Gabor        | 0.1 0.2 0.4 measured    | 0.05 0.1 0.2 by-eye         | 12.5/255 25/255 400/255 uar-imagenet
Pixel        | 0.5 1 2 measured        | 1 5 10 ua-cifar             | 3 5 10 ua-imagenet
Glitch       | 0.05 0.1 0.2 measured   | 0.03 0.05 0.1 ua-cifar      | 0.03 0.05 0.07 ua-imagenet
Kaleidoscope | 0.05 0.1 0.15 ua-cifar  | 0.05 0.1 0.15 ua-cifar      | 0.05 0.1 0.15 ua-imagenet
Wood         | 0.03 0.05 0.1 weak      | 0.03 0.05 0.1 ua-cifar      | 0.03 0.05 0.1 ua-imagenet
"""


def _number(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _read(cell: str) -> tuple[Three, str]:
    low, medium, high, source = cell.split()
    return (_number(low), _number(medium), _number(high)), SOURCES[source]


PRESETS: dict[str, dict[str, tuple[Three, str]]] = {
    name.strip(): dict(zip(SIZES, map(_read, cells), strict=True))
    for name, *cells in (line.split("|") for line in TABLE.strip().splitlines())
}
LEVELS = ("low", "medium", "high")


def family(attack: Attack) -> str:
    """The name under which strengths and calibrations list an attack: its ball's, else its own, with JPEG's norm.

    >>> from vizrobust.attacks import JPEG, PGD, Fog, L2
    >>> family(Fog()), family(JPEG(norm="l1")), family(PGD(ball=L2(eps=1)))
    ('Fog', 'JPEG-L1', 'L2')
    """
    ball = ball_of(attack)
    name = type(ball or attack).__name__
    norm = getattr(attack, "norm", None)
    return f"{name}-{norm.capitalize()}" if isinstance(norm, str) and ball is None else name


def strengths(name: str, shape: tuple[int, int, int]) -> Three:
    """Low, medium and high eps of the attack listed as `name` (see `family`) on images of shape (C, H, W).

    They are those of published work where there is any (see `source`); low to high is a different ratio for each attack.
    Raises ``ValueError`` for a name that is not listed.

    >>> strengths("Elastic", (3, 32, 32)), strengths("Pixel", (3, 224, 224))
    ((0.25, 0.5, 1.0), (3.0, 5.0, 10.0))
    """
    return _preset(name, shape)[0]


def source(name: str, shape: tuple[int, int, int]) -> str:
    """Where these strengths come from, as a sentence.

    >>> source("Pixel", (3, 224, 224))
    'Kaufmann et al. 2023, ImageNet'
    """
    return _preset(name, shape)[1]


def with_default_eps(attack: Any, shape: tuple[int, int, int], level: str = "medium") -> Any:
    """The attack with the eps of that level for images of shape (C, H, W), if it has none itself.

    >>> from vizrobust.attacks import Wood
    >>> with_default_eps(Wood(steps=10), (3, 32, 32)), with_default_eps(Wood(eps=0.3), (3, 32, 32))
    (Wood(eps=0.05, steps=10), Wood(eps=0.3))
    """
    if attack.eps is not None:
        return attack
    three = dict(zip(LEVELS, strengths(family(attack), shape), strict=True))
    return replace(attack, eps=lookup(three, level, "strength"))


def _preset(name: str, shape: tuple[int, int, int]) -> tuple[Three, str]:
    channels, height, width = shape
    digits = channels == 1 and max(height, width) <= 32
    size = "digits" if digits else "small" if min(height, width) < 96 else "large"
    return lookup(PRESETS, name, "unforeseen attack")[size]


# What an attack optimizes, "z", and the random constants of each image; row i belongs to image i.
Params = Mapping[str, Tensor]
PREFIX = "params."


@dataclass(frozen=True)
class UnforeseenAttack(Attack):
    """An attack that changes an image through a differentiable parametrization, with a strength `eps` in its own units.

    ``alpha=None`` is `range` / sqrt(steps), UAR's rule (Kang et al. 2019); `targeted` draws a wrong class for each image
    and moves towards it, UAR's protocol. ``eps=0`` leaves images as they are. A subclass has `init`, `apply` and `project`.

    >>> from vizrobust.spec import spec
    >>> @spec
    ... @dataclass(frozen=True)
    ... class Dimmer(UnforeseenAttack):
    ...     def init(self, x, streams):
    ...         return {"z": self.epsilon * streams.uniform(1, 1, 1).to(x)}
    ...     def apply(self, x, params):
    ...         return x * (1 - params["z"])
    ...     def project(self, params):
    ...         return params["z"].clamp(0, self.epsilon)
    >>> Dimmer(eps=0.5, steps=3)(torch.nn.Flatten(), torch.rand(4, 1, 2, 2), torch.arange(4)).best.shape
    torch.Size([4, 1, 2, 2])
    """

    eps: float | None = None
    steps: int = 50
    alpha: float | EpsShare | None = None
    targeted: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        lookup(LOSSES, self.loss, "loss")
        for field in ("eps", "alpha", "steps"):
            value = getattr(self, field)
            if value is not None and not is_positive(value):
                raise ValueError(f"{type(self).__name__}: {field} must be finite and not negative, got {value!r}")

    @property
    def epsilon(self) -> float:
        """The attack's eps; ``ValueError`` if it is not chosen yet."""
        if self.eps is None:
            name = type(self).__name__
            raise ValueError(f"{name}() has no eps: write {name}(eps=…); vizrobust.attacks.strengths lists usual values")
        return self.eps

    @property
    def range(self) -> float:
        """How far ``z`` can go from its middle, in its own units; a step is a share of it."""
        return self.epsilon

    def runs(self, model: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return (UnforeseenRun(self),)

    @abstractmethod
    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> the parameters: a random ``z`` that is allowed, and the constants of each image."""

    @abstractmethod
    def apply(self, x: Tensor, params: Params) -> Tensor:
        """(N, C, H, W) in [0, 1], differentiable in ``params["z"]``."""

    @abstractmethod
    def project(self, params: Params) -> Tensor:
        """The nearest ``z`` that is allowed, or one near it."""

    def step(self, params: Params, grad: Tensor, alpha: float) -> Tensor:
        """The next ``z``, not yet projected: a sign step; ``params["step"]`` (N,) counts the steps of each image from 1."""
        return params["z"] + alpha * grad.sign()


@dataclass(frozen=True)
class UnforeseenRun:
    """`steps` steps of gradient ascent from random parameters; the images of a batch may be at different steps."""

    attack: UnforeseenAttack

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
        return step_size(self.attack, self.attack.epsilon, self.attack.range / math.sqrt(max(self.steps, 1)))

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        target = random_targets(net, x, y, streams) if self.attack.targeted else y
        with torch.no_grad(), _full_precision(x):
            params = self.attack.init(x, streams)
            start = self.attack.apply(x, params)
        own = {PREFIX + name: value for name, value in params.items()}
        return {**initial_state(x, y, start, streams), "target": target, **own}

    def step(self, net: nn.Module, state: State) -> None:
        params = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        params["z"] = params["z"].detach().requires_grad_()
        with _full_precision(state["x"]):
            image = self.attack.apply(state["x"], params)
        logits = net(image)
        ascent_loss = self._ascent_loss(logits, state)
        grad = input_gradient(ascent_loss, params["z"], state)
        record(state, logits.detach(), ascent_loss)
        with torch.no_grad(), _full_precision(state["x"]):
            params["step"] = state["step"]
            params["z"] = self.attack.step(params, grad, self.alpha)
            params["z"] = state[PREFIX + "z"] = self.attack.project(params)
            state["adv"] = self.attack.apply(state["x"], params)

    def evaluate(self, net: nn.Module, state: State) -> None:
        logits = net(state["adv"])
        record(state, logits, self._ascent_loss(logits, state))

    def _ascent_loss(self, logits: Tensor, state: State) -> Tensor:
        """What the steps raise: (N,)."""
        loss = lookup(LOSSES, self.attack.loss, "loss")(logits, state["target"])
        return -loss if self.attack.targeted else loss


def _full_precision(x: Tensor) -> torch.autocast:
    """The network may run in bf16; images are made in their own precision."""
    return torch.autocast(x.device.type, enabled=False)


def opacity(eps: float, full: float) -> float:
    """The opacity of what a reference draws at any eps: 1 from its smallest published eps, `full`, on.

    Below, it falls with eps to 0, so that eps 0 changes nothing.

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


def side(x: Tensor) -> int:
    """The shorter side of images (N, C, H, W), in pixels; patterns are scaled by it."""
    return min(x.shape[-2:])


def between(x: Tensor, small: float, large: float) -> float:
    """On the line through `small` at 32 pixels and `large` at 224, but no further down than at 32 pixels.

    >>> import torch
    >>> [between(torch.empty(1, 3, size, size), 4, 16) for size in (28, 32, 128, 224)]
    [4.0, 4.0, 10.0, 16.0]
    """
    return small + (large - small) * max(side(x) - 32, 0) / 192
