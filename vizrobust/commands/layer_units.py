"""`dictionary` and `intervene`: the features of a layer fitted and measured, and what its units do to the classes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vizrobust.commands.checkpoints import layers_command, typed
from vizrobust.commands.targets import Target, drawn, open_targets
from vizrobust.commands.unit_tables import WordLabels, label_table
from vizrobust.compute import versions
from vizrobust.data import DataSet
from vizrobust.features.dictionary_fits import STEPS, DictionaryQuality, Interval, fit_dictionary, layer_vectors, quality
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.features.picture_runs import units_from
from vizrobust.features.unit_facts import class_aucs, defined, effects, logits_with, nearest_in_activity, unit_activations
from vizrobust.intervals import auc_text, class_row, mcnemar
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.models.dictionaries import Dictionary, read_dictionary
from vizrobust.models.forward import predicted_classes
from vizrobust.requests import ParameterError
from vizrobust.requests.understanding import DictionaryRequest, InterveneRequest
from vizrobust.results import Event, Note, Result, Row, Table, interval_text, percent
from vizrobust.session import Session


@dataclass(frozen=True, repr=False)
class FittedDictionary(Result):
    """A dictionary in its file, and what it is worth on images that it was not fitted to."""

    request: DictionaryRequest
    name: str
    dictionary: Dictionary
    quality: DictionaryQuality

    @property
    def layer(self) -> str:
        """The name of the layer whose units are the dictionary's."""
        return f"{self.request.layer}:sae={self.request.out}"

    def rows(self) -> list[Row]:
        found = self.quality
        about: Row = {
            "checkpoint": self.name, "layer": self.request.layer, "file": self.request.out, "sha256": self.dictionary.sha256,
            "method": self.request.method, "units": self.dictionary.units, "channels": self.dictionary.channels,
            "images": found.images, "dead": found.dead, "dimensions": found.dimensions,
        }  # fmt: skip
        for key in ("explained", "active", "effective"):
            value, low, high = getattr(found, key)
            about |= {key: value, f"{key}_low": low, f"{key}_high": high}
        return [{**about, "shares": found.shares.tolist(), "activity": found.activity.tolist()}]

    def tables(self) -> list[Table]:
        found = self.quality
        explained, low, high = found.explained
        cells = [
            self.request.method, str(self.dictionary.units), f"{percent(explained)} ({interval_text(low, high)})",
            _number(found.active), str(found.dead), _number(found.effective), f"{found.dimensions:.1f}",
        ]  # fmt: skip
        header = ["method", "units", "explained", "active at a place", "dead", "effective units", "dimensions of the layer"]
        note = (
            f"on {found.images} test images, 95 % intervals over them, of this one fit; explained: share of the activations' "
            "variance; effective units: exp of the entropy of the units' shares of all contributions (Bereska et al. 2025); "
            "dimensions: participation ratio of the layer's covariance, without a dictionary (Gao et al. 2017)"
        )
        return [Table(f"{self.name}, {self.layer}", header, [cells], note)]

    def figure(self) -> Any:
        """Every unit's share of all contributions, and how often it is active."""
        from vizrobust.report.measurement_figures import unit_shares

        title = f"{self.name}, {self.request.layer}, {self.request.method}"
        return unit_shares(self.quality.shares.tolist(), self.quality.activity.tolist(), self.quality.effective[0], title)

    def __repr__(self) -> str:
        return f"FittedDictionary({self.layer!r}, {self.dictionary.units} units, {percent(self.quality.explained[0])} explained)"


def dictionary(request: DictionaryRequest, session: Session) -> Generator[Event, None, FittedDictionary]:
    """Fit a dictionary, or read the one that the same request left, and measure it."""
    data = session.dataset(request.data, model=request.model) if not isinstance(request.model, str | Path | Checkpoint) else None
    checkpoint = session.checkpoint(request.model, data)
    data = session.data_for(checkpoint, request.data if data is None else data, images_alone=True)
    made, net = _made(request, checkpoint, data), checkpoint.net()
    how: dict[str, Any] = {"shape": checkpoint.info.input_shape, "compute": session.compute(), "seed": request.seed}
    fitted = _there(request, made)
    try:
        if fitted is None:
            some = ImageSource(data, "train", request.images).images
            reading = _advance(session, f"{checkpoint.name} {request.layer}", len(some))
            vectors = layer_vectors(net, request.layer, some, request.places, progress=reading, **how)
            yield Note(f"{request.method} of {request.units} units on {len(vectors):,} vectors of {len(some):,} training images")
            fitted = fit_dictionary(
                vectors.to(how["compute"].device), request.method, request.units, request.largest, request.seed,
                l1=request.penalty,
                progress=lambda done: session.progress(f"{checkpoint.name} {request.layer}, training", done, STEPS),
            )  # fmt: skip
            replace(fitted, made={**made, "versions": versions()}).save(request.out)
            fitted = read_dictionary(request.out)
        held_out = ImageSource(data, "test", request.held_out).images
        measuring = _advance(session, f"{checkpoint.name} {request.layer}, test images", len(held_out))
        worth = quality(net, request.layer, fitted, held_out, progress=measuring, **how)
    except ParameterError:
        raise
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error} ({layers_command(checkpoint)} lists the layers)") from error
    report = FittedDictionary(request, checkpoint.name, fitted, worth)
    yield from report.rows()
    yield from drawn(report, request, session)
    if worth.dead:
        yield Note(f"{worth.dead} of {fitted.units} units are dead: no test image excites them")
    network = typed(checkpoint.reference, checkpoint.info.arch)
    yield Note(f"next: vizrobust neurons {network} --layer {shlex.quote(report.layer)}")
    return report


def _made(request: DictionaryRequest, checkpoint: Checkpoint, data: DataSet) -> dict[str, Any]:
    """What the file says about how it came about, without versions; the same for the same dictionary."""
    about = {key: getattr(request, key) for key in ("layer", "method", "units", "images", "places", "seed")}
    source = ImageSource(data, "train", request.images).identity
    if request.method == "relu":
        about["l1"] = request.penalty
    return {**about, "k": request.largest, "checkpoint": checkpoint.name, "network": checkpoint.network_sha256, "data": source}


def _there(request: DictionaryRequest, made: dict[str, Any]) -> Dictionary | None:
    """The dictionary that this request has already made; `ParameterError` where the file holds anything else."""
    if not Path(request.out).exists():
        return None
    try:
        found = read_dictionary(request.out)
    except (ValueError, FileNotFoundError):
        raise ParameterError("{out} %r is there and is no dictionary; give another name", request.out) from None
    if {key: value for key, value in found.made.items() if key != "versions"} != made:
        differing = sorted(key for key in made if found.made.get(key) != made[key])
        what = f"made with another {', '.join(differing)}" if found.made else "that another program made"
        raise ParameterError("{out} %r holds a dictionary %s; give another name", request.out, what)
    return found


def _advance(session: Session, task: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        session.progress(task, done, total)

    return advance


def _number(value: Interval) -> str:
    middle, low, high = value
    return f"{middle:.2f}" if low is None else f"{middle:.2f} ({low:.2f} to {high:.2f})"


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
