"""How numbers become an image: pixels themselves, a spectrum, phases alone, or a network of coordinates."""

from vizrobust.features.parametrizations.colors import IMAGENET_COLORS, color_directions, mixing
from vizrobust.features.parametrizations.fourier import Fourier
from vizrobust.features.parametrizations.frequencies import falloff, hartley
from vizrobust.features.parametrizations.magnitude import Magnitude
from vizrobust.features.parametrizations.pixels import Pixels
from vizrobust.features.parametrizations.protocol import Parametrization, inverted, sized
from vizrobust.spec import named

PARAMETRIZATIONS = named(Pixels, Fourier, Magnitude)

__all__ = [
    "IMAGENET_COLORS",
    "PARAMETRIZATIONS",
    "Fourier",
    "Magnitude",
    "Parametrization",
    "Pixels",
    "color_directions",
    "falloff",
    "hartley",
    "inverted",
    "mixing",
    "sized",
]
