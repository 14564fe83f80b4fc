"""Attribution methods: which pixels a class's logit depends on, by gradients, by occlusion, by a layer's activations."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks.attack import check_least
from vizrobust.models.forward import evaluating
from vizrobust.models.layers import LayerView, edited, views
from vizrobust.rng import Streams
from vizrobust.spec import named, parse, spec

Shape = tuple[int, int, int]


def captum(part: str) -> Any:
    """A module of captum; ``ValueError`` that says how to get it."""
    from importlib import import_module

    try:
        return import_module(f"captum.{part}")
    except ImportError as error:
        raise ValueError("attribution needs the captum package: pip install 'vizrobust[explain]'") from error


class Attribution(ABC):
    """What every method has: ``method(net, x, y, background, streams)`` is (N, C, H, W), each value's share in logit y.

    `local` methods are gradients: a value's share is that of a small change, not of its presence. `signed` ones tell
    pixels for the class from those against it. A `control` is there to fail a check.
    """

    signed: ClassVar[bool] = False
    local: ClassVar[bool] = True
    control: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor: ...

    @property
    def passes(self) -> float:
        """About how many gradient passes of one image a map takes; a pass without gradients is a third of one."""
        return 1.0

    def prepared(self, net: nn.Module, shape: Shape) -> Attribution:
        """The method with what it needs to know of the network; ``ValueError`` where it cannot explain it."""
        return self

    def pixels(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, H, W): the sum over channels, of sizes where the sign says nothing."""
        return (values if self.signed else values.abs()).sum(1)


@spec
@dataclass(frozen=True)
class Saliency(Attribution):
    """The gradient of the logit (Simonyan et al. 2014, §3).

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> x, y = torch.rand(1, 1, 2, 2), torch.tensor([1])
    >>> torch.equal(Saliency()(net, x, y, torch.zeros(1), Streams(0, [0])).flatten(), net[1].weight[1])
    True
    """

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        return _slope(net, x, y)


@spec
@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """The mean gradient over `samples` copies with Gaussian noise of deviation `sigma` (Smilkov et al. 2017, equation 1).

    Each image has noise of its own; captum's NoiseTunnel would draw one for the batch.

    >>> SmoothGrad(samples=10)
    SmoothGrad(samples=10)
    """

    samples: int = 25
    sigma: float = 0.15

    def __post_init__(self) -> None:
        check_least(self, samples=1)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        found = torch.zeros_like(x)
        for number in range(self.samples):
            noise = streams.child(f"smooth {number}").normal(*x.shape[1:]).to(x)
            found += _slope(net, x + self.sigma * noise, y)
        return found / self.samples

    @property
    def passes(self) -> float:
        return float(self.samples)


@spec
@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """The path integral of gradients from the background to the image (Sundararajan et al. 2017, equation 1).

    The shares add up to the difference of the two logits. Memory is that of one batch, whatever the `steps`.

    >>> net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), torch.rand(1, 1, 2, 2), torch.tensor([1])
    >>> found = IntegratedGradients(steps=3)(net, x, y, torch.zeros(1), Streams(0, [0]))
    >>> torch.allclose(found.sum(), net(x)[0, 1])
    True
    """

    steps: int = 32
    signed: ClassVar[bool] = True
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_least(self, steps=1)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        method = captum("attr").IntegratedGradients(net)
        empty = background.reshape(1, -1, 1, 1).to(x).expand_as(x)
        return method.attribute(x, empty, y, n_steps=self.steps, internal_batch_size=len(x)).detach().to(x)

    @property
    def passes(self) -> float:
        return float(self.steps)


