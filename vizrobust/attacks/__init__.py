"""Attacks: threat models (balls), losses, the gradient attacks built from them, and attacks without gradients."""

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.balls import BALLS, L1, L2, Ball, Linf, per_image, radius
from vizrobust.attacks.ensemble import ENSEMBLES, AutoAttack
from vizrobust.attacks.eot import EoT
from vizrobust.attacks.fit import fit
from vizrobust.attacks.gradient import ATTACKS as GRADIENT_ATTACKS
from vizrobust.attacks.gradient import FGSM, ISM, PGD
from vizrobust.attacks.losses import LOSSES, fallback
from vizrobust.attacks.noise import Noise
from vizrobust.attacks.notes import notes
from vizrobust.attacks.square import Square
from vizrobust.attacks.threat import ball_of, is_inside, measure, threat
from vizrobust.attacks.transfer import Transfer
from vizrobust.attacks.walk import Attack, Attacked, State, Walk
from vizrobust.spec import named, parse

ATTACKS = {**GRADIENT_ATTACKS, **named(APGD, AutoAttack, Square, Noise, Transfer, EoT)}
NAMES = {**BALLS, **ATTACKS, **ENSEMBLES}

__all__ = [
    "APGD",
    "ATTACKS",
    "BALLS",
    "ENSEMBLES",
    "FGSM",
    "ISM",
    "L1",
    "L2",
    "LOSSES",
    "NAMES",
    "PGD",
    "Attack",
    "Attacked",
    "AutoAttack",
    "Ball",
    "EoT",
    "Linf",
    "Noise",
    "Square",
    "State",
    "Transfer",
    "Walk",
    "ball_of",
    "fallback",
    "fit",
    "is_inside",
    "measure",
    "notes",
    "parse_attack",
    "per_image",
    "radius",
    "threat",
]


def parse_attack(text: str) -> Attack:
    """An attack from its text; ``ValueError`` if it is a ball or anything else.

    >>> parse_attack("fgsm")
    FGSM()
    """
    attack = parse(text, NAMES, "attack")
    if not isinstance(attack, Attack):
        raise ValueError(f"{text!r} is not an attack; there are: {', '.join(ATTACKS)}")
    return attack
