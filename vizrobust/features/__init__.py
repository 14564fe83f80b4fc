"""Feature visualization: objectives, parametrizations, transforms, optimizers, recipes and the render loop."""

from vizrobust.features.objectives import OBJECTIVES, Channel, Direction, Logit, Neuron, Objective, parse_objective
from vizrobust.features.optimizers import OPTIMIZERS, Adam, Ascent, Glance
from vizrobust.features.parametrizations import PARAMETRIZATIONS, Fourier, Pixels
from vizrobust.features.pictures import start_image
from vizrobust.features.recipes import NAMES, RECIPES, Recipe, colored, fourier, gradient, parse_recipe, plain
from vizrobust.features.render import Rendered, render
from vizrobust.features.session import Request, images_of, missing, render_into, row_key
from vizrobust.features.transforms import TRANSFORMS, Affine, Crops, Jitter, Pad
from vizrobust.features.units import accepts, objective_for, units_from

__all__ = [
    "NAMES",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PARAMETRIZATIONS",
    "RECIPES",
    "TRANSFORMS",
    "Adam",
    "Affine",
    "Ascent",
    "Channel",
    "Crops",
    "Direction",
    "Fourier",
    "Glance",
    "Jitter",
    "Logit",
    "Neuron",
    "Objective",
    "Pad",
    "Pixels",
    "Recipe",
    "Rendered",
    "Request",
    "accepts",
    "colored",
    "fourier",
    "gradient",
    "images_of",
    "missing",
    "objective_for",
    "parse_objective",
    "parse_recipe",
    "plain",
    "render",
    "render_into",
    "row_key",
    "start_image",
    "units_from",
]
