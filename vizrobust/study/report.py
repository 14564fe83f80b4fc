"""report.json: what a finished study found, and what follows from its rows: contrasts, verdicts and sentences."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vizrobust.runs import Row, write_text
from vizrobust.study.clarity_scores import MATCHED
from vizrobust.study.contrasts import (
    ATTRIBUTION,
    CONTRASTS,
    FEATURES,
    RADIUS_UNIT,
    SECONDARY,
    Arm,
    Outcome,
    RunValues,
    SecondaryContrast,
    contrasts,
    masked_against_standard,
    outcomes,
    radius_slope,
    secondary_contrasts,
)
from vizrobust.study.protocol import MASKED, RADIUS, SWEEP
from vizrobust.study.summary import Verdict, verdict
from vizrobust.study.verdicts import DIAGNOSTIC, ContrastResult, MetricSeries, contrast_results
from vizrobust.training import attacks_seen

FILE = "report.json"
# Format 2 differs from 1 in the words of its sentences and in contrasts that are constant. Who changes what a sentence
# says raises it: `verify` compares the sentences of this format word by word.
FORMAT = 2
READABLE = (1, 2)
NATURAL_REFERENCE, RANDOM_REFERENCE, START_REFERENCE = "natural", "random network", "before optimization"
# The rows that everything else follows from.
HASHED = ("checkpoints", "clarity", "accuracy", "references", "judges")
# Reports from before there was a natural scale, without an encoder or without secondary outcomes have no such rows.
HASHED_IF_THERE = ("scales", "encoder", ATTRIBUTION, FEATURES)
# The references of a control's scale: matched units are units like others, so theirs are those without a control.
SCALES: Mapping[str | None, str | None] = {MATCHED: None}


class StudyReport(Mapping[str, Any]):
    """A report.json, read or about to be written. As a mapping it holds the keys of the file.

    `rows` and `facts` read lists and mappings that may be absent or null. `series`, `accuracies`, `results` and `verdict`
    are computed from the rows of this report, whatever it states. Ineligible judges and checkpoints outside the sweep
    over K have no part in them.

    >>> report = StudyReport({"checkpoints": [], "metrics": [], "clarity": [], "judges": None})
    >>> report.rows("judges"), report.verdict.overall
    ([], 'no verdict')
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"StudyReport({self.facts('data').get('name', '?')}, {len(self.rows('checkpoints'))} checkpoints)"

    @classmethod
    def conclude(cls, content: Mapping[str, Any]) -> StudyReport:
        """The report with `content`, its results, its verdict and the hash of its rows."""
        found = cls(content)
        stated = [one.row() for one in found.results if one.series.control is None]
        concluded = {"format": FORMAT, "trends": stated, "verdict": found.verdict.row(), "rows_sha256": found.rows_sha256}
        if found.secondary_values:
            concluded[SECONDARY] = [one.row() for one in found.secondary]
        return cls({"format": FORMAT, **content, **concluded})

    @classmethod
    def read(cls, path: Path | str) -> StudyReport:
        """The report in a file, or in the folder of a study.

        Raises ``FileNotFoundError`` where there is none and ``ValueError`` where the file is not a report, or is of a
        format that this version does not know.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"no {FILE} at {str(path)!r}; give the folder of a finished study (vizrobust study)")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            number, _checkpoints = content["format"], content["checkpoints"] if content["format"] in READABLE else None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{str(path)!r} is not a study's report ({type(error).__name__}: {error}); run the study again to write it"
            ) from error
        if number not in READABLE:
            reads = " and ".join(map(str, READABLE))
            raise ValueError(f"{str(path)!r} is of format {number}, this vizrobust reads {reads}; update vizrobust")
        return cls(content)

    def write(self, folder: Path | str) -> Path:
        """Write report.json into a study's folder, whole or not at all."""
        path = Path(folder) / FILE
        # On one line: thousands of rows, which nobody reads as text.
        write_text(path, json.dumps(self._content, ensure_ascii=False) + "\n")
        return path

    def rows(self, key: str) -> list[Row]:
        """A list of the report; empty where it is absent or null."""
        return list(self._content.get(key) or ())

    def facts(self, key: str) -> Mapping[str, Any]:
        """A mapping of the report; empty where it is absent or null."""
        return self._content.get(key) or {}

    @property
    def rows_sha256(self) -> str:
        """The hash of the rows from which everything else follows."""
        rows = [self[name] for name in HASHED] + [self[name] for name in HASHED_IF_THERE if name in self]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    @property
    def judges_and_encoder(self) -> list[Row]:
        """The rows of all networks that look at the pictures."""
        return [*self.rows("judges"), *([self["encoder"]] if "encoder" in self else [])]

    @cached_property
    def excluded_judges(self) -> dict[str, str]:
        """Judge -> the reason why it is not eligible."""
        return {judge["name"]: judge["disqualified"] for judge in self.judges_and_encoder if judge.get("disqualified")}

    @cached_property
    def sweep(self) -> dict[str, tuple[int, int]]:
        """Checkpoint -> (K, training seed), for those of the sweep over attack steps."""
        rows = [row for row in self.rows("checkpoints") if row["role"] == SWEEP and row["k"] is not None]
        return {row["name"]: (row["k"], row["seed"]) for row in rows}

    @cached_property
    def radii(self) -> dict[str, tuple[int, int]]:
        """Checkpoint -> (eps in millionths, training seed): the radius arm with the sweep's networks of its K; else empty."""
        rows = [row for row in self.rows("checkpoints") if row["role"] == RADIUS]
        steps = {getattr(attack, "steps", None) for row in rows for attack in attacks_seen(row["training"])}
        seeds = {row["seed"] for row in rows}
        rows += [row for row in self.rows("checkpoints") if row["role"] == SWEEP and row["k"] in steps and row["seed"] in seeds]
        return {row["name"]: (round(row["eps"] / RADIUS_UNIT), row["seed"]) for row in rows if row.get("eps")}

    @cached_property
    def masked(self) -> dict[str, tuple[int, int]]:
        """Checkpoint -> (1 for masked gradients, 0 for K = 0; training seed): the masked arm and its reference; else empty."""
        arm = [row for row in self.rows("checkpoints") if row["role"] == MASKED]
        seeds = {row["seed"] for row in arm}
        standard = [name for name, (k, seed) in self.sweep.items() if k == 0 and seed in seeds]
        return {row["name"]: (1, row["seed"]) for row in arm} | {name: self.sweep[name] for name in standard}

    @cached_property
    def series(self) -> list[MetricSeries]:
        """One series for each metric, recipe, eligible judge, control and layer of `clarity`, without diagnostics.

        Each value is the mean over those units that have one, None where none has.
        """
        return self._series(self.sweep)

    def _series(self, places: Mapping[str, tuple[int, int]]) -> list[MetricSeries]:
        """The series over those checkpoints that have a place."""
        metrics = {metric["name"]: metric for metric in self.rows("metrics") if metric["role"] != DIAGNOSTIC}
        tables: dict[tuple[Any, ...], dict[tuple[int, int], float | None]] = {}
        for row in self.rows("clarity"):
            if row["metric"] in metrics and row["judge"] not in self.excluded_judges and row["checkpoint"] in places:
                key = (row["metric"], row["recipe"], row["judge"], row["layer"], row["control"])
                values = tables.setdefault(key, dict.fromkeys(places.values()))
                values[places[row["checkpoint"]]] = mean(row["values"])
        families = {row["name"]: row.get("family") or row["name"] for row in self.rows("judges")}
        found = []
        for (name, recipe, judge, layer, control), values in tables.items():
            scale = SCALES.get(control, control)
            natural, random = (
                self.reference(one, name, recipe, judge, layer, scale) for one in (NATURAL_REFERENCE, RANDOM_REFERENCE)
            )
            role, direction = metrics[name]["role"], metrics[name]["direction"]
            family = families.get(judge, "")
            found.append(MetricSeries(name, role, direction, recipe, judge, layer, values, natural, random, control, family))
        return found

    @cached_property
    def accuracies(self) -> RunValues:
        """(K, training seed) -> accuracy under the strongest attack found, in [0, 1]; the lowest of several rows."""
        found: dict[tuple[int, int], float | None] = {}
        for row in self.rows("accuracy"):
            if row["kind"] == "strongest" and row["checkpoint"] in self.sweep and row["accuracy"] is not None:
                place = self.sweep[row["checkpoint"]]
                before = found.get(place)
                found[place] = row["accuracy"] if before is None else min(before, row["accuracy"])
        return found

    def reference(self, name: str, metric: str, recipe: str, judge: str | None, layer: str, control: str | None) -> float | None:
        """The value of a reference; one without a recipe holds for all, several (one for each checkpoint) are averaged."""
        wanted = (name, metric, judge, layer, control)
        keys = ("reference", "metric", "judge", "layer", "control")
        rows = [row for row in self.rows("references") if tuple(row[key] for key in keys) == wanted]
        return mean([row["value"] for row in rows if row["recipe"] in (recipe, None)])

    @cached_property
    def results(self) -> list[ContrastResult]:
        """What each contrast says about each series, in the order of their names; those of controls too."""
        found = contrast_results(self.series, self.accuracies)
        if self.radii:
            found += contrast_results(self._series(self.radii), contrasts=lambda values, _accuracy: [radius_slope(values)])
        if self.masked:
            own = self._series(self.masked)
            found += contrast_results(own, contrasts=lambda values, _accuracy: [masked_against_standard(values)])
        return sorted(found, key=lambda result: CONTRASTS.index(result.contrast.name))

    @cached_property
    def secondary_values(self) -> dict[Outcome, dict[str, float | None]]:
        """Secondary outcome -> checkpoint -> its value; empty where none was measured."""
        return outcomes(self.rows(ATTRIBUTION), self.rows(FEATURES))

    @cached_property
    def secondary(self) -> list[SecondaryContrast]:
        """What each contrast says about each secondary outcome."""
        arms: list[Arm] = [
            (self.sweep, contrasts),
            (self.radii, lambda values: [radius_slope(values)]),
            (self.masked, lambda values: [masked_against_standard(values)]),
        ]
        return list(secondary_contrasts(self.secondary_values, [arm for arm in arms if arm[0]]))

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict in sentences."""
        return verdict(self.results, self.excluded_judges)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there.

    >>> mean([1.0, None, 2.0]), mean([None])
    (1.5, None)
    """
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(there) / len(there) if there else None
