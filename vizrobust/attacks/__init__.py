"""Attacks: threat models (balls), losses, and the gradient attacks built from them."""

from vizrobust.attacks.balls import BALLS, L2, Ball, Linf, per_image, radius
from vizrobust.attacks.fit import fit
from vizrobust.attacks.gradient import ATTACKS, FGSM, ISM, PGD
from vizrobust.attacks.losses import LOSSES
from vizrobust.attacks.threat import ball_of, is_inside, measure, threat
from vizrobust.attacks.walk import Attack, Attacked, State, Walk
from vizrobust.spec import parse

NAMES = {**BALLS, **ATTACKS}

__all__ = [
    "ATTACKS",
    "BALLS",
    "FGSM",
    "ISM",
    "L2",
    "LOSSES",
    "NAMES",
    "PGD",
    "Attack",
    "Attacked",
    "Ball",
    "Linf",
    "State",
    "Walk",
    "ball_of",
    "fit",
    "is_inside",
    "measure",
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
