"""`intervene`: what becomes of every class when a unit is removed or scaled, beside units that are as active."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from vizrobust.commands.checkpoints import layers_command
from vizrobust.commands.targets import Target, drawn, open_targets
from vizrobust.commands.unit_tables import WordLabels, label_table
from vizrobust.features.picture_runs import units_from
from vizrobust.features.unit_facts import class_aucs, defined, effects, logits_with, nearest_in_activity, unit_activations
from vizrobust.intervals import auc_text, class_row, mcnemar
from vizrobust.models import layer as layer_of
from vizrobust.models.forward import predicted_classes
from vizrobust.requests.understanding import InterveneRequest
from vizrobust.results import Event, Result, Row, Table, percent
from vizrobust.session import Session

SHOWN = 20  # units of the table
TOLD = "tells best, AUC"
TOLD_NOTE = "tells best: the class whose images its mean activation tells best from all others (.5 is chance)"


@dataclass(frozen=True, repr=False)
class Interventions(Result):
    """The answer to an `InterveneRequest`: a row for each checkpoint and unit, with every class in it."""

    request: InterveneRequest
    found: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        return list(self.found)

    def tables(self) -> list[Table]:
        names = list(dict.fromkeys(row["name"] for row in self.found))
        of = {name: [row for row in self.found if row["name"] == name] for name in names}
        table = self._profile if self.request.change == "none" else self._table
        tables = [table(name, mine) for name, mine in of.items()]
        words = [] if self.request.clip is None else [label_table(name, self.request.layer, mine) for name, mine in of.items()]
        return [*(replace(one, note="\n".join((one.note, *self.remarks))) for one in tables), *words]

    def figure(self) -> Any:
        """Every class's change of accuracy by unit, a panel for each checkpoint; None where nothing was changed."""
        from vizrobust.report.measurement_figures import class_changes

        if self.request.change == "none":
            return None
        panels = []
        for name in dict.fromkeys(row["name"] for row in self.found):
            mine = _ordered([row for row in self.found if row["name"] == name])
            values = np.array([[one["accuracy"] for one in row["classes"]] for row in mine])
            panels.append((name, [str(row["unit"]) for row in mine], [one["class"] for one in mine[0]["classes"]], values))
        return class_changes(panels, f"{self.request.layer}, unit {self.request.done}")

    def _table(self, name: str, mine: Sequence[Row]) -> Table:
        shown = []
        for row in _ordered(mine)[:SHOWN]:
            worst = _most_hurt(row)
            logit = "-" if worst["logit"] is None else f"{worst['logit']:+.2f}"
            if worst["logit_low"] is not None:
                logit += f" ({worst['logit_low']:+.2f} to {worst['logit_high']:+.2f})"
            own = _points(worst["accuracy"], worst["accuracy_low"], worst["accuracy_high"])
            whole = _points(row["accuracy"], row["ci_low"], row["ci_high"])
            about = [str(row["unit"]), f"{row['activity']:.3g}", _told(row)]
            shown.append([*about, whole, worst["class"], own, logit, _control(row)])
        classes = mine[0]["classes"]
        base = percent(sum(one["before"] * one["n"] for one in classes) / sum(one["n"] for one in classes))
        header = [
            "unit", "activity", TOLD, "accuracy, points", "hurts most", "its accuracy, points", "its logit",
            "units as active",
        ]  # fmt: skip
        left = f", the {SHOWN} largest of {len(mine)}" if len(mine) > SHOWN else ""
        note = (
            f"accuracy without a change: {base}; 95 % intervals, of one unit and class; {TOLD_NOTE}; hurts most: the class that "
            "loses most; "
            f"units as active: the same change of accuracy by the {self.request.controls} units nearest in mean activity"
        )
        if undefined := max(row.get("undefined", 0) for row in mine):
            images = sum(one["n"] for one in classes)
            note += f"; outputs are not finite on up to {undefined} of {images} images, which are not right and in no logit"
        return Table(f"{name}, {self.request.layer}: unit {self.request.done}{left}", header, shown, note)

    def _profile(self, name: str, mine: Sequence[Row]) -> Table:
        shown = [[str(row["unit"]), f"{row['activity']:.3g}", _told(row)] for row in sorted(mine, key=_least_told)[:SHOWN]]
        left = f", the {SHOWN} best of {len(mine)}" if len(mine) > SHOWN else ""
        return Table(f"{name}, {self.request.layer}: what excites a unit{left}", ["unit", "activity", TOLD], shown, TOLD_NOTE)

    def __repr__(self) -> str:
        return f"Interventions({len(self.found)} rows of {self.request!r})"


def intervene(request: InterveneRequest, session: Session) -> Generator[Event, None, Interventions]:
    """Change each unit of the request in every checkpoint, and as many others that are as active; rows are kept."""
    rows: list[Row] = []
    words = None if request.clip is None else WordLabels(request.words, request.clip, request.seed, session)
    targets = open_targets(request, session, "intervene")
    for target in targets:
        session.remember(target.folder, target.checkpoint)
        session.note_dictionary(target.checkpoint, request.layer)
        for row in (yield from _of_target(request, session, target, words)):
            rows.append(row)
            yield row
    report = Interventions(request, tuple(rows), tuple(remark for target in targets for remark in target.remarks))
    yield from drawn(report, request, session)
    return report


