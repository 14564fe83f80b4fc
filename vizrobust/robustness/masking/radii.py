"""The evaluation's ball made smaller or larger, and attacks taken to it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vizrobust.attacks import L2, Attack, Ball, Linf, ball_of, radius
from vizrobust.data import Split


def in_ball(attack: Attack, ball: Ball) -> Attack:
    """The attack in another ball; a step size of its own is scaled with the radius."""
    own = ball_of(attack)
    if own is None or own == ball:
        return attack
    changes: dict[str, object] = {"ball": ball}
    alpha = getattr(attack, "alpha", None)
    if alpha is not None and own.eps:
        # Where the norm changes too, the radius is all that the two have in common.
        changes["alpha"] = alpha * radius(ball) / own.eps
    return replace(attack, **changes)  # type: ignore[type-var]


def scaled(ball: Ball, by: float) -> Ball:
    """The ball with its radius times `by`; pixels have no more than [0, 1] to move in."""
    eps = radius(ball) * by
    return replace(ball, eps=min(eps, 1.0) if isinstance(ball, Linf) else eps)  # type: ignore[type-var]


def whole_range(ball: Ball, images: Split) -> Ball:
    """The ball that holds every image there is: eps = 1 in L-inf."""
    d = math.prod(images.take(torch.arange(1)).shape[1:])
    eps = {Linf: 1.0, L2: math.sqrt(d)}.get(type(ball), float(d))
    return replace(ball, eps=eps)  # type: ignore[type-var]
