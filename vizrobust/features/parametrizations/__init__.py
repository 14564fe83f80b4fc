"""How numbers become an image: pixels, a spectrum, phases alone, a network of coordinates; and with an opacity."""

from vizrobust.features.parametrizations.colors import IMAGENET_COLORS, color_directions, mixing
from vizrobust.features.parametrizations.cppn import CPPN
from vizrobust.features.parametrizations.fourier import Fourier
from vizrobust.features.parametrizations.frequencies import falloff, hartley
from vizrobust.features.parametrizations.magnitude import Magnitude
from vizrobust.features.parametrizations.pixels import Pixels
from vizrobust.features.parametrizations.protocol import Parametrization, seen, sized, worth
from vizrobust.features.parametrizations.shared import Shared
from vizrobust.features.parametrizations.transparent import Transparent
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
