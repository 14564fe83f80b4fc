"""The tables of `vizrobust attack`: accuracies, who broke what, classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vizrobust.cli.output import percent, table

if TYPE_CHECKING:
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint
    from vizrobust.robustness import RobustAccuracy

    Result = tuple[Checkpoint, DataSet, RobustAccuracy]


def interval(row: dict[str, Any]) -> str:
    """A row's 95 % interval as text; - where there is none."""
    return "-" if row["ci_low"] is None else f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}"


def accuracies(results: Sequence[Result], split: str) -> None:
    """Accuracy under each attack with its interval and what it cost."""
    rows = []
    for checkpoint, _, result in results:
        row = result.row()
        rows.append([
            checkpoint.name, row["attack"] + (f"  ({row['note']}: {row['max_norm']:.3g})" if row["note"] else ""),
            percent(row["clean"]), percent(row["accuracy"]), interval(row),
            str(row["n"]), f"{row['forward_passes']:g}", f"{row['gradient_passes']:g}", f"{row['seconds']:.1f}",
        ])  # fmt: skip
    header = ["checkpoint", "attack", "clean", "accuracy", "95 % interval", "images", "forward", "gradient", "seconds"]
    names = ", ".join(dict.fromkeys(f"{loaded.name} {split}" for _, loaded, _ in results))
    note = "forward, gradient: passes per image; a broken image needs no more"
    table(f"accuracy under attack, first images of {names}", header, rows, note)


def successes_by_component(results: Sequence[Result]) -> None:
    """For attacks of several members: how many images each of them broke that no earlier one had."""
    for attack in dict.fromkeys(repr(result.attack) for _, _, result in results):
        mine = [(checkpoint, result) for checkpoint, _, result in results if repr(result.attack) == attack]
        members = list(mine[0][1].successes_by_component())
        if len(members) < 2:
            continue
        rows = []
        for checkpoint, result in mine:
            wrong = int((~result.clean).sum())
            counts = [str(count) for count in result.successes_by_component().values()]
            rows.append([checkpoint.name, str(wrong), *counts, str(int(result.robust.sum()))])
        header = ["checkpoint", "wrong clean", *members, "left"]
        table(f"who broke each image first: {attack}", header, rows)


def classes(results: Sequence[Result], images: Sequence[Split]) -> None:
    """Accuracy under attack for each class, the worst class first."""
    from vizrobust.intervals import per_class, worst_class

    for (checkpoint, loaded, result), split in zip(results, images, strict=True):
        labels = split.labels[result.indices]
        found = [one.row() for one in per_class(result.robust, labels, loaded.classes)]
        order = sorted(found, key=lambda row: 2 if row["accuracy"] is None else row["accuracy"])
        rows = [[str(row["class"]), str(row["n"]), percent(row["accuracy"]), interval(row)] for row in order]
        worst = worst_class(result.robust, labels, loaded.classes).row()
        note = f"worst class: {worst['class']}, {percent(worst['accuracy'])}; the lowest true accuracy is in {interval(worst)}"
        table(f"{checkpoint.name} by class: {result.attack}", ["class", "images", "accuracy", "95 % interval"], rows, note)