@spec
@dataclass(frozen=True)
class Occlusion(Attribution):
    """How much the logit falls where a square shows the background (Zeiler & Fergus 2014, §4.2); it takes no gradient.

    The square has `side` pixels (None: a seventh of the image's shorter side) and moves by half of that.

    >>> Occlusion(side=4)
    Occlusion(side=4)
    """

    side: int | None = None
    signed: ClassVar[bool] = True
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_least(self, side=1)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        side = min(self.side or max(1, min(x.shape[2:]) // 7), *x.shape[2:])
        step, empty = max(1, side // 2), background.reshape(1, -1, 1, 1).to(x).expand_as(x)
        with torch.no_grad():
            return captum("attr").Occlusion(net).attribute(x, (x.shape[1], side, side), (x.shape[1], step, step), empty, y)

    @property
    def passes(self) -> float:
        return (2 * 7 - 1) ** 2 / 3  # squares of a seventh, each half over the next


@spec
@dataclass(frozen=True)
class LayerCAM(Attribution):
    """A layer's activations times the positive part of their gradients, summed over units (Jiang et al. 2021, equation 6).

    `layer` is any layer with positions, also of tokens; None is the deepest on which the logits depend.

    >>> LayerCAM(layer="conv2")
    LayerCAM(layer="conv2")
    """

    layer: str | None = None
    local: ClassVar[bool] = False

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        name = self.layer or self.prepared(net, shape).layer
        assert name is not None
        cam = layer_cam(net, views(net, shape, [name])[name], x, y)[:, None]
        return F.interpolate(cam, x.shape[2:], mode="bilinear").expand_as(x) / x.shape[1]

    def prepared(self, net: nn.Module, shape: Shape) -> LayerCAM:
        """With a layer; ``ValueError`` where that has no positions, or no layer has."""
        if self.layer is not None:
            view = views(net, shape, [self.layer])[self.layer]
            if not _has_map(view):
                raise ValueError(f"layer {self.layer!r} has no positions in the image; name one that has (vizrobust layers REF)")
            return self
        place = next(net.parameters(), torch.zeros(()))
        x = Streams(0, ["probe"]).uniform(*shape).to(place)
        y = torch.zeros(1, dtype=torch.int64, device=x.device)
        for view in reversed(views(net, shape).values()):
            # Behind the last attention of a transformer the patches do not reach the class any more.
            if _has_map(view) and bool(view.gradient(_gradient(net, view, x, y)[1]).any()):
                return replace(self, layer=view.name)
        raise ValueError("no layer of this network has positions in the image; layer CAM needs one")


def layer_cam(net: nn.Module, view: LayerView, x: Tensor, y: Tensor) -> Tensor:
    """(N, height, width) of the layer: the sum over units of activation times positive gradient of logit y, where positive."""
    raw, slope = _gradient(net, view, x, y)
    return (view.gradient(slope).float().relu() * view(raw).float()).sum(1).relu()


def _gradient(net: nn.Module, view: LayerView, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's raw tensor, and the gradient of logit y with respect to it."""
    found: list[Tensor] = []

    def keep(raw: Tensor) -> Tensor:
        found.append(raw)
        return raw.clone()  # an in-place operation behind the layer changes the copy

    with evaluating(net), edited(net, view, keep):
        logits = net(x.detach().requires_grad_())
        (slope,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), found, allow_unused=True)
    return found[0].detach(), torch.zeros_like(found[0]) if slope is None else slope


def _has_map(view: LayerView) -> bool:
    shape = view.canonical_shape if not view.layout.reason and view.kind != "heads" else ()
    return len(shape) == 3 and min(shape[1:]) > 1


@spec
@dataclass(frozen=True)
class GuidedBackprop(Attribution):
    """The gradient with every negative part cut off at each ReLU (Springenberg et al. 2015, §3.4): the control.

    It draws the image's edges nearly whatever the weights are (Adebayo et al. 2018), so a check that it passes is no check.

    >>> GuidedBackprop().control
    True
    """

    control: ClassVar[bool] = True

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, background: Tensor, streams: Streams) -> Tensor:
        copied = copy.deepcopy(net)
        for module in copied.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # its hooks cannot see through one
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting backward hooks")
            return captum("attr").GuidedBackprop(copied).attribute(x.detach().requires_grad_(), y).detach()

    def prepared(self, net: nn.Module, shape: Shape) -> GuidedBackprop:
        """Itself; ``ValueError`` where it would be the plain gradient."""
        if not any(isinstance(module, nn.ReLU) for module in net.modules()):
            raise ValueError("guided backpropagation needs ReLU modules, this network has none; leave this method out")
        return self


def _slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return captum("attr").Saliency(net).attribute(x.detach().requires_grad_(), y, abs=False).detach()


ATTRIBUTIONS = named(Saliency, SmoothGrad, IntegratedGradients, Occlusion, LayerCAM, GuidedBackprop)


def parse_attribution(text: str) -> Attribution:
    """A method from its text.

    >>> parse_attribution("smoothgrad(samples=4)")
    SmoothGrad(samples=4)
    """
    found: Attribution = parse(text, ATTRIBUTIONS, "attribution method")
    return found
