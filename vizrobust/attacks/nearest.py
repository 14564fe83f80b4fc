"""Verdicts for minimal-norm attacks: of the wrong points met, the nearest to the image counts."""

from __future__ import annotations

from torch import Tensor

from vizrobust.attacks.balls import Ball, radius
from vizrobust.attacks.walk import Attack, State, mark


def weigh(state: State, ball: Ball, logits: Tensor, point: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mark a point (N, C, H, W) with minus its distance as its loss; (N,) bool: whether the network is wrong there.

    The image is broken only by a wrong point within `ball` (anywhere where it has no eps) that `counts`.
    """
    norm = ball.norm(point - state["x"])
    if ball.eps is not None:
        inside = norm <= radius(ball)
        counts = inside if counts is None else inside & counts
    mark(state, logits, -norm, counts, point)
    return logits.argmax(1) != state["y"]


def leashed(ball: Ball, x: Tensor, point: Tensor) -> Tensor:
    """The point that a walk hands out: where it went, brought into the ball."""
    return point if ball.eps is None else ball.project_image(x, point)


def is_minimal(attack: Attack) -> bool:
    """Whether an attack, or the one that it is made around, looks for the smallest perturbation: it needs no eps.

    >>> from vizrobust.attacks import CW, EoT, PGD
    >>> is_minimal(PGD()), is_minimal(CW()), is_minimal(EoT(attack=CW()))
    (False, True, True)
    """
    within = getattr(attack, "attack", None)
    return is_minimal(within) if isinstance(within, Attack) else getattr(attack, "minimal", False)
