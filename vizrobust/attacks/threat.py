"""What an attack may do to an image: its ball if it has one, its name and radius otherwise."""

from __future__ import annotations

from torch import Tensor

from vizrobust.attacks.balls import Ball, Linf, radius
from vizrobust.attacks.walk import Attack


def ball_of(attack: Attack) -> Ball | None:
    """The attack's ball; None where its radius is not a norm of the perturbation (elastic, fog, ...)."""
    ball = getattr(attack, "ball", None)
    return ball if isinstance(ball, Ball) else None


def threat(attack: Attack) -> tuple[str, float | None]:
    """The threat model's name and radius, such as ``("Linf", 0.3)``, or the attack's own: ``("Elastic", 2.0)``."""
    if ball := ball_of(attack):
        return type(ball).__name__, ball.eps
    # A wrapper (transfer, expectation over transformation) may do what the attack within may do.
    inner = getattr(attack, "attack", None)
    return threat(inner) if isinstance(inner, Attack) else (type(attack).__name__, getattr(attack, "eps", None))


def measure(attack: Attack, delta: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,): a perturbation measured in the attack's norm, in L-inf where it has none."""
    return (ball_of(attack) or Linf()).norm(delta)


def is_inside(attack: Attack, largest: float) -> bool:
    """Whether a perturbation of that size is one the attack may use; where there is no ball every one is."""
    ball = ball_of(attack)
    return ball is None or ball.eps is None or largest <= radius(ball) + 1e-6
