"""How reports put numbers and facts into words, the same in pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

from vizrobust.features.render import SATURATED_ABOVE
from vizrobust.report.collect import Panel, Subject

SATURATED = f"saturated: its share of black or white pixels is over {100 * SATURATED_ABOVE:.0f} points above that of the data"
ENDS = {1: "most", -1: "least"}
DEAD = "dead: the unit never had a gradient, so there is no picture"


def percent(share: float | None) -> str:
    """A share as ``96.8 %``, or ``-`` where it is unknown."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracies(subject: Subject) -> str:
    return f"clean {percent(subject.clean)}   robust {percent(subject.robust)}"


def meaning_of_robust(subjects: Sequence[Subject]) -> str:
    """One sentence that says which attack on how many images is behind "robust"; empty where nothing is known."""
    behind: dict[str, list[str]] = {}
    for subject in subjects:
        if subject.robust is not None:
            attack = subject.robust_attack or "an attack that its description does not name"
            images = f" on {subject.robust_n:,} images" if subject.robust_n else ""
            behind.setdefault(f"{attack}{images}", []).append(subject.name)
    if not behind:
        return ""
    parts = list(behind) if len(behind) == 1 else [f"{test} ({', '.join(names)})" for test, names in behind.items()]
    return f"robust: accuracy under {'; '.join(parts)}, as stored with each checkpoint"


def short_name(name: str, most: int = 46) -> str:
    """A long name by what tells it apart: the end of a path, both ends of another name."""
    if len(name) <= most:
        return name
    return f"…{name[-(most - 1) :]}" if "/" in name else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def recipes(panels: Sequence[Panel]) -> dict[str, str]:
    """Each recipe text of the panels with its name."""
    return {panel.recipe_text: panel.recipe for panel in panels}


def exemplars_shown(panel: Panel) -> str:
    """What the natural images beside a panel's pictures are; empty where there are none. Several sources are all named."""
    shown = list(panel.naturals.values())
    if not shown:
        return ""
    sources = " or ".join(dict.fromkeys(one.source for one in shown))
    count = max(one.count for one in shown)
    text = f"natural images: for each unit, the {count} most and the {count} least exciting of {sources}"
    images = [image for one in shown for end in one.ends.values() for image in end]
    how = [
        *(["outlined as what it sees"] if any(image.box for image in images) else []),
        *(["marked by a cross where that is the whole image"] if any(image.place and not image.box for image in images) else []),
    ]
    if how:
        neuron = any(column.position for column in panel.columns)
        place = (
            "the neuron's place" if neuron else "the place of the largest activation (of the smallest, among the least exciting)"
        )
        text += f"; {place} is {' or '.join(how)}"
    if any(image.map and not image.place for image in images):
        text += "; nothing is marked where several places share that value, such as the zeros of a ReLU"
    return text


def ends(panel: Panel) -> tuple[int, int]:
    """The end of a unit's images that belongs to the panel's pictures, and the other one."""
    return panel.sign, -panel.sign


def seeds_shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
