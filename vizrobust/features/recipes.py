"""Render recipes: a parametrization, transforms, an optimizer and a number of steps, under a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vizrobust.attacks import BALLS, Ball, per_image
from vizrobust.data import DataSet
from vizrobust.features.parametrizations import (
    IMAGENET_COLORS,
    MACO,
    PARAMETRIZATIONS,
    Fourier,
    Parametrization,
    Pixels,
    color_directions,
)
from vizrobust.features.transforms import TRANSFORMS, Crops, Jitter, Noise, Pad, Rotate, Scale, Transform
from vizrobust.plugins import Catalogue
from vizrobust.spec import lookup, named, parse, spec, vary

Step = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Optimizer(Protocol):
    """``optimizer.begin(z)`` gives a function (z, gradient) -> next z. Images of a batch never meet in it."""

    def begin(self, z: Tensor) -> Step: ...


@spec
@dataclass(frozen=True)
class NormalizedAscent:
    """Each step is the gradient scaled to length `step_size` * sqrt(number of coordinates), image by image.

    That is a root mean square of `step_size` in each coordinate, as in L2-PGD on images of any size (Engstrom et al. 2019).

    >>> step = NormalizedAscent(step_size=0.1).begin(torch.zeros(1, 4))
    >>> step(torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, 7.0]]))
    tensor([[0.0000, 0.0000, 0.0000, 0.2000]])
    """

    step_size: float = 0.005

    def begin(self, z: Tensor) -> Step:
        length = self.step_size * z[0].numel() ** 0.5
        return lambda z, grad: z + length * _unit(grad)


@spec
@dataclass(frozen=True)
class Adam:
    """Adam, uphill (Kingma & Ba 2015): every coordinate has its own step size, so images of a batch stay independent.

    >>> Adam(lr=0.1).begin(torch.zeros(1, 2))(torch.zeros(1, 2), torch.tensor([[5.0, -0.01]]))
    tensor([[ 0.1000, -0.1000]])
    """

    lr: float = 0.05

    def begin(self, z: Tensor) -> Step:
        return _ascending(z.clone(), torch.optim.Adam, self.lr)


@spec
@dataclass(frozen=True)
class NAdam:
    """Adam with Nesterov momentum, uphill (Dozat 2016), as MACO uses it; every coordinate has its own step size.

    >>> NAdam(lr=0.1).begin(torch.zeros(1, 2))(torch.zeros(1, 2), torch.tensor([[5.0, -5.0]])).sign()
    tensor([[ 1., -1.]])
    """

    lr: float = 1.0

    def begin(self, z: Tensor) -> Step:
        return _ascending(z.clone(), torch.optim.NAdam, self.lr)


@spec
@dataclass(frozen=True)
class RawGradient:
    """The gradient itself as a picture: .5 + .5 * gradient / (`deviations` * its deviation), clipped (Tsipras et al. 2019).

    >>> RawGradient(deviations=1.0).begin(torch.zeros(1, 2))(torch.zeros(1, 2), torch.tensor([[3.0, -3.0]]))
    tensor([[1., 0.]])
    """

    deviations: float = 3.0

    def begin(self, z: Tensor) -> Step:
        def step(z: Tensor, grad: Tensor) -> Tensor:
            flat = grad.flatten(1)
            spread = (flat - flat.mean(1, keepdim=True)).norm(dim=1) / z[0].numel() ** 0.5
            return 0.5 + 0.5 * grad / per_image(self.deviations * spread.clamp_min(1e-12), grad)

        return step


def _ascending(own: Tensor, kind: Callable[..., torch.optim.Optimizer], lr: float) -> Step:
    """torch's optimizer of the one tensor `own`, uphill."""
    optimizer = kind([own], lr=lr)

    def step(z: Tensor, grad: Tensor) -> Tensor:
        own.copy_(z)
        own.grad = -grad
        optimizer.step()
        return own.clone()

    return step


def _unit(grad: Tensor) -> Tensor:
    return grad / per_image(grad.flatten(1).norm(dim=1).clamp_min(1e-12), grad)


OPTIMIZERS = named(NormalizedAscent, Adam, NAdam, RawGradient)


IMAGENET_LIKE = ("imagenet", "imagenette")


@spec
@dataclass(frozen=True)
class Recipe:
    """How a feature image is made. `name` is what files and tables call it; `size` None is the network's input size.

    >>> from vizrobust.features import Pixels
    >>> Recipe("mine", Pixels(), Adam(lr=0.1)).steps == plain().steps
    True
    """

    name: str
    parametrization: Parametrization
    optimizer: Optimizer
    transforms: tuple[Any, ...] = ()
    steps: int = 200
    size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Recipe: steps must be at least 1, got {self.steps}")
        if self.size is not None and self.size < 4:
            raise ValueError(f"Recipe: size must be at least 4 pixels, got {self.size}")
        for transform in self.transforms:
            own = type(transform).__module__.startswith("vizrobust.")
            if not (isinstance(transform, tuple(TRANSFORMS.values())) if own else callable(transform)):  # type: ignore[arg-type]
                raise ValueError(f"Recipe: transforms must be of {', '.join(TRANSFORMS)}, got {transform!r}")


def gradient() -> Recipe:
    """One backward pass from grey, or from a start image, shown as it is: no prior and nothing to tune (Tsipras et al. 2019).

    >>> gradient()
    Recipe(name="gradient", parametrization=Pixels(deviation=0.0), optimizer=RawGradient(), steps=1)
    """
    return Recipe("gradient", Pixels(deviation=0.0), RawGradient(), steps=1)


