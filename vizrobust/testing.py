"""Contract checks for other people's attacks, objectives, parametrizations, transforms and metrics.

Each check raises ``AssertionError`` with what was expected. The project's own tests run them on everything built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vizrobust.attacks import Attack, ball_of, parse_attack
from vizrobust.clarity import Metric
from vizrobust.compute import Compute
from vizrobust.features import NAMES, OBJECTIVES, Objective, Parametrization, Scorer, for_shape
from vizrobust.features.transforms import Transform
from vizrobust.models import architecture
from vizrobust.rng import Streams
from vizrobust.spec import parse

Shape = tuple[int, int, int]
SHAPE, CLASSES = (3, 12, 8), 7
ROUNDING = 1e-6


def network(shape: Shape = SHAPE, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """A small network with fresh weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture("small_cnn", shape, classes)().eval()


def images(count: int, shape: Shape = SHAPE, seed: int = 0) -> Tensor:
    """(count, C, H, W) in [0, 1], a third of the pixels black or white, as in handwriting."""
    drawn = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return (drawn * 1.5 - 0.25).clamp(0, 1)


def check_attack(attack: Attack, net: nn.Module | None = None, x: Tensor | None = None, y: Tensor | None = None) -> None:
    """An attack's images have their shape and range, stay in its ball, repeat, and leave the network as it was.

    `net` is a classifier of images `x` (N, C, H, W) in [0, 1] with labels `y` (N,); by default a small one.

    >>> from vizrobust.attacks import PGD, Linf
    >>> check_attack(PGD(steps=2, ball=Linf(eps=0.1)))
    """
    net = network() if net is None else net
    x = images(5) if x is None else x
    y = torch.arange(len(x)) % CLASSES if y is None else y
    before = x.clone(), y.clone()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    found = attack(net, x, y, streams=Streams(0, range(len(x)), "attack"))
    steps = max(run.steps for run in attack.runs(net, x))
    assert found.best is not None, "a judged attack gives the best image that it found"
    assert found.loss is not None, "a judged attack gives the loss of each iterate"
    assert found.correct is not None, "a judged attack says which iterates are classified correctly"
    for image in (found.x, found.best):
        _check_images(image, tuple(x.shape), x.dtype)
        ball = ball_of(attack)
        if ball is not None and ball.eps is not None:
            largest = float(ball.norm(image - x).max())
            assert largest <= ball.eps + ROUNDING, f"a perturbation of norm {largest:g} is outside of {ball!r}"
    for name, values in (("loss", found.loss), ("correct", found.correct)):
        assert values.shape == (steps + 1, len(x)), (
            f"{name} must be (steps + 1, N) = {(steps + 1, len(x))}, is {tuple(values.shape)}"
        )
    assert found.correct.dtype == torch.bool, f"correct must be of type bool, is {found.correct.dtype}"
    assert not found.loss.requires_grad, "the loss must not carry a graph"
    assert torch.equal(x, before[0]), "the images given must not change"
    assert torch.equal(y, before[1]), "the labels given must not change"
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items()), "the weights must not change"
    assert [module.training for module in net.modules()] == flags, "every module must keep its training flag"
    assert all(weight.grad is None for weight in net.parameters()), "weights must have no gradient"
    again = attack(net, x, y, streams=Streams(0, range(len(x)), "attack"))
    assert torch.equal(again.x, found.x), "the same streams must give the same images"
    order = torch.arange(len(x)).flip(0)
    turned = attack(net, x[order], y[order], streams=Streams(0, order.tolist(), "attack"))
    assert torch.equal(turned.x, found.x[order]), "an image's example must not depend on its position in the batch"
    assert parse_attack(repr(attack), typed=True) == attack, f"its text must read back: {attack!r}"


def check_objective(objective: Objective, net: nn.Module | None = None, shape: Shape = SHAPE, units: int = 4) -> None:
    """An objective gives each image one score, of that image alone, and rises along its gradient.

    `net` (by default a small one) has the objective's layers; images are of `shape` (C, H, W), the units 0 … `units` - 1.

    >>> from vizrobust.features import Channel
    >>> check_objective(Channel("conv2"))
    """
    net = network(shape) if net is None else net
    unit = torch.arange(6) % units
    size = getattr(objective, "group_size", 1)
    scorer = Scorer.of(net, objective, shape, Compute("cpu"))

    def scores(x: Tensor) -> Tensor:
        return scorer(x, unit) if objective.layers else objective({}, x, unit)

    x = (0.3 + 0.4 * images(len(unit), shape)).requires_grad_()
    found = scores(x)
    assert found.shape == (len(unit),), f"one score for each image, got shape {tuple(found.shape)} for {len(unit)} images"
    for i in range(len(unit)):
        (grad,) = torch.autograd.grad(found[i], x, retain_graph=True)
        moved = [bool(part) for part in grad.flatten(1).abs().amax(1) > 0]
        assert all(not part or j // size == i // size for j, part in enumerate(moved)), (
            "a score must depend on its own group alone"
        )
    point = x.detach()
    for _ in range(5):
        point = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad(scores(point).sum(), point)
        point = point + 0.05 * grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
    assert bool((scores(point) > found).all()), "a few steps along the gradient must raise every score"
    assert parse(repr(objective), OBJECTIVES, "objective", typed=True) == objective, f"its text must read back: {objective!r}"


