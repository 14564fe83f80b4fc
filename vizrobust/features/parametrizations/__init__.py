"""How numbers become an image: pixels, a spectrum, phases alone, a network of coordinates; and with an opacity."""

from vizrobust.features.parametrizations.maco import MACO
from vizrobust.features.parametrizations.parametrization import (
    CPPN,
    IMAGENET_COLORS,
    Fourier,
    Parametrization,
    Pixels,
    alpha_penalized,
    color_directions,
    composited,
    falloff,
    for_shape,
    hartley,
    mixing,
)
from vizrobust.features.parametrizations.wrappers import AlphaChannel, SharedLowFrequency
from vizrobust.plugins import Catalogue
from vizrobust.spec import named

PARAMETRIZATIONS = Catalogue(named(Pixels, Fourier, MACO, SharedLowFrequency, CPPN, AlphaChannel), "parametrizations")

__all__ = [
    "CPPN",
    "IMAGENET_COLORS",
    "MACO",
    "PARAMETRIZATIONS",
    "AlphaChannel",
    "Fourier",
    "Parametrization",
    "Pixels",
    "SharedLowFrequency",
    "alpha_penalized",
    "color_directions",
    "composited",
    "falloff",
    "for_shape",
    "hartley",
    "mixing",
]
