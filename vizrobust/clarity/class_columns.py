"""Which logits of a judge speak of the compared checkpoints' classes."""

from __future__ import annotations

from collections.abc import Sequence


def class_columns(judge: str, own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """The position in `own` of each class in `wanted`, by name in any case; None where they are the same in order.

    Where one side has as many classes as the other and only numbers them (0, 1, 2 …), they are taken in order.
    Raises ``ValueError`` that names the judge where it lacks a class or has two of that name.

    >>> class_columns("j", ["Tench", "crane", "Gas pump", "crane"], ["gas pump", "tench"])
    (2, 0)
    >>> class_columns("j", ["0", "1"], ["cat", "dog"]) is None
    True
    """
    theirs, names = ([name.strip().casefold() for name in side] for side in (own, wanted))
    if theirs == names:
        return None
    if len(theirs) == len(names) and (_numbered(theirs) or _numbered(names)):
        return None
    lacking = [name for name, folded in zip(wanted, names, strict=True) if folded not in theirs]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        has = f"its {len(own)} classes are {', '.join(own[:3])}{' …' if len(own) > 3 else ''}"
        raise ValueError(f"the judge {judge!r} has no class {lacking[0]!r}{more} ({has}); name another --judge")
    twice = [name for name, folded in zip(wanted, names, strict=True) if theirs.count(folded) > 1]
    if twice:
        raise ValueError(
            f"the judge {judge!r} has several classes {twice[0]!r}, so it is not known which is meant; name another --judge"
        )
    return tuple(theirs.index(name) for name in names)


def _numbered(names: Sequence[str]) -> bool:
    return list(names) == [str(k) for k in range(len(names))]
