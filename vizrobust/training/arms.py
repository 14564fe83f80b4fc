"""Ways to train with an attack of one step or none, by the names that the field has for them."""

from __future__ import annotations

from collections.abc import Callable

from vizrobust.attacks import FGSM, PGD, Attack, Linf, Noise

# Fast FGSM steps a little farther than the radius (Wong et al. 2020).
FAST_STEP = 1.25


def fgsm(eps: float) -> Attack:
    """One step from the image itself (Goodfellow et al. 2015)."""
    return FGSM(ball=Linf(eps=eps))


def fast(eps: float) -> Attack:
    """One long step from a random point of the ball, which may lie outside [0, 1] (Wong et al. 2020)."""
    return PGD(steps=1, ball=Linf(eps=eps), alpha=FAST_STEP * eps, clip_start=False)


def noise(eps: float) -> Attack:
    """A random point of the ball, without a gradient: the control."""
    return Noise(draws=1, ball=Linf(eps=eps))


ARMS: dict[str, Callable[[float], Attack]] = {"fgsm": fgsm, "fast": fast, "noise": noise}
