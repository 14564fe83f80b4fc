"""Unforeseen attacks: changes that no norm of the pixels describes, each of a strength in units of its own."""

from vizrobust.attacks.unforeseen.climb import Climb, Unforeseen, Variables
from vizrobust.attacks.unforeseen.elastic import Elastic
from vizrobust.attacks.unforeseen.fog import Fog
from vizrobust.attacks.unforeseen.gabor import Gabor
from vizrobust.attacks.unforeseen.glitch import Glitch
from vizrobust.attacks.unforeseen.jpeg import JPEG
from vizrobust.attacks.unforeseen.kaleidoscope import Kaleidoscope
from vizrobust.attacks.unforeseen.pixel import Pixel
from vizrobust.attacks.unforeseen.snow import Snow
from vizrobust.attacks.unforeseen.strengths import kind, source, strengths, suited
from vizrobust.attacks.unforeseen.wood import Wood
from vizrobust.spec import named

# The first family has UAR calibrations; the later four are summarised by mean accuracy.
UNFORESEEN = named(Elastic, JPEG, Fog, Snow, Gabor, Pixel, Glitch, Kaleidoscope, Wood)

__all__ = [
    "JPEG",
    "UNFORESEEN",
    "Climb",
    "Elastic",
    "Fog",
    "Gabor",
    "Glitch",
    "Kaleidoscope",
    "Pixel",
    "Snow",
    "Unforeseen",
    "Variables",
    "Wood",
    "kind",
    "source",
    "strengths",
    "suited",
]
