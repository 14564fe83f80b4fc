"""A study in a folder: trained, attacked, rendered and scored step by step, and taken up where it stopped."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vizrobust.clarity import Judge, judges_for
from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet
from vizrobust.features import Channel, Logit, Objective, Request, render_into, with_priors
from vizrobust.features.session import images_of, missing, ways_of
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.robustness.session import identity as evaluation
from vizrobust.runs import Run, digest
from vizrobust.study import prereg
from vizrobust.study.accuracies import Accuracies
from vizrobust.study.cells import Cell, cells
from vizrobust.study.compared import RANDOM, Compared
from vizrobust.study.eps_rule import Chosen
from vizrobust.study.matching import draw_units
from vizrobust.study.measured import Measured, measure
from vizrobust.study.plan import Plan
from vizrobust.study.questions import Questions
from vizrobust.study.trainings import Doing, Trainings

BATCH_SIZE = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """Where a study is: what is being done, and how much of everything is done, in estimated gradient passes."""

    what: str
    done: float
    total: float


class Study:
    """A study's folder. `given` are checkpoints that somebody brings; without them every cell is trained.

    `run` yields stages and can be stopped anywhere; `facts` then holds what the report is made of. The processes of
    `compute` share trainings, attacks and pictures; what else is to be done, and the folder, are the main one's alone.
    Raises ``ValueError`` if the folder holds another study.
    """

    def __init__(
        self, folder: Path | str, plan: Plan, data: DataSet, compute: Compute, argv: str = "", given: Sequence[Compared] = ()
    ) -> None:
        self.plan, self.data, self.compute, self.argv, self.given = plan, data, compute, argv, list(given)
        # What cannot be judged is refused before anything is trained.
        self.judges: list[Judge] = judges_for(data.name, [one.checkpoint for one in given], compute, plan.judges)
        if not self.judges:
            raise ValueError(f"there is no built-in judge for {data.name}; name one or more with --judge REF")
        described = {"plan": repr(plan), "data": data.name, "given": {one.checkpoint.id: one.group for one in given}}
        record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
        self.folder = Run(folder, "study", described, record, compute.processes).folder
        self._opened: dict[str, Run] = {}
        self.attacks = self._run("attacks", "attack", evaluation(data.name, "test", 0, BATCH_SIZE, "fp32"))
        self.corruptions = self._run("corruptions", "corruptions", {"data": data.name, "seed": 0})
        self.measured = self._run("clarity", "study clarity", {"plan": repr(plan), "judges": self._judge_hashes()})
        self.done = 0.0
        self.cells: list[Cell] = []
        self.chosen = Chosen(plan.eps or data.eps, (), "given")
        self.compared: list[Compared] = []
        self.facts: dict[str, Any] = {}

    def run(self) -> Iterator[Stage]:
        """Everything, in the order of clarity.md: training, preregistration, attacks, pictures, scores."""
        if self.given:
            self.compared = self.given
            self.chosen = Chosen(self.plan.eps or _radius(self.given, self.data), (), "that of the checkpoints' training")
        else:
            trainings = Trainings(self.folder, self.plan, self.data, self.compute, self.argv)
            self.chosen = yield from self._told(trainings.choose_eps(self.attacks))
            self.cells = list(cells(self.plan, self.chosen.eps))
            self.compared = yield from self._told(trainings.learn(self.cells, self.chosen.eps))
        references = [self._untrained()]
        registered = {one.checkpoint.name: one.checkpoint.sha256 for one in [*self.compared, *references]}
        now = prereg.content(self.plan, self.chosen.row(), registered, self._judge_hashes())
        processes = self.compute.processes
        # Nobody attacks or renders before it is written.
        written, departures = processes.broadcast(prereg.register(self.folder, now) if processes.main else (now, []))
        self.facts |= {"prereg": {"sha256": prereg.sha256(written), "content": written, "departures": departures}}
        for one in self.compared:
            yield from self._attack(one)
        for one in [*self.compared, *references]:
            yield from self._render(one)
        if processes.main:
            self.compute = self.compute.alone()
            yield from self._score(references)

    def _told(self, doing: Generator[Doing, None, T]) -> Generator[Stage, None, T]:
        """What is being done as stages; gives back what came of it."""
        while True:
            try:
                what, passes = next(doing)
            except StopIteration as done:
                found: T = done.value
                return found
            yield self._stage(what, passes)

    def _attack(self, one: Compared) -> Iterator[Stage]:
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

    def _render(self, one: Compared) -> Iterator[Stage]:
        for job in self.jobs(one.checkpoint):
            run = self.pictures(job)
            todo = len(missing(run, one.checkpoint, job))
            what = f"rendering {one.label}: {job.recipe.name}, {job.layer}"
            if todo:
                yield self._stage(what, 0)
                for _ in render_into(run, one.checkpoint, job, self.compute.in_fp32()):
                    yield self._stage(what, job.recipe.steps)

    def _score(self, references: Sequence[Compared]) -> Iterator[Stage]:
        yield self._stage("asking the judges", 0)
        questions = Questions(self.plan, self.data, self.judges, self.compute.in_fp32())
        questions.agree_on([one.checkpoint for one in self.compared])
        everyone = [*self.compared, *references]
        found: list[Measured] = []
        for one in everyone:
            for job in self.jobs(one.checkpoint):
                if job.sign < 0:
                    continue
                passes = len(job.units) * len(job.seeds) * len(self.judges) * (self.plan.frames + 6) / 3
                yield self._stage(f"scoring {one.label}: {job.recipe.name}, {job.layer}", passes if job.strip else 0)
                found.append(self._scored(one.checkpoint, job, questions))
        self.facts |= {"measured": found, "questions": questions, "references": list(references)}

    def _scored(self, checkpoint: Checkpoint, job: Request, questions: Questions) -> Measured:
        key = {"checkpoint": checkpoint.id, "recipe": job.recipe.name, "layer": job.layer, "asked": self._asked()}
        for row in self.measured.rows():
            if all(row[name] == value for name, value in key.items()):
                return Measured.read(row)
        run = self.pictures(job)
        negative = None if isinstance(job.objective, Logit) else images_of(run, checkpoint, replace(job, sign=-1))
        ways = ways_of(run, checkpoint, job) if job.strip else None
        measured = measure(checkpoint, job, images_of(run, checkpoint, job), negative, ways, questions, self.plan.layer)
        self.measured.add({**key, **measured.row()})
        return measured

    def _asked(self) -> str:
        """What the shared queries depend on: the compared checkpoints."""
        return prereg.sha256({one.checkpoint.name: one.checkpoint.sha256 for one in self.compared})[:16]

    def jobs(self, checkpoint: Checkpoint) -> list[Request]:
        """The pictures of one checkpoint: class units, and hidden units with both signs, under every recipe."""
        plan, found = self.plan, []
        drawn = self._drawn(checkpoint)
        for recipe in plan.recipes:
            known = with_priors(recipe, self.data)
            shared = {"recipe": known, "batch_size": plan.batch_size, "data_share": self.data.saturated_share}
            seeds, film = tuple(range(plan.image_seeds)), min(plan.frames, known.steps + 1)
            classes = tuple(range(len(self.data.classes)))
            found.append(Request(objective=Logit(), units=classes, seeds=seeds, film=film, strip=True, **shared))  # type: ignore[arg-type]
            if drawn:
                objective, units = drawn
                hidden = Request(objective=objective, units=units, seeds=tuple(range(plan.hidden_seeds)), **shared)  # type: ignore[arg-type]
                found += [hidden, replace(hidden, sign=-1)]
        return found

    def pictures(self, job: Request) -> Run:
        """The run folder of a recipe's pictures of one layer."""
        name = f"{job.recipe.name}-{'classes' if isinstance(job.objective, Logit) else 'hidden'}"
        return self._run(f"pictures/{name}", "neurons", job.identity("fp32"))

    def _drawn(self, checkpoint: Checkpoint) -> tuple[Objective, tuple[int, ...]] | None:
        if not (self.plan.hidden and self.plan.layer):
            return None
        there = layer_of(checkpoint.net(), checkpoint.about.input_shape, self.plan.layer)
        return Channel(layer=there.name), tuple(draw_units(there.units, min(self.plan.hidden, there.units), seed=0))

    def _untrained(self) -> Compared:
        first_one = self.compared[0].checkpoint
        return Compared(first_one.untrained("random network"), "random", RANDOM, None, 0, "random network")

    def _judge_hashes(self) -> dict[str, str]:
        return {judge.name: judge.sha256 for judge in self.judges}

    def _run(self, name: str, command: str, identity: Mapping[str, Any]) -> Run:
        record = {"argv": self.argv, "threads": self.compute.threads, "device": self.compute.device.type, "versions": versions()}
        # Opened once: opening is an exchange.
        key = f"{name} {digest(identity)}"
        if key not in self._opened:
            self._opened[key] = Run(self.folder / name, command, identity, record, self.compute.processes)
        return self._opened[key]

    def _stage(self, what: str, passes: float) -> Stage:
        self.done += passes
        return Stage(what, self.done, max(self.total(), self.done))

    def total(self) -> float:
        """Gradient passes of everything that is to do, as far as it is known beforehand; evaluations weigh what they take."""
        plan, compared = self.plan, len(self.given)
        training = 0.0
        if not self.given:
            for cell in self.cells or cells(plan, plan.eps or self.data.eps):
                compared += 1
                training += cell.training.epochs * (cell.training.attack_steps + 2) * len(self.data.train)
        attacks = compared * (1 + 10 + plan.pgd_steps + 2) * min(plan.images, len(self.data.test))
        pictures = len(plan.recipes) * (compared + 1) * len(self.data.classes) * plan.image_seeds * plan.recipes[0].steps
        if plan.layer:
            pictures += 2 * len(plan.recipes) * (compared + 1) * plan.hidden * plan.hidden_seeds * plan.recipes[0].steps
        # A judge sees each picture about as often as there are frames and controls, at a third of a gradient pass.
        seen = len(plan.recipes) * (compared + 1) * len(self.data.classes) * plan.image_seeds
        return training + attacks + pictures + seen * len(self.judges) * (plan.frames + 6) / 3


def _radius(given: Sequence[Compared], data: DataSet) -> float:
    """The radius that most of the given checkpoints were trained at; the data set's where none says."""
    radii = [one.checkpoint.about.eps for one in given if one.checkpoint.about.eps]
    return max(set(radii), key=radii.count) if radii else data.eps
