"""Attacks: threat models (balls), losses, the gradient attacks built from them, and attacks without gradients."""

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.attack import (
    Attack,
    AttackResult,
    AttackRun,
    State,
    ball_of,
    input_gradient,
    is_inside,
    is_minimum_norm,
    perturbation_norm,
)
from vizrobust.attacks.black_box import Noise, Square
from vizrobust.attacks.boundary_attacks import FAB, DeepFool
from vizrobust.attacks.gradient import ATTACKS as GRADIENT_ATTACKS
from vizrobust.attacks.gradient import BIM, FGSM, PGD, configured
from vizrobust.attacks.losses import LOSSES, fallback
from vizrobust.attacks.minimum_norm import DDN, FMN, HopSkipJump
from vizrobust.attacks.penalty_attacks import ALMA, CW, SigmaZero
from vizrobust.attacks.threat_models import BALLS, L0, L1, L2, Ball, EpsShare, Linf, epsilon, per_image
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
    UnforeseenAttack,
    Wood,
    family,
    strengths,
    with_default_eps,
)
from vizrobust.attacks.wrappers import ENSEMBLES, EOT, AutoAttack, Transfer
from vizrobust.plugins import Catalogue
from vizrobust.spec import named, parse

ATTACKS = {
    **GRADIENT_ATTACKS,
    **named(APGD, AutoAttack, FAB, DeepFool, CW, FMN, DDN, ALMA, SigmaZero, Square, HopSkipJump, Noise, Transfer, EOT),
}
# In a text, such as PGD(alpha=eps/16), eps is the attack's own.
NAMES = Catalogue({**BALLS, **ATTACKS, **ENSEMBLES, **UNFORESEEN, "eps": EpsShare}, "attacks")

__all__ = [
    "ALMA",
    "APGD",
    "ATTACKS",
    "BALLS",
    "BIM",
    "CW",
    "DDN",
    "ENSEMBLES",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "JPEG",
    "L0",
    "L1",
    "L2",
    "LOSSES",
    "NAMES",
    "PGD",
    "UNFORESEEN",
    "Attack",
    "AttackResult",
    "AttackRun",
    "AutoAttack",
    "Ball",
    "DeepFool",
    "Elastic",
    "EpsShare",
    "Fog",
    "Gabor",
    "Glitch",
    "HopSkipJump",
    "Kaleidoscope",
    "Linf",
    "Noise",
    "Pixel",
    "SigmaZero",
    "Snow",
    "Square",
    "State",
    "Transfer",
    "UnforeseenAttack",
    "Wood",
    "ball_of",
    "configured",
    "epsilon",
    "fallback",
    "family",
    "input_gradient",
    "is_inside",
    "is_minimum_norm",
    "parse_attack",
    "per_image",
    "perturbation_norm",
    "strengths",
    "with_default_eps",
]


def parse_attack(text: str, *, typed: bool = False) -> Attack:
    """An attack from its text; ``ValueError`` if it is a ball or anything else.

    It may be an installed package's, or ``my.py:MyAttack(...)`` where a person `typed` the text.

    >>> parse_attack("fgsm")
    FGSM()
    """
    attack = parse(text, NAMES, "attack", typed=typed)
    if not isinstance(attack, Attack):
        raise ValueError(f"{text!r} is not an attack; there are: {', '.join((*ATTACKS, *UNFORESEEN))}")
    return attack
