"""Render recipes: a parametrization, transforms, an optimizer and a number of steps, under a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vizrobust.attacks import BALLS, Ball
from vizrobust.data import DataSet
from vizrobust.features.optimizers import OPTIMIZERS, Adam, Ascent, Glance, Optimizer
from vizrobust.features.parametrizations import (
    IMAGENET_COLORS,
    PARAMETRIZATIONS,
    Fourier,
    Parametrization,
    Pixels,
    color_directions,
)
from vizrobust.features.transforms import TRANSFORMS, Jitter, Transform
from vizrobust.spec import lookup, named, parse, spec

IMAGENET_LIKE = ("imagenet", "imagenette")


@spec
@dataclass(frozen=True)
class Recipe:
    """How a feature image is made. `name` is what files and tables call it; `size` None is the network's input size."""

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
            if not isinstance(transform, tuple(TRANSFORMS.values())):  # type: ignore[arg-type]
                raise ValueError(f"Recipe: transforms must be of {', '.join(TRANSFORMS)}, got {transform!r}")


def gradient() -> Recipe:
    """One backward pass from grey, or from `--start IMAGE`, shown as it is: no prior and no tuning to blame."""
    return Recipe("gradient", Pixels(deviation=0.0), Glance(), steps=1)


def plain(steps: int = 200, rate: float = 0.005, ball: Ball | None = None, size: int | None = None) -> Recipe:
    """Normalized gradient ascent on pixels, no transforms: what the network itself wants to see."""
    return Recipe("plain", Pixels(ball=ball), Ascent(rate=rate), steps=steps, size=size)


def fourier(
    steps: int = 200, lr: float = 0.05, decay: float = 1.0, colors: tuple[float, ...] | None = None, size: int | None = None
) -> Recipe:
    """Adam on a decaying spectrum in decorrelated colours, under a jitter of 1/16 of the side."""
    transforms: tuple[Transform, ...] = (Jitter(size=1 / 16),)
    return Recipe("fourier", Fourier(decay=decay, colors=colors), Adam(lr=lr), transforms, steps, size)


RECIPES = named(gradient, plain, fourier)
NAMES = {**BALLS, **PARAMETRIZATIONS, **OPTIMIZERS, **TRANSFORMS, **RECIPES, **named(Recipe)}


def parse_recipe(text: str) -> Recipe:
    """A recipe from its name or text.

    >>> parse_recipe("plain(steps=64)")
    Recipe(name="plain", parametrization=Pixels(), optimizer=Ascent(), steps=64)
    """
    lookup({**RECIPES, "Recipe": Recipe}, text.strip().partition("(")[0].strip(), "recipe")
    return parse(text, NAMES, "recipe")


def colored(recipe: Recipe, data: DataSet | None) -> Recipe:
    """The recipe with the data set's own colour directions, where it is a Fourier recipe that names none."""
    prior = recipe.parametrization
    if not isinstance(prior, Fourier) or prior.colors is not None or data is None or data.shape[0] == 1:
        return recipe
    known = data.name.startswith(IMAGENET_LIKE) and data.shape[0] == 3
    colors = IMAGENET_COLORS if known else color_directions(data.color_covariance)
    return replace(recipe, parametrization=replace(prior, colors=colors))
