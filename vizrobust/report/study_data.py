"""Read a study's report.json by groups of checkpoints: for each group one value with its spread over training seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vizrobust.intervals import mean_interval
from vizrobust.report.words import key_word
from vizrobust.study.report import StudyReport

Entry = Mapping[str, Any]
ROLES = {"dose": 0, "arm": 1, "radius": 2, "masked": 3, "control": 4, "given": 5, "random": 6}
METRIC_ROLES = ("primary", "secondary", "diagnostic")
FEWEST_FOR_T = 3


@dataclass(frozen=True)
class Group:
    """The checkpoints that differ only in their training seed; `masked` of them have masked gradients."""

    name: str
    label: str
    role: str
    k: int | None
    checkpoints: tuple[str, ...]
    masked: int = 0

    @property
    def has_k(self) -> bool:
        return self.k is not None and self.role in ("dose", "given")

    @property
    def diagnosed(self) -> str:
        """What the pictures of the group say of its gradients, whichever seed is shown.

        >>> Group("fast", "fast", "arm", None, ("fast-s0", "fast-s1"), masked=1).diagnosed
        'masked: 1 of 2'
        """
        some = "" if self.masked == len(self.checkpoints) else f": {self.masked} of {len(self.checkpoints)}"
        return f"masked{some}" if self.masked else ""


@dataclass(frozen=True)
class Spread:
    """The mean of one value per training seed; `low` and `high` are None where there is no interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1


Series = dict[str, Spread]  # by the name of a group


@dataclass(frozen=True)
class AccuracySeries:
    """Accuracy under one attack (or corruption) over the groups."""

    label: str
    kind: str
    steps: int | None
    spreads: Series


class StudyGroups:
    """The rows of a `StudyReport` by groups of checkpoints; whatever is absent in the report is empty here.

    >>> StudyGroups({"format": 2, "checkpoints": None}).groups
    ()
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report if isinstance(report, StudyReport) else StudyReport(report)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The sweep over K in order of K, then baselines, controls, provided and random networks."""
        members: dict[str, list[Entry]] = {}
        for checkpoint in self.report.rows("checkpoints"):
            members.setdefault(str(checkpoint.get("group") or checkpoint["name"]), []).append(checkpoint)
        ks = [some[0].get("k") for some in members.values() if some[0].get("role") in ("dose", "given")]
        groups = [_group(name, some, ks) for name, some in members.items()]
        return tuple(sorted(groups, key=lambda g: (not g.has_k, g.k or 0 if g.has_k else 0, ROLES.get(g.role, 9))))

    @cached_property
    def swept(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.has_k)

    @cached_property
    def baselines(self) -> tuple[Group, ...]:
        """Named baselines, networks with masked gradients, and provided checkpoints whose K is unknown."""
        return tuple(group for group in self.groups if not group.has_k and group.role in ("arm", "masked", "given"))

    @cached_property
    def radii(self) -> dict[float, Group]:
        """eps -> the networks of one K trained at it, from K = 0 as eps 0 to the largest; empty without other radii."""
        at = {row["name"]: float(row["eps"]) for row in self.report.rows("checkpoints") if row["name"] in self.report.radii}
        found = {at[name]: group for group in self.groups for name in group.checkpoints if name in at}
        if found:
            found |= dict.fromkeys([0.0] * (self.swept[0].k == 0), self.swept[0])
        return dict(sorted(found.items()))

    @cached_property
    def seeds(self) -> int:
        """The largest number of training seeds at any K."""
        return max((len(group.checkpoints) for group in self.swept or self.groups), default=0)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return _distinct(row["layer"] for key in ("clarity", "pictures") for row in self.report.rows(key))

    @cached_property
    def recipes(self) -> tuple[str, ...]:
        return _distinct(
            [*self.report.facts("recipes"), *(row["recipe"] for key in ("clarity", "pictures") for row in self.report.rows(key))]
        )

    def judges(self, metric: str, layer: str) -> tuple[str | None, ...]:
        """The judges of a metric at a layer; ``(None,)`` for a metric that needs no judge."""
        return _distinct(row.get("judge") for row in self._clarity if row["metric"] == metric and row["layer"] == layer)

    def metrics(self, role: str, layer: str) -> list[Entry]:
        """The metrics of one role that were measured at a layer, in the report's order."""
        measured = {row["metric"] for row in self._clarity if row["layer"] == layer}
        return [metric for metric in self.report.rows("metrics") if metric["role"] == role and metric["name"] in measured]

    def title(self, metric: str) -> str:
        titles = {entry["name"]: str(entry.get("title") or "") for entry in self.report.rows("metrics")}
        return titles.get(metric) or key_word(metric)

    def by_checkpoint(
        self, metric: str, recipe: str, judge: str | None, layer: str, control: str | None = None
    ) -> dict[str, float]:
        """Checkpoint -> the mean over its units."""
        return self._means.get((metric, recipe, judge, layer, control), {})

    def over_judges(self, metric: str, recipe: str, layer: str, control: str | None = None) -> dict[str, float]:
        """Checkpoint -> the mean over its units and over the judges that are not excluded, each family counting once."""
        own = {row["name"]: row.get("family") or row["name"] for row in self.report.rows("judges")}
        families: dict[str | None, list[dict[str, float]]] = {}
        for judge in self.judges(metric, layer):
            values = self.by_checkpoint(metric, recipe, judge, layer, control)
            if values and judge not in self.report.excluded_judges:
                families.setdefault(own.get(judge or "", judge), []).append(values)
        return _means_of([_means_of(values) for values in families.values()])

    def clarity(self, metric: str, recipe: str, judge: str | None, layer: str, control: str | None = None) -> Series:
        return self.spreads(self.by_checkpoint(metric, recipe, judge, layer, control))

    def spreads(self, values: Mapping[str, float]) -> Series:
        """Checkpoint -> value, as one value with its interval per group."""
        return {name: over_seeds(there) for name, there in self._grouped(values)}

    def ranges(self, values: Mapping[str, float]) -> Series:
        """Checkpoint -> value, as one value with its range per group: for shares, whose t interval would leave 0 to 1."""
        return {name: range_over_seeds(there) for name, there in self._grouped(values)}

    def _grouped(self, values: Mapping[str, float]) -> Iterator[tuple[str, list[float]]]:
        for group in self.groups:
            there = [values[name] for name in group.checkpoints if name in values]
            if there:
                yield group.name, there

    def accuracies(self, *kinds: str) -> list[AccuracySeries]:
        """Accuracy over the groups at the data set's eps: a series per label, one for everything "clean" and "strongest"."""
        rows: dict[tuple[str, str], list[Entry]] = {}
        for row in self.report.rows("accuracy"):
            if row["kind"] in kinds and _is_number(row.get("accuracy")) and (row["kind"] == "unforeseen" or self._at_eps(row)):
                label = {"clean": "clean", "strongest": "strongest found"}.get(row["kind"], str(row.get("label") or row["kind"]))
                rows.setdefault((str(row["kind"]), label), []).append(row)
        series = [AccuracySeries(label, kind, some[0].get("steps"), self._accuracy(some)) for (kind, label), some in rows.items()]
        return sorted(series, key=lambda one: (kinds.index(one.kind), one.steps or 0 if one.kind == "pgd" else 0))

    def accuracy_of(self, kind: str) -> dict[str, float]:
        """Checkpoint -> its lowest accuracy of this kind."""
        found: dict[str, float] = {}
        for row in self.report.rows("accuracy"):
            if row["kind"] == kind and _is_number(row.get("accuracy")) and (kind == "unforeseen" or self._at_eps(row)):
                found[row["checkpoint"]] = min(found.get(row["checkpoint"], 1.0), float(row["accuracy"]))
        return found

    @cached_property
    def _clarity(self) -> Sequence[Entry]:
        return self.report.rows("clarity")

    @cached_property
    def _means(self) -> dict[tuple[Any, ...], dict[str, float]]:
        found: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in self._clarity:
            mean = _mean(row.get("values") or ())
            if mean is not None:
                key = (row["metric"], row["recipe"], row.get("judge"), row["layer"], row.get("control"))
                found.setdefault(key, {})[str(row["checkpoint"])] = mean
        return found

    def _at_eps(self, row: Entry) -> bool:
        eps, own = self.report.facts("data").get("eps"), row.get("eps")
        return eps is None or own is None or math.isclose(own, eps, rel_tol=1e-6)

    def _accuracy(self, rows: Sequence[Entry]) -> Series:
        by_checkpoint = {str(row["checkpoint"]): row for row in rows}
        found: Series = {}
        for group in self.groups:
            there = [by_checkpoint[name] for name in group.checkpoints if name in by_checkpoint]
            if len(there) == 1:
                row = there[0]
                found[group.name] = Spread(float(row["accuracy"]), row.get("ci_low"), row.get("ci_high"))
            elif there:
                found[group.name] = range_over_seeds([float(row["accuracy"]) for row in there])
        return found


