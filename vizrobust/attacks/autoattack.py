"""AutoAttack (Croce & Hein 2020): several attacks one after the other, the worst case per image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.attack import Attack, AttackRun
from vizrobust.attacks.boundary_attacks import FAB
from vizrobust.attacks.square import Square
from vizrobust.attacks.threat_models import L1, Ball, Linf, ball_from
from vizrobust.attacks.wrappers import EOT
from vizrobust.spec import lookup, named, spec


@spec
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (Croce & Hein 2020): APGD-CE, APGD-T, FAB-T and Square (``standard``), more of them (``plus``), or EoT.

    ``plus`` is APGD-CE, APGD-DLR and FAB with five restarts each, Square, APGD-T and FAB-T. ``rand``, for networks that
    are random in evaluation mode, is APGD-CE and APGD-DLR on the mean of `samples` passes. In the L1 ball (Croce & Hein
    2021) APGD-CE has five restarts and APGD-T at most five targets; FAB and Square have no L1 ball and are left out.
    With other `steps`, `queries` or `targets` it is not the published ensemble and cannot be compared with it.

    >>> [repr(component) for component in AutoAttack(ball=Linf(eps=0.3)).components[:2]]
    ['APGD(ball=Linf(eps=0.3))', 'APGD(ball=Linf(eps=0.3), loss="dlr", targeted=True)']
    """

    version: str = "standard"
    ball: Ball = Linf()
    steps: int = 100
    queries: int = 5000
    targets: int = 9
    samples: int = 20

    def __post_init__(self) -> None:
        lookup(ENSEMBLES, self.version, "version of AutoAttack")
        _ = self.components  # they check what they are given

    @property
    def components(self) -> tuple[Attack, ...]:
        """The attacks it is made of, in their order."""
        version, steps, ball = self.version.lower(), self.steps, self.ball
        if version == "rand":
            return tuple(EOT(APGD(steps=steps, ball=ball, loss=loss), self.samples) for loss in ("ce", "dlr"))
        sparse = isinstance(ball, L1)
        restarts = 5 if sparse or version == "plus" else 1
        targets = min(self.targets, 5) if sparse else self.targets
        ce = APGD(steps=steps, ball=ball, restarts=restarts)
        dlr = APGD(steps=steps, ball=ball, loss="dlr", restarts=restarts)
        towards = APGD(steps=steps, ball=ball, loss="dlr", targeted=True, targets=targets)
        if sparse:
            return (ce, dlr, towards) if version == "plus" else (ce, towards)
        fab = FAB(steps=steps, ball=ball, targets=self.targets)
        square = Square(queries=self.queries, ball=ball)
        if version == "plus":
            return (ce, dlr, FAB(steps=steps, ball=ball, targeted=False, restarts=restarts), square, towards, fab)
        return (ce, towards, fab, square)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The components of the published ensemble that are missing in this ball."""
        if not isinstance(self.ball, L1) or self.version.lower() == "rand":
            return ()
        return ("FAB", "Square", "FAB-T") if self.version.lower() == "plus" else ("FAB-T", "Square")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return tuple(run for component in self.components for run in component.runs(net, x))

    def notes(self, classes: int) -> tuple[str, ...]:
        missing = " and ".join(self.left_out)
        own = (f"AutoAttack in the L1 ball is without {missing}, which have no L1 ball here",) if missing else ()
        return tuple(dict.fromkeys((*own, *(note for component in self.components for note in component.notes(classes)))))


def standard(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """The standard AutoAttack ensemble: APGD-CE, APGD-T, FAB-T, Square.

    >>> standard(eps=8 / 255)
    AutoAttack(ball=Linf(eps=8/255))
    """
    return AutoAttack("standard", ball_from("standard", ball, eps, norm, Linf()))


def plus(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """The standard ensemble with APGD-DLR, untargeted FAB and restarts.

    >>> len(plus(eps=8 / 255).components)
    6
    """
    return AutoAttack("plus", ball_from("plus", ball, eps, norm, Linf()))


def rand(ball: Ball | None = None, eps: float | None = None, norm: str | None = None) -> AutoAttack:
    """AutoAttack for networks that are random in evaluation mode.

    >>> len(rand(eps=8 / 255).components)
    2
    """
    return AutoAttack("rand", ball_from("rand", ball, eps, norm, Linf()))


# Bare names for the command line: --attack standard.
ENSEMBLES = named(standard, plus, rand)
