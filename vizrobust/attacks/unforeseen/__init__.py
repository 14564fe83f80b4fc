"""Unforeseen attacks: changes that no norm of the pixels describes, each of a strength in units of its own."""

from vizrobust.attacks.unforeseen.distortions import JPEG, Elastic, Glitch
from vizrobust.attacks.unforeseen.patterns import Gabor, Kaleidoscope, Pixel, Wood
from vizrobust.attacks.unforeseen.unforeseen_attack import (
    UnforeseenAttack,
    family,
    source,
    strengths,
    with_default_eps,
)
from vizrobust.attacks.unforeseen.weather import Fog, Snow
from vizrobust.spec import named

# The first family has UAR calibrations; the later four are summarised by mean accuracy.
UNFORESEEN = named(Elastic, JPEG, Fog, Snow, Gabor, Pixel, Glitch, Kaleidoscope, Wood)

__all__ = [
    "JPEG",
    "UNFORESEEN",
    "Elastic",
    "Fog",
    "Gabor",
    "Glitch",
    "Kaleidoscope",
    "Pixel",
    "Snow",
    "UnforeseenAttack",
    "Wood",
    "family",
    "source",
    "strengths",
    "with_default_eps",
]
