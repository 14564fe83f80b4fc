"""Attacks: threat models (balls), losses, the gradient attacks built from them, and attacks without gradients."""

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.attack import Attack, Attacked, State, Walk, ball_of, is_inside, measure, threat
from vizrobust.attacks.autoattack import ENSEMBLES, AutoAttack, notes
from vizrobust.attacks.boundary_attacks import FAB, DeepFool, is_minimal
from vizrobust.attacks.carlini_wagner import CW
from vizrobust.attacks.gradient import ATTACKS as GRADIENT_ATTACKS
from vizrobust.attacks.gradient import FGSM, ISM, PGD, fit
from vizrobust.attacks.losses import LOSSES, fallback
from vizrobust.attacks.noise import Noise
from vizrobust.attacks.square import Square
from vizrobust.attacks.threat_models import BALLS, L1, L2, Ball, Linf, per_image, radius
from vizrobust.attacks.unforeseen import (
    JPEG,
    UNFORESEEN,
    Elastic,
    Fog,
    Gabor,
    Glitch,
    Kaleidoscope,
    Pixel,
    Snow,
    Wood,
    kind,
    strengths,
    suited,
)
from vizrobust.attacks.wrappers import EoT, Transfer
from vizrobust.spec import named, parse

ATTACKS = {**GRADIENT_ATTACKS, **named(APGD, AutoAttack, FAB, DeepFool, CW, Square, Noise, Transfer, EoT)}
NAMES = {**BALLS, **ATTACKS, **ENSEMBLES, **UNFORESEEN}

__all__ = [
    "APGD",
    "ATTACKS",
    "BALLS",
    "CW",
    "ENSEMBLES",
    "FAB",
    "FGSM",
    "ISM",
    "JPEG",
    "L1",
    "L2",
    "LOSSES",
    "NAMES",
    "PGD",
    "UNFORESEEN",
    "Attack",
    "Attacked",
    "AutoAttack",
    "Ball",
    "DeepFool",
    "Elastic",
    "EoT",
    "Fog",
    "Gabor",
    "Glitch",
    "Kaleidoscope",
    "Linf",
    "Noise",
    "Pixel",
    "Snow",
    "Square",
    "State",
    "Transfer",
    "Walk",
    "Wood",
    "ball_of",
    "fallback",
    "fit",
    "is_inside",
    "is_minimal",
    "kind",
    "measure",
    "notes",
    "parse_attack",
    "per_image",
    "radius",
    "strengths",
    "suited",
    "threat",
]


def parse_attack(text: str) -> Attack:
    """An attack from its text; ``ValueError`` if it is a ball or anything else.

    >>> parse_attack("fgsm")
    FGSM()
    """
    attack = parse(text, NAMES, "attack")
    if not isinstance(attack, Attack):
        raise ValueError(f"{text!r} is not an attack; there are: {', '.join((*ATTACKS, *UNFORESEEN))}")
    return attack