def over_seeds(values: Sequence[float]) -> Spread:
    """The mean with a 95 % t interval from three seeds on, the range of two, nothing for one.

    >>> over_seeds([1.0]), over_seeds([1.0, 3.0])
    (Spread(mean=1.0, low=None, high=None, seeds=1), Spread(mean=2.0, low=1.0, high=3.0, seeds=2))
    >>> round(over_seeds([1.0, 2.0, 3.0]).low, 3)
    -0.484
    """
    n = len(values)
    if n < FEWEST_FOR_T:
        return range_over_seeds(values)
    mean, low, high = mean_interval(values)
    return Spread(mean, low, high, n)


def range_over_seeds(values: Sequence[float]) -> Spread:
    """The mean with the smallest and the largest value, without them for one value."""
    if len(values) == 1:
        return Spread(values[0])
    return Spread(mean_of(values), min(values), max(values), len(values))


def _group(name: str, members: Sequence[Entry], ks: Sequence[int | None]) -> Group:
    first = members[0]
    role, k = str(first.get("role") or "given"), first.get("k")
    alone = k is not None and ks.count(k) == 1
    label = f"K = {k}" if role == "dose" or (role == "given" and alone) else name
    masked = sum(is_masked(member) for member in members)
    return Group(name, label, role, k, tuple(str(member["name"]) for member in members), masked)


def is_masked(checkpoint: Entry) -> bool:
    """Whether the diagnosis of a checkpoint's gradients is "masked", as opposed to sound or undecided."""
    return str((checkpoint.get("masked") or {}).get("verdict", "")).startswith("masked")


def _mean(values: Iterable[Any]) -> float | None:
    there = [float(value) for value in values if _is_number(value)]
    return mean_of(there) if there else None


def _means_of(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Name -> the mean of its values, for names that all have."""
    names = _distinct(name for values in found for name in values)
    return {name: mean_of([values[name] for values in found]) for name in names if all(name in values for values in found)}


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _distinct(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))
