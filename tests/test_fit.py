"""Fitting an attack to a norm, a radius and a data set: also one around another, without a ball, or without a limit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vizrobust.attacks import L2, PGD, Attack, Attacked, EoT, Linf, Transfer, Walk, fit, is_inside, measure, threat
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Wave:
    """An attack whose radius is no norm of the perturbation."""

    eps: float = 2.0
    steps: int = 5

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return ()

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return Attacked(x)


@pytest.mark.parametrize("around", [lambda inner: EoT(attack=inner), lambda inner: Transfer(source="a", attack=inner)])
def test_everything_reaches_the_attack_within(around) -> None:
    assert fit(around(PGD()), default_eps=0.3) == around(PGD(ball=Linf(0.3)))
    assert fit(around(PGD(ball=Linf(0.1))), default_eps=0.3, steps=7) == around(PGD(steps=7, ball=Linf(0.1)))
    assert fit(around(PGD(ball=Linf(0.1))), norm="L2", eps=2) == around(PGD(ball=L2(2)))
    assert fit(around(PGD(ball=Linf(0.1))), norm="Linf") == around(PGD(ball=Linf(0.1)))
    assert fit(around(around(PGD())), default_eps=0.3) == around(around(PGD(ball=Linf(0.3))))
    with pytest.raises(ValueError, match=r"with L2 has no eps; give --eps, or L2\(eps=…\)"):
        fit(around(PGD(ball=Linf(0.1))), norm="L2", default_eps=0.3)


def test_an_attack_without_a_ball_keeps_its_own_radius() -> None:
    for attack in (Wave(), EoT(attack=Wave())):
        assert fit(attack, default_eps=0.3) == attack
        assert fit(attack, default_eps=0.3, norm="L2") == attack
        assert fit(attack) == attack
        assert threat(attack) == ("Wave", 2.0)
        assert is_inside(attack, 0.9)
    assert fit(Wave(), default_eps=0.3, eps=1.5, steps=3) == Wave(eps=1.5, steps=3)
    assert fit(EoT(attack=Wave()), eps=1.5) == EoT(attack=Wave(eps=1.5))


@pytest.mark.parametrize("attack", [PGD(), EoT(attack=PGD()), PGD(ball=L2())], ids=repr)
def test_a_radius_may_stay_open_for_the_smallest_perturbation(attack: Attack) -> None:
    assert fit(attack, default_eps=0.3, unlimited=True) == attack
    assert fit(attack, unlimited=True, norm="L2") == fit(attack, unlimited=True, norm="l2")
    assert threat(fit(attack, unlimited=True, norm="L2")) == ("L2", None)
    assert threat(fit(attack, unlimited=True, norm="L2", eps=3)) == ("L2", 3.0)
    with pytest.raises(ValueError, match="has no eps"):
        fit(attack)


def test_sizes_are_measured_in_the_norm_of_the_attack_within() -> None:
    delta = torch.full((2, 1, 4, 4), 0.5)
    assert measure(EoT(attack=PGD(ball=L2(1))), delta).tolist() == [2.0, 2.0]
    assert measure(EoT(attack=Wave()), delta).tolist() == [0.5, 0.5]
    assert not is_inside(Transfer(attack=PGD(ball=L2(1))), 1.1)
