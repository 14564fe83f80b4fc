"""Fit an attack to what the command line and the data set say: norm, eps, steps."""

from __future__ import annotations

from typing import Any

from vizrobust.attacks.balls import BALLS
from vizrobust.attacks.threat import ball_of
from vizrobust.attacks.walk import Attack
from vizrobust.spec import lookup, vary


def fit(
    attack: Attack, default_eps: float | None = None, norm: str | None = None, *, unlimited: bool = False, **changes: Any
) -> Attack:
    """`attack` with another norm and other common fields, and the data set's eps where it names none.

    `default_eps` is an L-inf radius, so it fills only L-inf balls; any other ball without eps is a ``ValueError``,
    unless it may stay `unlimited`, for attacks that look for the smallest perturbation. An attack around another one
    hands everything on; one without a ball keeps its own radius unless `changes` name another.

    >>> from vizrobust.attacks import EoT, PGD
    >>> fit(PGD(), default_eps=0.3, steps=7)
    PGD(steps=7, ball=Linf(eps=0.3))
    >>> fit(EoT(attack=PGD()), norm="L2", eps=2)
    EoT(attack=PGD(ball=L2(eps=2.0)))
    """
    ball = ball_of(attack)
    if norm is not None:
        other = lookup(BALLS, norm, "norm")()
        # Another norm's radius means something else: it is kept only where the norm stays.
        if ball is not None and not isinstance(ball, type(other)):
            attack = vary(attack, ball=other)
    attack = vary(attack, **{name: value for name, value in changes.items() if value is not None})
    ball = ball_of(attack)
    if ball is None or ball.eps is not None or unlimited:
        return attack
    name = type(ball).__name__
    if name != "Linf" or default_eps is None:
        raise ValueError(f"{type(attack).__name__} with {name} has no eps; give --eps, or {name}(eps=…)")
    return vary(attack, eps=default_eps)