def _of_target(
    request: InterveneRequest, session: Session, target: Target, words: WordLabels | None
) -> Generator[Event, None, list[Row]]:
    compute, shape = session.compute(request.precision), target.checkpoint.info.input_shape
    net, before = target.checkpoint.net(), None
    try:
        count = layer_of(net, shape, request.layer).units
        units = units_from(request.units, count, f"layer {request.layer} of {target.name}")
        active = unit_activations(net, request.layer, target.images, shape=shape, compute=compute)
        if request.change != "none":
            before = logits_with(net, request.layer, None, target.images, shape=shape, compute=compute)
    except ValueError as error:
        raise ValueError(f"{target.name}: {error} ({layers_command(target.checkpoint)} lists the layers)") from error
    about = {
        "checkpoint": target.checkpoint.id, "layer": request.layer, "change": request.change, "images": len(target.images),
        "factor": request.factor if request.change == "scale" else None,
    }  # fmt: skip
    labels = {} if words is None else words.rows(target, request.layer, units, active)
    yield from ()
    profiles = _profiles(target, units, active)
    if before is None:
        rows = [{**about, "name": target.name, **profiles[unit]} for unit in units]
    else:
        rows = _changed(request, session, target, about, units, active, before)
        rows = [{**row, "aucs": profiles[row["unit"]]["aucs"]} for row in rows]
    return [{**row, "label": labels[row["unit"]]} for row in rows] if labels else rows


def _profiles(target: Target, units: Sequence[int], active: Tensor) -> dict[int, Row]:
    """What excites each unit: its mean activity, and how well it tells each class; `classes` have their images."""
    names, labels = target.data.classes, target.images.labels
    aucs, activity = class_aucs(active, labels, len(names)), active.abs().mean(0)
    images = labels.bincount(minlength=len(names)).tolist()
    classes = [{"class": name, "n": n} for name, n in zip(names, images, strict=True) if n]
    return {
        unit: {"unit": unit, "activity": float(activity[unit]), "aucs": _by_class(names, aucs[unit]), "classes": classes}
        for unit in units
    }


def _changed(
    request: InterveneRequest, session: Session, target: Target, about: Row, units: Sequence[int], active: Tensor, before: Tensor
) -> list[Row]:
    """A row for each unit, with every class's change and the changes by the units that are as active; rows are kept."""
    compute, shape = session.compute(request.precision), target.checkpoint.info.input_shape
    net, labels = target.checkpoint.net(), target.images.labels
    target.saw(predicted_classes(before))
    activity, mean = active.abs().mean(0), active.mean(0)
    near = {unit: nearest_in_activity(activity, unit, request.controls) for unit in units}
    todo = list(dict.fromkeys([*units, *(other for others in near.values() for other in others)]))
    known = {row["unit"]: row for row in target.folder.rows() if about.items() <= row.items()}
    for done, unit in enumerate(todo, 1):
        if unit not in known:
            value = request.factor if request.change == "scale" else float(mean[unit])
            after = logits_with(
                net, request.layer, unit, target.images, change=request.change, value=value, shape=shape, compute=compute
            )
            row = {"unit": unit, "activity": float(activity[unit]), **_overall(before, after, labels)}
            row["classes"] = [class_row(one) for one in effects(before, after, labels, target.data.classes)]
            known[unit] = target.folder.add({**about, **row})
        session.progress(f"{target.name}  {request.layer}", done, len(todo))
    return [
        {**known[unit], "name": target.name, "controls": {str(other): known[other]["accuracy"] for other in near[unit]}}
        for unit in units
    ]


def _overall(before: Tensor, after: Tensor, labels: Tensor) -> Row:
    test = mcnemar(predicted_classes(after) == labels, predicted_classes(before) == labels)
    found = {"accuracy": test.difference, "ci_low": test.ci_low, "ci_high": test.ci_high, "p": test.p}
    undefined = int((~defined(before, after)).sum())
    return {**found, **({"undefined": undefined} if undefined else {})}


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """The units that hurt most first; those that change no answer by what they do to a class's logit."""
    return sorted(rows, key=lambda row: (row["accuracy"], -max(abs(one["logit"] or 0) for one in row["classes"])))


def _most_hurt(row: Row) -> Row:
    found: Row = min(row["classes"], key=lambda one: (one["accuracy"], one["logit"] or 0))
    return found


def _by_class(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in zip(names, values.tolist(), strict=True)}


def _told_best(row: Row) -> tuple[str, float] | None:
    """The class that a unit tells best, and the area; None without a class to tell."""
    known = [(name, value) for name, value in row["aucs"].items() if value is not None]
    return max(known, key=lambda one: one[1]) if known else None


def _least_told(row: Row) -> float:
    found = _told_best(row)
    return 0.0 if found is None else -found[1]


def _told(row: Row) -> str:
    found = _told_best(row)
    if found is None:
        return "-"
    best, auc = found
    images = {one["class"]: one["n"] for one in row["classes"]}
    return f"{best} {auc_text(auc, images[best], sum(images.values()) - images[best])}"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _control(row: Row) -> str:
    others = sorted(row["controls"].values())
    return f"{100 * others[0]:+.1f} to {100 * others[-1]:+.1f}" if others else "-"
