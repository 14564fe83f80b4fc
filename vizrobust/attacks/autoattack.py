"""AutoAttack (Croce & Hein 2020): several attacks in turn, the worst case per image; and notes about an attack on a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.attacks.apgd import APGD
from vizrobust.attacks.attack import Attack, AttackResult, AttackRun, run
from vizrobust.attacks.boundary_attacks import FAB
from vizrobust.attacks.losses import fallback
from vizrobust.attacks.square import Square
from vizrobust.attacks.threat_models import L1, Ball, Linf
from vizrobust.attacks.wrappers import EOT
from vizrobust.rng import Streams
from vizrobust.spec import lookup, named, spec


@spec
@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack (Croce & Hein 2020): APGD-CE, APGD-T, FAB-T and Square (``standard``), more of them (``plus``), or EoT.

    ``plus`` is APGD-CE, APGD-DLR and FAB with five restarts each, Square, APGD-T and FAB-T. ``rand``, for networks that
    are random in evaluation mode, is APGD-CE and APGD-DLR on the mean of `samples` passes. In the L1 ball (Croce & Hein
    2021) APGD-CE has five restarts and APGD-T at most five targets; FAB and Square know no L1 ball and are left out.
    With other `steps`, `queries` or `targets` it is not the published ensemble, and cannot be compared with it.

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
        _ = self.components  # they know what they can take

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
        """The members that the published ensemble has in this ball, and this one has not."""
        if not isinstance(self.ball, L1) or self.version.lower() == "rand":
            return ()
        return ("FAB", "Square", "FAB-T") if self.version.lower() == "plus" else ("FAB-T", "Square")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return tuple(walk for component in self.components for walk in component.runs(net, x))

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, evaluate: bool = True) -> AttackResult:
        return run(self.runs(net, x), net, x, y, streams, evaluate)


def standard(ball: Ball = Linf()) -> AutoAttack:
    """The standard AutoAttack ensemble: APGD-CE, APGD-T, FAB-T, Square.

    >>> standard(Linf(eps=8 / 255))
    AutoAttack(ball=Linf(eps=8/255))
    """
    return AutoAttack("standard", ball)


def plus(ball: Ball = Linf()) -> AutoAttack:
    """AutoAttack with APGD-DLR and untargeted FAB besides, and with restarts."""
    return AutoAttack("plus", ball)


def rand(ball: Ball = Linf()) -> AutoAttack:
    """AutoAttack for networks that are random in evaluation mode."""
    return AutoAttack("rand", ball)


# Bare names for the command line: --attack standard.
ENSEMBLES = named(standard, plus, rand)


def notes(attack: Attack, classes: int) -> tuple[str, ...]:
    """One sentence for each thing that the attack, or an attack within it, does differently on so many classes.

    >>> from vizrobust.attacks import APGD
    >>> notes(APGD(loss="dlr"), 2)
    ('dlr needs 3 classes and the network has 2, so the margin is used',)
    """
    return tuple(dict.fromkeys(_notes(attack, classes)))


def _notes(attack: Attack, classes: int) -> Iterator[str]:
    if isinstance(attack, AutoAttack):
        if attack.left_out:
            yield f"AutoAttack in the L1 ball is without {' and '.join(attack.left_out)}, which know no L1 ball here"
        for component in attack.components:
            yield from _notes(component, classes)
    within = getattr(attack, "attack", None)
    if isinstance(within, Attack):
        yield from _notes(within, classes)
    loss = getattr(attack, "loss", None)
    if isinstance(loss, str):
        # Only APGD has losses of their own for targets; elsewhere a target is a label to come nearer to.
        towards = hasattr(attack, "targets") and bool(getattr(attack, "targeted", False))
        if said := fallback(loss, classes, towards):
            yield said
