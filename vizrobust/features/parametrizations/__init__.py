"""How numbers become an image: pixels themselves, a spectrum, phases alone, or a network of coordinates."""

from vizrobust.features.parametrizations.colors import IMAGENET_COLORS, color_directions, mixing
from vizrobust.features.parametrizations.cppn import CPPN
from vizrobust.features.parametrizations.fourier import Fourier
from vizrobust.features.parametrizations.frequencies import falloff, hartley
from vizrobust.features.parametrizations.magnitude import Magnitude
from vizrobust.features.parametrizations.pixels import Pixels
from vizrobust.features.parametrizations.protocol import Parametrization, sized
from vizrobust.features.parametrizations.shared import Shared
from vizrobust.spec import named

PARAMETRIZATIONS = named(Pixels, Fourier, Magnitude, Shared, CPPN)

__all__ = [
    "CPPN",
    "IMAGENET_COLORS",
    "PARAMETRIZATIONS",
    "Fourier",
    "Magnitude",
    "Parametrization",
    "Pixels",
    "Shared",
    "color_directions",
    "falloff",
    "hartley",
    "mixing",
    "sized",
]
