"""Fitting an attack to a norm, a radius and a data set: also one around another, without a ball, or without a limit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vizrobust.attacks import (
    EOT,
    L2,
    PGD,
    Attack,
    AttackRun,
    Linf,
    Transfer,
    configured,
    is_inside,
    parse_attack,
    perturbation_norm,
)
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Wave(Attack):
    """An attack whose radius is no norm of the perturbation."""

    eps: float = 2.0
    steps: int = 5

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return ()


@pytest.mark.parametrize("around", [lambda inner: EOT(attack=inner), lambda inner: Transfer(source="a", attack=inner)])
def test_everything_reaches_the_attack_within(around) -> None:
    assert configured(around(PGD()), default_eps=0.3) == around(PGD(ball=Linf(0.3)))
    assert configured(around(PGD(ball=Linf(0.1))), default_eps=0.3, steps=7) == around(PGD(steps=7, ball=Linf(0.1)))
    assert configured(around(PGD(ball=Linf(0.1))), norm="L2", eps=2) == around(PGD(ball=L2(2)))
    assert configured(around(PGD(ball=Linf(0.1))), norm="Linf") == around(PGD(ball=Linf(0.1)))
    assert configured(around(around(PGD())), default_eps=0.3) == around(around(PGD(ball=Linf(0.3))))
    with pytest.raises(ValueError, match=r"with L2 has no eps; give eps, or L2\(eps=…\)"):
        configured(around(PGD(ball=Linf(0.1))), norm="L2", default_eps=0.3)


def test_an_attack_without_a_ball_keeps_its_own_radius() -> None:
    for attack in (Wave(), EOT(attack=Wave())):
        assert configured(attack, default_eps=0.3) == attack
        assert configured(attack, default_eps=0.3, norm="L2") == attack
        assert configured(attack) == attack
        assert attack.threat_model() == ("Wave", 2.0)
        assert is_inside(attack, 0.9)
    assert configured(Wave(), default_eps=0.3, eps=1.5, steps=3) == Wave(eps=1.5, steps=3)
    assert configured(EOT(attack=Wave()), eps=1.5) == EOT(attack=Wave(eps=1.5))


@pytest.mark.parametrize("attack", [PGD(), EOT(attack=PGD()), PGD(ball=L2())], ids=repr)
def test_a_radius_may_stay_open_for_the_smallest_perturbation(attack: Attack) -> None:
    assert configured(attack, default_eps=0.3, unbounded=True) == attack
    assert configured(attack, unbounded=True, norm="L2") == configured(attack, unbounded=True, norm="l2")
    assert configured(attack, unbounded=True, norm="L2").threat_model() == ("L2", None)
    assert configured(attack, unbounded=True, norm="L2", eps=3).threat_model() == ("L2", 3.0)
    with pytest.raises(ValueError, match="has no eps"):
        configured(attack)


def test_sizes_are_measured_in_the_norm_of_the_attack_within() -> None:
    delta = torch.full((2, 1, 4, 4), 0.5)
    assert perturbation_norm(EOT(attack=PGD(ball=L2(1))), delta).tolist() == [2.0, 2.0]
    assert perturbation_norm(EOT(attack=Wave()), delta).tolist() == [0.5, 0.5]
    assert not is_inside(Transfer(attack=PGD(ball=L2(1))), 1.1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ISM(steps=3)", "BIM(steps=3)"),
        ("EoT(attack=ISM())", "EOT(attack=BIM())"),
        ("Noise(draws=3, kind='corners')", 'Noise(samples=3, kind="vertices")'),
        ("PGD(loss='plain_ce')", 'PGD(loss="standard_ce")'),
    ],
)
def test_attacks_written_before_the_renaming_read(old: str, new: str) -> None:
    assert repr(parse_attack(old)) == new
