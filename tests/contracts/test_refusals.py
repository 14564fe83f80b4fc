"""Contract: an attack that cannot be gets one sentence in one line, which names the field or the next word to try."""

from __future__ import annotations

import pytest

from tests.conftest import assert_refused
from vizrobust.attacks import parse_attack

REFUSED = {
    "pgd(steps=-1)": "PGD: steps must not be negative, got -1",
    "bim(steps=2.5)": "BIM: steps must be a whole number, got 2.5",
    "pgd(alpha=-0.1)": "PGD: alpha must not be negative, got -0.1",
    "pgd(restarts=0)": "PGD: restarts must be at least 1, got 0",
    "pgd(restarts=2, random_start=False)": "2 restarts without a random start would be equal",
    "pgd(steps=0, clip_start=False)": "clip_start=False needs a random start",
    "pgd(loss='cee')": "no loss 'cee'; did you mean ce?",
    "fgsm(target=3)": "FGSM: target=3 needs targeted=True",
    "fgsm(targeted=True, target=-3)": "FGSM: target must be a class number from 0 on, got -3",
    "fgsm(steps=3)": "no field of FGSM 'steps'",
    "pgd(ball=pgd)": "PGD: ball must be Ball, got PGD()",
    "pgd(ball=linf(eps=8))": "write 8/255",
    "pdg": "no attack 'pdg'; did you mean PGD",
    "linf(eps=0.1)": "is not an attack; there are: FGSM, BIM, PGD",
    "3": "is not an attack",
    "apgd(steps=-1)": "APGD: steps must be at least 0, got -1",
    "apgd(restarts=0)": "APGD: restarts must be at least 1, got 0",
    "apgd(targets=0)": "APGD: targets must be at least 1, got 0",
    "apgd(loss='dlrr')": "no loss 'dlrr'; did you mean dlr",
    "apgd(restarts=2, random_start=False)": "2 restarts without a random start would be equal",
    "autoattack(version='standart')": "no version of AutoAttack 'standart'; did you mean standard",
    "autoattack(steps=-1)": "steps must be at least 0, got -1",
    "autoattack(queries=-1)": "Square: queries must be at least 0, got -1",
    "standard(steps=3)": "steps",
    "standart": "no attack 'standart'; did you mean standard",
    "noise(samples=0)": "Noise: samples must be at least 1, got 0",
    "noise(kind='vertice')": "no kind of noise 'vertice'; did you mean vertices?",
    "noise(steps=3)": "no field of Noise 'steps'",
    "square(queries=-1)": "Square: queries must be at least 0, got -1",
    "square(p_init=0)": "Square: p_init must be above 0 and at most 1, got 0",
    "square(p_init=1.5)": "Square: p_init must be above 0 and at most 1, got 1.5",
    "square(restarts=0)": "Square: restarts must be at least 1, got 0",
    "square(loss='marign')": "no loss 'marign'; did you mean margin?",
    "square(ball=L1(eps=3))": "Square: the ball must be Linf or L2, got L1",
    "square(steps=3)": "no field of Square 'steps'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_an_attack_that_cannot_be_is_one_sentence(text: str) -> None:
    assert_refused(lambda: parse_attack(text), REFUSED[text])
