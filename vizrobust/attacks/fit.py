"""Fit an attack to what the command line and the data set say: norm, eps, steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vizrobust.attacks.balls import BALLS
from vizrobust.attacks.walk import Attack
from vizrobust.spec import lookup, vary


def fit(attack: Attack, default_eps: float | None = None, norm: str | None = None, **changes: Any) -> Attack:
    """`attack` with another norm and other common fields, and the data set's eps where it names none.

    `default_eps` is an L-inf radius, so it fills only L-inf balls; any other ball without eps is a ``ValueError``.

    >>> from vizrobust.attacks import PGD
    >>> fit(PGD(), default_eps=0.3, steps=7)
    PGD(steps=7, ball=Linf(eps=0.3))
    """
    if norm is not None:
        ball = lookup(BALLS, norm, "norm")
        # Another norm's radius means something else: it is kept only where the norm stays.
        same = isinstance(attack.ball, type(ball()))
        attack = replace(attack, ball=attack.ball if same else ball())  # type: ignore[type-var]
    attack = vary(attack, **{name: value for name, value in changes.items() if value is not None})
    if attack.ball.eps is None:
        name = type(attack.ball).__name__
        if name != "Linf" or default_eps is None:
            raise ValueError(f"{type(attack).__name__} with {name} has no eps; give --eps, or {name}(eps=…)")
        attack = vary(attack, eps=default_eps)
    return attack
