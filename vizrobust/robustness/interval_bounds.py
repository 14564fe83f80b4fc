"""Interval bound propagation: the L-inf radius within which no change whatever makes a network wrong."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks.threat_models import sum_type
from vizrobust.models import evaluating
from vizrobust.models.forward import Normalized
from vizrobust.rng import generator_states, same_states

# Bounds are computed in float64; what a network in float32 rounds must not undo a certificate. A share of the largest logit.
ROUNDING = 1e-4
HALVINGS = 14
UNKNOWN = "interval bounds do not know all that this network does"


class Interval:
    """All tensors within `radius` of `center`, entry by entry; what a network's own code makes of it is one again.

    Known are convolutions, linear layers, BatchNorm in evaluation mode, activations that never fall (ReLU, leaky ReLU, tanh,
    sigmoid and others), pooling, padding, sums, and the product with a constant. Anything else raises ``ValueError`` that
    names it.

    >>> bounds = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))(Interval(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)))
    >>> bool(bounds.lower < bounds.upper)
    True
    """

    def __init__(self, center: Tensor, radius: Tensor, before: tuple[Interval, Tensor, Tensor | None] | None = None) -> None:
        self.center, self.radius, self.before = center, radius, before

    @property
    def lower(self) -> Tensor:
        return self.center - self.radius

    @property
    def upper(self) -> Tensor:
        return self.center + self.radius

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        return cls((lower + upper) / 2, (upper - lower) / 2)

    def margin(self, y: Tensor) -> Tensor:
        """(N,): a lower bound of the smallest difference between logit y and another one, for logits (N, classes)."""
        if self.before is None:
            own = self.lower.gather(1, y[:, None])
            return (own - self.upper).scatter(1, y[:, None], torch.inf).amin(1)
        inner, weight, bias = self.before  # the last layer's rows are compared before the bounds are taken
        rows = weight[y][:, None] - weight[None]
        middle = (rows * inner.center[:, None]).sum(2)
        if bias is not None:
            middle = middle + bias[y][:, None] - bias[None]
        return (middle - (rows.abs() * inner.radius[:, None]).sum(2)).scatter(1, y[:, None], torch.inf).amin(1)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Interval:
        name = func.__name__.strip("_").removesuffix("_")
        if name not in RULES:
            raise ValueError(f"interval bounds do not know {name!r}, which this network uses; certify it by smoothing")
        return RULES[name](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """What code asks of a tensor: its shape and place, or a method that is known."""
        if name in ("shape", "device", "dtype", "dim", "size", "ndim"):
            return getattr(self.center, name)
        if name in RULES:
            return lambda *args, **kwargs: RULES[name](self, *args, **kwargs)
        raise AttributeError(f"interval bounds do not know {name!r}")

    def __add__(self, other: Any) -> Interval:
        return _sum(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Interval:
        return _sum(self, -1 * other)

    def __neg__(self) -> Interval:
        return -1 * self

    def __rsub__(self, other: Any) -> Interval:
        return _sum(-self, other)

    def __mul__(self, other: Any) -> Interval:
        if isinstance(other, Interval):
            raise ValueError("interval bounds do not know the product of two activations; certify this network by smoothing")
        return Interval(self.center * other, self.radius * abs(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Interval:
        return self * (1 / other)

    def _compared(self, _other: object = None) -> Any:
        raise ValueError("interval bounds do not know a choice by values, which this network makes; certify it by smoothing")

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _compared
    __hash__ = object.__hash__


def _sum(x: Any, other: Any) -> Interval:
    if not isinstance(x, Interval):
        x, other = other, x
    if isinstance(other, Interval):
        return Interval(x.center + other.center, x.radius + other.radius)
    return Interval(x.center + other, x.radius)


def _conv(x: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Interval:
    return Interval(F.conv2d(x.center, weight, bias, *args, **kwargs), F.conv2d(x.radius, weight.abs(), None, *args, **kwargs))


def _linear(x: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    return Interval(F.linear(x.center, weight, bias), F.linear(x.radius, weight.abs()), (x, weight, bias))


def _batch_norm(
    x: Interval, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, eps: float = 1e-5, **_: Any,
) -> Interval:  # fmt: skip
    if mean is None or var is None or training:
        raise ValueError(
            "interval bounds do not know a BatchNorm of batch statistics, which this network uses; certify it by smoothing"
        )
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    center = F.batch_norm(x.center, mean, var, weight, bias, eps=eps)
    return Interval(center, x.radius * scale.abs().reshape(-1, *[1] * (x.center.dim() - 2)))


def _dropout(x: Interval, p: float = 0.5, training: bool = True, **_: Any) -> Interval:
    if training and p > 0:
        raise ValueError("interval bounds do not know dropout that stays on, which this network uses; certify it by smoothing")
    return x


def _pad(x: Interval, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Interval:
    return Interval(F.pad(x.center, pad, mode, value), F.pad(x.radius, pad, mode))


def _rising(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """A rule for what never falls: the ends of the interval become the ends."""

    def rule(x: Interval, *args: Any, **kwargs: Any) -> Interval:
        kwargs.pop("inplace", None)
        return Interval.between(function(x.lower, *args, **kwargs), function(x.upper, *args, **kwargs))

    return rule


def _bent(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """A rule for what rises above 0, and below it by a factor that must not be negative."""

    def rule(x: Interval, **kwargs: Any) -> Interval:
        kwargs.pop("inplace", None)
        (factor,) = kwargs.values()
        if factor < 0:
            name = function.__name__
            raise ValueError(
                f"interval bounds do not know a falling {name!r} (factor {factor:g}); certify this network by smoothing"
            )
        return _rising(function)(x, **kwargs)

    return rule


def _both(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """A rule that does the same to the centre and to the radius."""
    return lambda x, *args, **kwargs: Interval(function(x.center, *args, **kwargs), function(x.radius, *args, **kwargs))


RULES: dict[str, Callable[..., Interval]] = {
    "conv2d": _conv, "linear": _linear, "batch_norm": _batch_norm, "pad": _pad, "add": _sum,
    "relu": _rising(F.relu), "leaky_relu": _bent(F.leaky_relu), "elu": _bent(F.elu), "hardtanh": _rising(F.hardtanh),
    "softplus": _rising(F.softplus), "tanh": _rising(torch.tanh), "sigmoid": _rising(torch.sigmoid),
    "max_pool2d": _rising(F.max_pool2d), "adaptive_max_pool2d": _rising(F.adaptive_max_pool2d),
    "flatten": _both(torch.flatten), "mean": _both(torch.mean), "avg_pool2d": _both(F.avg_pool2d),
    "adaptive_avg_pool2d": _both(F.adaptive_avg_pool2d), "dropout": _dropout,
    "contiguous": _both(operator.methodcaller("contiguous")), "reshape": _both(torch.reshape), "view": _both(torch.reshape),
}  # fmt: skip


def in_float64(net: nn.Module) -> nn.Module:
    """A copy of the network for `margin_bound`, on the CPU where its device has no float64."""
    exact, there = copy.deepcopy(net), torch.empty(0, device=_device(net))
    exact = exact if sum_type(there) == torch.float64 else exact.cpu()
    return exact.double().to(memory_format=torch.contiguous_format)


def _device(net: nn.Module) -> torch.device:
    return next((weight.device for weight in net.parameters()), torch.device("cpu"))


def margin_bound(net: nn.Module, x: Tensor, y: Tensor, eps: Tensor | float) -> Tensor:
    """(N,) float64: a lower bound of the margin of label y over all images in [0, 1] within `eps`, one or (N,), of x.

    Interval bound propagation (Gowal et al. 2018, equation 6), with the last linear layer folded into the margin. `net`
    is in float64, see `in_float64`. Raises ``ValueError`` where the network does what has no rule.

    >>> net = in_float64(nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)))
    >>> net[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    >>> round(float(margin_bound(net, torch.tensor([[[[0.8, 0.3]]]]), torch.tensor([0]), 0.1)), 6)
    0.3
    """
    x = x.double().contiguous()
    wide = torch.as_tensor(eps, dtype=torch.float64, device=x.device).reshape(-1, 1, 1, 1)
    inputs = Interval.between((x - wide).clamp_min(0), (x + wide).clamp_max(1))
    with evaluating(net), torch.no_grad():
        body = net
        if isinstance(net, Normalized):
            inputs, body = (inputs - net.mean) / net.std, net.net
        before = generator_states(x.device)
        try:
            output = body(inputs)
        # Whatever a network's own code does with what is no tensor.
        except (TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{UNKNOWN} ({error}); certify it by smoothing") from error
        if not same_states(before, generator_states(x.device)):
            raise ValueError("interval bounds do not know random numbers, which this network draws; certify it by smoothing")
        if not isinstance(output, Interval) or output.center.dim() != 2:
            raise ValueError("interval bounds need a network that returns its logits (N, classes) as one tensor")
        if output.center.shape[1] == 1:  # one logit is that of two classes, as for `logits_of`
            output = Interval(torch.cat([-output.center, output.center], 1) / 2, output.radius.expand(-1, 2) / 2)
        return output.margin(y)


def certified_radius(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,): the largest L-inf radius that interval bounds prove, by bisection, from below; 0 where not even the image is right.

    It is computed on the device of `net`.

    >>> net = in_float64(nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)))
    >>> net[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    >>> round(float(certified_radius(net, torch.tensor([[[[0.8, 0.3]]]]), torch.tensor([0]))), 3)
    0.25
    """
    x, y = x.to(_device(net)).double().contiguous(), y.to(_device(net))
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    high = torch.ones_like(low)
    with evaluating(net), torch.no_grad():
        rounding = ROUNDING * net(x).abs().amax(1).clamp_min(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        holds = margin_bound(net, x, y, middle) > rounding
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low
