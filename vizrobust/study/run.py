"""A study in a folder: it trains, attacks, renders and scores stage by stage, and can be resumed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vizrobust.clarity import METRICS, Judge, encoder_for, judges_for, scale_for
from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet, head
from vizrobust.features import RenderJob, render_into
from vizrobust.features.picture_runs import frames_of, images_of, missing
from vizrobust.models import Checkpoint
from vizrobust.requests import ParameterError
from vizrobust.robustness.evaluation_runs import identity as evaluation
from vizrobust.runs import Row, RunFolder, digest
from vizrobust.study import preregistration
from vizrobust.study.clarity_scores import MATCHED, LayerScores, PictureSet, primary_rows, score_layer, stacked
from vizrobust.study.contrasts import ATTRIBUTION, FEATURES
from vizrobust.study.evaluations import Accuracies
from vizrobust.study.networks import EpsChoice, StudyCheckpoint, StudyTrainings, Work
from vizrobust.study.power import costs, planned
from vizrobust.study.protocol import UNTRAINED, Plan, TrainingRun, training_runs
from vizrobust.study.report import StudyReport
from vizrobust.study.secondary_measures import EXPLAINED_TOGETHER, counted_features, measured_maps, refuse_unmeasurable
from vizrobust.study.stimuli import (
    MatchedUnits,
    QuerySet,
    all_excitations,
    drawn_units,
    hidden_jobs,
    matched_units,
    of_classes,
    picture_jobs,
    reference_of,
)
from vizrobust.study.verdicts import PRIMARY
from vizrobust.training import own_content

BATCH_SIZE = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """Progress of a study: what is being done, and how much of it all is done, in estimated gradient passes."""

    what: str
    done: float
    total: float


class Study:
    """A study's folder. `provided` are the user's checkpoints; without them the study trains its own.
    `pilot` is the report of an earlier one, whose spread over training seeds says what this one can see; `networks` is the
    folder of one whose networks are taken where the training is the same.

    `run` yields stages and can be stopped at any of them; at its end `facts` holds what the report is made of. The
    processes of `compute` share trainings, attacks and pictures; the main process does the rest and owns the folder.
    Raises ``ValueError`` if the folder holds another study.
    """

    def __init__(
        self,
        folder: Path | str,
        plan: Plan,
        data: DataSet,
        compute: Compute,
        argv: str = "",
        provided: Sequence[StudyCheckpoint] = (),
        *,
        wait: bool = False,
        pilot: StudyReport | None = None,
        networks: Path | None = None,
    ) -> None:
        self.pilot, self.networks = pilot, networks
        self.plan, self.data, self.compute, self.argv, self.provided = plan, data, compute, argv, list(provided)
        # Without an eligible judge nothing is trained.
        given = [one.checkpoint for one in provided]
        self.judges: list[Judge] = judges_for(
            data.name, given, compute, plan.judges, classes=data.classes, typed=True, independent=plan.judge_independent
        )
        self.encoder = encoder_for(plan.encoder, data.name, given, compute, typed=True) if plan.encoder else None
        if not self.judges:
            raise ParameterError("there is no built-in judge for %s; name one or more with {judges} REF", data.name)
        refuse_unmeasurable(plan, data, given)
        described = {"plan": repr(plan), "data": data.name, "given": {one.checkpoint.id: one.group for one in provided}}
        described |= own_content(data, plan.training.arch, plan)
        record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
        # Held to the end: this lock is what another process waits for.
        whole = RunFolder(folder, "study", described, record, compute.processes, wait=wait)
        self.folder, self._opened = whole.folder, {"": whole}
        self._totals: dict[float | None, float] = {}
        self.attacks = self._run("attacks", "attack", evaluation(data.name, "test", 0, BATCH_SIZE, "fp32"))
        self.corruptions = self._run("corruptions", "corruptions", {"data": data.name, "seed": 0})
        judged = {"plan": repr(plan), "judges": self._judge_hashes()}
        judged |= {} if self.encoder is None else {"encoder": self.encoder.sha256}
        self.scores = self._run("clarity", "study clarity", judged)
        self.matched_scores = self._run("clarity-matched", "study clarity of matched units", judged)
        self.done = 0.0
        self.cells: list[TrainingRun] = []
        self.chosen = EpsChoice(plan.eps or data.usual_eps, (), "given")
        self.compared: list[StudyCheckpoint] = []
        self.matched_units: dict[str, MatchedUnits] = {}
        self.facts: dict[str, Any] = {}

    def close(self) -> None:
        """Let another process write the folders."""
        for folder in self._opened.values():
            folder.close()

    def run(self) -> Iterator[Stage]:
        """Train, preregister, attack, match units, render, measure the secondary outcomes, score.

        The order matters: docs/measuring-clarity.md, "Order of work".
        """
        if self.provided:
            self.compared = self.provided
            self.chosen = EpsChoice(self.plan.eps or _radius(self.provided, self.data), (), "that of the checkpoints' training")
        else:
            trainings = StudyTrainings(self.folder, self.plan, self.data, self.compute, self.argv, self.networks)
            self.chosen = yield from self._as_stages(trainings.choose_eps(self.attacks))
            self.cells = list(training_runs(self.plan, self.chosen.eps))
            self.compared = yield from self._as_stages(trainings.train_all(self.cells, self.chosen.eps))
        references = [self._untrained()]
        registered = {one.checkpoint.name: one.checkpoint.sha256 for one in [*self.compared, *references]}
        power = [one.row() for one in planned(self.plan, self.pilot)] if self.pilot is not None else []
        now = preregistration.content(
            self.plan, self.chosen.row(), registered, self._judge_hashes(), power, self.encoder.sha256 if self.encoder else ""
        )
        processes = self.compute.processes
        # No process attacks or renders before the preregistration is written.
        written, departures = processes.broadcast(preregistration.register(self.folder, now) if processes.main else (now, []))
        self.facts |= {"prereg": {"sha256": preregistration.sha256(written), "content": written, "departures": departures}}
        for one in self.compared:
            yield from self._attack(one)
        yield from self._match()
        for one in [*self.compared, *references]:
            yield from self._render(one)
        if processes.main:
            self.compute = self.compute.alone()
            yield from self._measure_secondary([*self.compared, *references])
            yield from self._score(references)

    def _as_stages(self, doing: Generator[Work, None, T]) -> Generator[Stage, None, T]:
        """The work of a generator as stages; returns its result."""
        while True:
            try:
                what, passes = next(doing)
            except StopIteration as done:
                found: T = done.value
                return found
            yield self._stage(what, passes)

    def _attack(self, one: StudyCheckpoint) -> Iterator[Stage]:
        yield self._stage(f"attacking {one.label}", 0)
        accuracies = Accuracies(
            self.plan, self.chosen.eps, one.checkpoint, self.data, self.compute.in_fp32(), self.attacks, self.corruptions
        )
        rows = self.facts.setdefault("accuracy", [])
        for row in accuracies.rows():
            rows.append(row)
            yield self._stage(f"attacking {one.label}: {row['label']}", row["n"] * (row["steps"] or 1))
        masked = accuracies.masked()
        told = {"verdict": masked.name, "why": masked.why} if masked.name else None
        self.facts.setdefault("masked", {})[one.checkpoint.name] = told

    def _match(self) -> Iterator[Stage]:
        """Match the drawn hidden units with those of each network, before any picture of them exists."""
        plan, processes, excited = self.plan, self.compute.processes, dict[str, Tensor]()
        images, compute = head(self.data.val, plan.exemplar_images), self.compute.alone().in_fp32()
        for one in self.compared if processes.main and plan.hidden and plan.layer and plan.matched else ():
            reference = reference_of(one, self.compared)
            if reference is None or reference is one:
                continue
            yield self._stage(f"matching units of {one.label}", len(images) / 3)
            for some in (one.checkpoint, reference.checkpoint):
                if some.name not in excited:
                    excited[some.name] = all_excitations(some, plan.layer, images, compute)
            there, name = drawn_units(plan, reference.checkpoint), reference.checkpoint.name
            found = matched_units(name, excited[one.checkpoint.name], excited[name], there[1] if there else ())
            if found:
                self.matched_units[one.checkpoint.name] = found
        self.matched_units = processes.broadcast(self.matched_units)

    def _render(self, one: StudyCheckpoint) -> Iterator[Stage]:
        for job in [*self.jobs(one.checkpoint), *self.matched_jobs(one.checkpoint)]:
            run = self.pictures(job)
            todo = len(missing(run, one.checkpoint, job))
            what = f"rendering {one.label}: {job.recipe.name}, {job.layer}"
            if todo:
                yield self._stage(what, 0)
                for _ in render_into(run, one.checkpoint, job, self.compute.in_fp32()):
                    yield self._stage(what, job.recipe.steps)

    def _measure_secondary(self, networks: Sequence[StudyCheckpoint]) -> Iterator[Stage]:
        """The secondary outcomes that the plan asks for, of every network."""
        plan, data, compute = self.plan, self.data, self.compute.in_fp32()
        if plan.explain_images:
            run = self._run("attribution", "explain", {"data": data.name, "seed": 0, "batch_size": EXPLAINED_TOGETHER})
            self.facts[ATTRIBUTION] = yield from self._as_stages(measured_maps(plan, networks, data, compute, run))
        if plan.feature_images:
            identity = {"data": data.name, "layer": plan.layer, "images": plan.feature_images}
            run = self._run("effective-features", "study effective features", identity)
            self.facts[FEATURES] = yield from self._as_stages(counted_features(plan, networks, data, compute, run))

    def _score(self, references: Sequence[StudyCheckpoint]) -> Iterator[Stage]:
        yield self._stage("asking the judges", 0)
        scales = {judge.name: scale_for(self.scores, judge, self.data) for judge in self.judges}
        self.facts["scales"] = {name: scale for name, scale in scales.items() if scale is not None}
        questions = QuerySet(self.plan, self.data, self.judges, self.compute.in_fp32(), self.facts["scales"], self.encoder)
        questions.agree_on([one.checkpoint for one in self.compared])
        everyone = [*self.compared, *references]
        found: list[LayerScores] = []
        for one in everyone:
            for job in self.jobs(one.checkpoint):
                if job.sign < 0:
                    continue
                passes = len(job.units) * len(job.seeds) * len(self.judges) * (self.plan.frames + 6) / 3
                yield self._stage(f"scoring {one.label}: {job.recipe.name}, {job.layer}", passes if job.frame_strip else 0)
                found.append(self._layer_scores(one.checkpoint, job, questions))
        matched = [row for one in self.compared for row in self._matched_rows(one, found, questions)]
        self.facts |= {"measured": found, "matched": matched, "questions": questions, "references": list(references)}

    def _layer_scores(self, checkpoint: Checkpoint, job: RenderJob, questions: QuerySet) -> LayerScores:
        key = {"checkpoint": checkpoint.id, "recipe": job.recipe.name, "layer": job.layer, "asked": self._query_hash()}
        for row in self.scores.rows():
            if all(row[name] == value for name, value in key.items()):
                return LayerScores.read(row)
        run = self.pictures(job)
        negative = None if of_classes(job) else images_of(run, checkpoint, replace(job, sign=-1))
        frames = frames_of(run, checkpoint, job) if job.frame_strip else None
        measured = score_layer(checkpoint, job, images_of(run, checkpoint, job), negative, frames, questions, self.plan.layer)
        self.scores.add({**key, **measured.row()})
        return measured

    def _matched_rows(self, one: StudyCheckpoint, found: Sequence[LayerScores], questions: QuerySet) -> Iterator[Row]:
        """Clarity rows of a network's matched units; for the network that others are matched with, those of its drawn units."""
        name = one.checkpoint.name
        if any(pairs.reference == name for pairs in self.matched_units.values()):
            own = [some for some in found if some.checkpoint == name and some.layer == self.plan.layer]
            names = [metric.name for metric in METRICS.values() if metric.role == PRIMARY]
            for some in own:
                rows = (row for row in some.clarity if row["metric"] in names and row["control"] is None)
                yield from (some.labelled({**row, "control": MATCHED}) for row in rows)
        for job in self.matched_jobs(one.checkpoint):
            if job.sign > 0:
                yield from self._primary_rows(one.checkpoint, job, questions)

    def _primary_rows(self, checkpoint: Checkpoint, job: RenderJob, questions: QuerySet) -> list[Row]:
        key = {"checkpoint": checkpoint.id, "recipe": job.recipe.name, "units": list(job.units)}
        for row in self.matched_scores.rows():
            if all(row[name] == value for name, value in key.items()):
                return [{"checkpoint": checkpoint.name, **one} for one in row["clarity"]]
        run = self.pictures(job)
        both = (stacked(images_of(run, checkpoint, some), job.units) for some in (job, replace(job, sign=-1)))
        orders = questions.own(checkpoint, job.objective, job.units)
        # The rows name the units that these are matches of.
        rows = primary_rows(PictureSet(self.matched_units[checkpoint.name].units, *both), questions, orders, MATCHED)
        clarity = [{"recipe": job.recipe.name, "layer": job.layer, **row} for row in rows]
        self.matched_scores.add({**key, "clarity": clarity})
        return [{"checkpoint": checkpoint.name, **one} for one in clarity]

    def _query_hash(self) -> str:
        """The hash of what the shared queries depend on: the compared checkpoints."""
        return preregistration.sha256({one.checkpoint.name: one.checkpoint.sha256 for one in self.compared})[:16]

    def jobs(self, checkpoint: Checkpoint) -> list[RenderJob]:
        """The pictures of one checkpoint, without those of matched units."""
        return picture_jobs(self.plan, self.data, checkpoint)

    def matched_jobs(self, checkpoint: Checkpoint) -> list[RenderJob]:
        """The pictures of the hidden units that match another network's; none where nothing is matched."""
        if checkpoint.name not in self.matched_units:
            return []
        return hidden_jobs(self.plan, self.data, checkpoint, self.matched_units[checkpoint.name].matches)

    def pictures(self, job: RenderJob) -> RunFolder:
        """The run folder of a recipe's pictures of one layer."""
        name = f"{job.recipe.name}-{'classes' if of_classes(job) else 'hidden'}"
        return self._run(f"pictures/{name}", "neurons", job.identity("fp32"))

    def _untrained(self) -> StudyCheckpoint:
        first_one = self.compared[0].checkpoint
        return StudyCheckpoint(first_one.untrained("random network"), "random", UNTRAINED, None, 0, "random network")

    def _judge_hashes(self) -> dict[str, str]:
        return {judge.name: judge.sha256 for judge in self.judges}

    def _run(self, name: str, command: str, identity: Mapping[str, Any]) -> RunFolder:
        # Opened once: processes exchange messages when a folder is opened.
        key = f"{name} {digest(identity)}"
        if key not in self._opened:
            device = self.compute.device.type
            record = {"argv": self.argv, "threads": self.compute.threads, "device": device, "versions": versions()}
            self._opened[key] = RunFolder(self.folder / name, command, identity, record, self.compute.processes)
        return self._opened[key]

    def _stage(self, what: str, passes: float) -> Stage:
        self.done += passes
        return Stage(what, self.done, max(self.total(), self.done))

    def total(self) -> float:
        """Estimated gradient passes of all stages."""
        eps = self.chosen.eps if self.cells else None
        if eps not in self._totals:
            found = costs(self.plan, self.data, len(self.provided), len(self.judges), eps)
            self._totals[eps] = sum(cost.passes for cost in found)
        return self._totals[eps]


def _radius(provided: Sequence[StudyCheckpoint], data: DataSet) -> float:
    """The radius that most provided checkpoints were trained at; the data set's usual one where none names a radius."""
    radii = [one.checkpoint.info.eps for one in provided if one.checkpoint.info.eps]
    return max(set(radii), key=radii.count) if radii else data.usual_eps