def check_parametrization(parametrization: Parametrization, shape: Shape = SHAPE) -> None:
    """A parametrization's images have their shape and range, and each depends on its own stream and numbers alone.

    >>> from vizrobust.features import Fourier
    >>> check_parametrization(Fourier(), (3, 9, 13))
    """
    assert isinstance(parametrization, Parametrization), (
        "it needs the methods init(shape, streams), __call__(z), constrain(z, start)"
    )
    made, size = for_shape(parametrization, shape), getattr(parametrization, "group_size", 1)
    planes = (shape[0] + hasattr(parametrization, "composite"), *shape[1:])
    items = list(range(3 * size))
    order = [row for group in (2, 0, 1) for row in items[group * size : (group + 1) * size]]
    z = made.init(shape, Streams(0, items, "start"))
    assert torch.equal(made.init(shape, Streams(0, order, "start")), z[order]), "each image must start from its own stream"
    for moved in (z, z + 0.3, 100 * z):
        _check_images(made(made.constrain(moved, z)), (len(z), *planes), torch.float32)
    moved = torch.rand(z.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    image = made(moved)
    assert torch.equal(made(moved[order]), image[order]), "an image must not depend on its position in the batch"
    (grad,) = torch.autograd.grad(image[:size].sum(), moved)
    assert not bool(grad[size:].any()), "an image's gradient must reach its own numbers alone"
    assert parse(repr(parametrization), NAMES, typed=True) == parametrization, f"its text must read back: {parametrization!r}"


def check_transform(transform: Transform, shape: Shape = SHAPE) -> None:
    """A transform keeps the images' size and type, is differentiable and draws from each image's own stream.

    >>> from vizrobust.features.transforms import Jitter
    >>> check_transform(Jitter(size=1 / 16))
    """
    x, count = images(4, shape), int(getattr(transform, "count", 1))
    order = [3, 1, 0, 2]
    out = transform(x, Streams(0, range(4)))
    assert out.shape == (count * 4, *shape), f"images must keep their size: {tuple(out.shape)} instead of {(count * 4, *shape)}"
    turned = transform(x[order], Streams(0, order)).reshape(count, 4, *shape)
    assert torch.equal(turned, out.reshape(count, 4, *shape)[:, order]), "an image must not depend on its position in the batch"
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(transform(point, Streams(0, range(4)))[1].sum(), point)
    assert bool(grad[1].any()), "a transform must be differentiable"
    assert not bool(grad[0].any()), "an image's gradient must reach that image alone"
    assert transform(x.double(), Streams(0, range(4))).dtype == torch.float64, "float64 must stay float64"
    assert parse(repr(transform), NAMES, typed=True) == transform, f"its text must read back: {transform!r}"


def check_metric(metric: Metric, *arguments: Any, **options: Any) -> None:
    """A metric has a role and a direction, and its function gives the same numbers for the same `arguments`.

    >>> from vizrobust.clarity import METRICS
    >>> check_metric(METRICS["transfer"], torch.randn(5, 10), torch.arange(5))
    """
    assert metric.name.isidentifier(), f"its name is a key in files: letters, digits and _, got {metric.name!r}"
    assert metric.role in ("primary", "secondary", "diagnostic"), (
        f"role must be primary, secondary or diagnostic, got {metric.role!r}"
    )
    assert metric.direction in (1, -1), f"direction must be 1 (larger is clearer) or -1, got {metric.direction!r}"
    one, two = (metric.function(*arguments, **options) for _ in range(2))
    for a, b in zip(_tensors(one), _tensors(two), strict=True):
        assert torch.equal(a, b) or bool(a.isnan().any()), "the same arguments must give the same numbers"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [torch.as_tensor(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _check_images(image: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert image.shape == shape, f"images must be {shape}, are {tuple(image.shape)}"
    assert image.dtype == dtype, f"images must be of type {dtype}, are {image.dtype}"
    assert bool(image.isfinite().all()), "images must hold finite numbers"
    low, high = float(image.detach().min()), float(image.detach().max())
    assert low >= 0, f"images must lie in [0, 1], the lowest value is {low:g}"
    assert high <= 1, f"images must lie in [0, 1], the highest value is {high:g}"
