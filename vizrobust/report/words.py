"""The words for numbers, facts and keys of files, the same in pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

from vizrobust.features.render import SATURATED_ABOVE
from vizrobust.report.collect import CheckpointFacts, Panel
from vizrobust.results import percent


def judge_name(reference: str) -> str:
    """A judge as figures name it: without the folder, the ending and the code of its reference.

    >>> judge_name("runs/judges/squeezenet1_1.safetensors::arch=judges.py:squeezenet1_1"), judge_name("mnist-judge-robust")
    ('squeezenet1_1', 'mnist-judge-robust')
    """
    return reference.partition("::")[0].rpartition("/")[2].removesuffix(".safetensors")


# Keys and values of rows, reports and run files that people know under another word. The files keep their keys.
KEYS = {
    "arm": "baseline",
    "broken_at": "first success step",
    "broken_by": "successes by component",
    "disqualified": "excluded",
    "dose": "sweep over K",
    "eps_rule": "choice of eps",
    "film": "frames",
    "forced_choice": "2AFC AUC",
    "foreseen": "seen in training",
    "given": "provided",
    "kernel_distance": "KID",
    "multiple": "relative projection",
    "nearest_natural": "nearest-neighbour distance",
    "partners": "matches",
    "place": "position",
    "recognised": "judge top-1",
    "seed_agreement": "cross-seed similarity",
    "transfer": "judge log-odds",
    "trends": "contrasts",
    "tripped": "flagged",
}
SATURATED = f"saturated: its share of black or white pixels is over {100 * SATURATED_ABOVE:.0f} points above that of the data"
EXCITING = {1: "most exciting", -1: "least exciting"}  # by the sign of exemplars
DEAD = "dead: the unit never had a gradient, so there is no picture"


def unbroken(share: float | None) -> str:
    """A share in percent whose sign stays beside its number at the end of a line.

    >>> unbroken(0.783).split(" ") == ["78.3\\N{NO-BREAK SPACE}%"]
    True
    """
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def key_word(key: str) -> str:
    """A key of a file as a person reads it.

    >>> key_word("forced_choice"), key_word("test_images")
    ('2AFC AUC', 'test images')
    """
    return KEYS.get(key, key.replace("_", " "))


def accuracies(checkpoint: CheckpointFacts) -> str:
    return f"clean {percent(checkpoint.clean)}   robust {percent(checkpoint.robust)}"


def meaning_of_robust(checkpoints: Sequence[CheckpointFacts]) -> str:
    """Which attack, on how many images, gave the robust accuracies; empty where none is known."""
    behind: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        if checkpoint.robust is not None:
            attack = checkpoint.robust_attack or "an attack that the checkpoint does not name"
            images = f" on {checkpoint.robust_n:,} images" if checkpoint.robust_n else ""
            behind.setdefault(f"{attack}{images}", []).append(checkpoint.name)
    if not behind:
        return ""
    parts = list(behind) if len(behind) == 1 else [f"{test} ({', '.join(names)})" for test, names in behind.items()]
    return f"robust: accuracy under {'; '.join(parts)}, as stored with each checkpoint"


def short_name(name: str, most: int = 46) -> str:
    """A long name shortened to `most` characters: to the end of a path, or to both ends of another name.

    >>> short_name("runs/a/long/folder/k8.safetensors", most=16)
    '…/k8.safetensors'
    """
    if len(name) <= most:
        return name
    return f"…{name[-(most - 1) :]}" if "/" in name else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def recipes(panels: Sequence[Panel]) -> dict[str, str]:
    """Recipe text -> recipe name, for all panels."""
    return {panel.recipe_text: panel.recipe for panel in panels}


def exemplars_shown(panel: Panel) -> str:
    """Where the natural images of a panel come from and how they are marked; empty where there are none."""
    shown = list(panel.exemplars.values())
    if not shown:
        return ""
    sources = " or ".join(dict.fromkeys(one.source for one in shown))
    count = max(one.count for one in shown)
    text = f"natural images: for each unit, the {count} most and the {count} least exciting of {sources}"
    images = [image for one in shown for image in one.images]
    how = [
        *(["outlined with its receptive field"] if any(image.box for image in images) else []),
        *(
            ["marked by a cross where the receptive field is the whole image"]
            if any(image.position and not image.box for image in images)
            else []
        ),
    ]
    if how:
        neuron = any(column.position for column in panel.columns)
        largest = "the largest activation (in the least exciting images the smallest)"
        position = "the neuron's position" if neuron else f"the position of {largest}"
        text += f"; {position} is {' or '.join(how)}"
    if any(image.map and not image.position for image in images):
        text += "; nothing is marked where several positions share that value, such as the zeros of a ReLU"
    return text


def seeds_shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
