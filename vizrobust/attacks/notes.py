"""What a person must be told about an attack on a network: where it does something else than its name says."""

from __future__ import annotations

from collections.abc import Iterator

from vizrobust.attacks.ensemble import AutoAttack
from vizrobust.attacks.losses import fallback
from vizrobust.attacks.walk import Attack


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
        for member in attack.members:
            yield from _notes(member, classes)
    within = getattr(attack, "attack", None)
    if isinstance(within, Attack):
        yield from _notes(within, classes)
    loss = getattr(attack, "loss", None)
    if isinstance(loss, str):
        # Only APGD has losses of their own for targets; elsewhere a target is a label to come nearer to.
        towards = hasattr(attack, "targets") and bool(getattr(attack, "targeted", False))
        if said := fallback(loss, classes, towards):
            yield said