def plain(steps: int = 200, step_size: float = 0.005, ball: Ball | None = None, size: int | None = None) -> Recipe:
    """Normalized gradient ascent on pixels without transforms: what the network itself responds to (Engstrom et al. 2019).

    >>> plain(steps=64)
    Recipe(name="plain", parametrization=Pixels(), optimizer=NormalizedAscent(), steps=64)
    """
    return Recipe("plain", Pixels(ball=ball), NormalizedAscent(step_size=step_size), steps=steps, size=size)


def direct(steps: int = 500, lr: float = 0.05, size: int | None = None) -> Recipe:
    """Adam on the pixels without transforms, for objectives that fit one image (Mahendran & Vedaldi 2015).

    >>> direct(steps=50)
    Recipe(name="direct", parametrization=Pixels(), optimizer=Adam(), steps=50)
    """
    return Recipe("direct", Pixels(), Adam(lr=lr), steps=steps, size=size)


def fourier(
    steps: int = 200, lr: float = 0.05, decay: float = 1.0, colors: tuple[float, ...] | None = None, size: int | None = None
) -> Recipe:
    """Adam on a decaying spectrum in decorrelated colours, under a jitter of 1/16 of the side (Olah et al. 2017).

    >>> fourier(steps=50).transforms
    (Jitter(),)
    """
    transforms: tuple[Transform, ...] = (Jitter(size=1 / 16),)
    return Recipe("fourier", Fourier(decay=decay, colors=colors), Adam(lr=lr), transforms, steps, size)


def lucid(steps: int = 512, lr: float = 0.05, colors: tuple[float, ...] | None = None, size: int | None = None) -> Recipe:
    """Lucid's published defaults (Olah et al. 2017): its spectrum, and its transforms for 128 pixels as shares of the side.

    >>> lucid().steps, len(lucid().transforms)
    (512, 5)
    """
    transforms: tuple[Transform, ...] = (
        Pad(value=0.5),
        Jitter(size=4 / 128),
        Scale(size=0.1, choices=11),
        Rotate(degrees=10.0, choices=21, still_share=5 / 26),
        Jitter(size=2 / 128),
    )
    return Recipe("lucid", Fourier(colors=colors), Adam(lr=lr), transforms, steps, size)


def maco(
    steps: int = 256,
    lr: float = 1.0,
    crops: int = 6,
    low: float = 0.5,
    high: float = 0.75,
    noise: float = 0.01,
    spectrum: str | None = None,
    contrast: float = 1.0,
    colors: tuple[float, ...] | None = None,
    size: int | None = None,
) -> Recipe:
    """NAdam on phases alone under a fixed magnitude spectrum, through noisy random crops (Fel et al. 2023, MACO).

    >>> maco(crops=2).transforms
    (Crops(count=2, low=0.5, high=0.75), Noise(deviation=0.01))
    """
    parametrization = MACO(spectrum=spectrum, contrast=contrast, colors=colors)
    transforms: tuple[Transform, ...] = (Crops(count=crops, low=low, high=high), Noise(deviation=noise))
    return Recipe("maco", parametrization, NAdam(lr=lr), transforms, steps, size)


RECIPES = named(gradient, plain, direct, fourier, lucid, maco)
# From this side on, gradient ascent on pixels alone shows grey noise of networks that were not trained with attacks.
LARGE_SIDE = 128


def recipe_for(shape: tuple[int, int, int]) -> Recipe:
    """The recipe that shows something at images of `shape` (C, H, W): plain, from 128 pixels on fourier.

    >>> recipe_for((3, 32, 32)).name, recipe_for((3, 224, 224)).name
    ('plain', 'fourier')
    """
    return fourier() if min(shape[1:]) >= LARGE_SIDE else plain()


NAMES = Catalogue(
    {**BALLS, **PARAMETRIZATIONS, **OPTIMIZERS, **TRANSFORMS, **RECIPES, **named(Recipe)}, "parametrizations", "transforms"
)


def parse_recipe(text: str, *, typed: bool = False) -> Recipe:
    """A recipe from its name or text; ``ValueError`` for anything else.

    Its parametrization and transforms may be an installed package's, or ``my.py:Mine(...)`` where a person `typed` it.

    >>> parse_recipe("plain(steps=64)")
    Recipe(name="plain", parametrization=Pixels(), optimizer=NormalizedAscent(), steps=64)
    """
    name = text.strip().partition("(")[0].strip()
    found = lookup({**RECIPES, "Recipe": Recipe}, name, "recipe")
    # The catalogue's own spelling: Fourier is the recipe here, not the parametrization of that name.
    recipe: Recipe = parse(found.__name__ + text.strip()[len(name) :], NAMES, "recipe", typed=typed)
    return recipe


def with_data_statistics(recipe: Recipe, data: DataSet | None) -> Recipe:
    """The recipe with statistics of the data set's images, wherever the recipe names none of its own.

    Decorrelated colours become the data set's (the published ones for ImageNet and its subsets), the magnitudes of `MACO`
    those of its training images, by reference. Without data both stay general: ImageNet's colours and 1 / frequency.

    >>> from vizrobust.data import load
    >>> with_data_statistics(maco(), load("mnist5k")).parametrization
    MACO(spectrum="mnist5k")
    """
    if data is None:
        return recipe
    prior = recipe.parametrization
    own: Any = prior
    while hasattr(own, "inner"):
        own = own.inner
    known: dict[str, Any] = {}
    if getattr(own, "spectrum", "") is None:
        known["spectrum"] = data.name
    # One channel has one direction.
    if getattr(own, "colors", ()) is None and data.shape[0] > 1:
        published = data.name.startswith(IMAGENET_LIKE) and data.shape[0] == 3
        known["colors"] = IMAGENET_COLORS if published else color_directions(data.color_covariance)
    return replace(recipe, parametrization=vary(prior, **known))
