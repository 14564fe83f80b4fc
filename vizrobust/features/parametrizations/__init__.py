"""How numbers become an image: pixels, a spectrum, phases alone, a network of coordinates; and with an opacity."""

from vizrobust.features.parametrizations.cppn import CPPN
from vizrobust.features.parametrizations.fourier import IMAGENET_COLORS, Fourier, color_directions, falloff, hartley, mixing
from vizrobust.features.parametrizations.maco import Magnitude
from vizrobust.features.parametrizations.parametrization import Parametrization, Pixels, seen, sized, worth
from vizrobust.features.parametrizations.wrappers import Shared, Transparent
from vizrobust.spec import named

PARAMETRIZATIONS = named(Pixels, Fourier, Magnitude, Shared, CPPN, Transparent)

__all__ = [
    "CPPN",
    "IMAGENET_COLORS",
    "PARAMETRIZATIONS",
    "Fourier",
    "Magnitude",
    "Parametrization",
    "Pixels",
    "Shared",
    "Transparent",
    "color_directions",
    "falloff",
    "hartley",
    "mixing",
    "seen",
    "sized",
    "worth",
]
