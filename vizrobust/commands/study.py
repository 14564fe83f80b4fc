"""`study` and `verify`: whether feature images get clearer with more attack steps, and whether a report of it holds."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from vizrobust.attribution import parse_attribution
from vizrobust.clarity import default_judges
from vizrobust.compute import Compute
from vizrobust.data import DataSet, load
from vizrobust.features import parse_recipe
from vizrobust.models import LOGITS, Checkpoint, load_checkpoint
from vizrobust.plugins import split_code
from vizrobust.report.study_clarity_figures import clarity_over_k
from vizrobust.report.study_data import StudyGroups
from vizrobust.report.study_page import write_study
from vizrobust.report.study_sections import secondary_table
from vizrobust.requests import ParameterError
from vizrobust.requests.study import StudyRequest, VerifyRequest
from vizrobust.results import Event, Note, Progress, Result, Row, Table, percent
from vizrobust.runs import default_folder
from vizrobust.session import Session
from vizrobust.study import (
    TRAININGS,
    Plan,
    Study,
    StudyReport,
    plan_for,
    preregistration,
    provided_checkpoints,
    quick,
    report_of,
    training_runs,
)
from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.power import Cost, PlannedContrast, costs, planned, seconds_per_pass
from vizrobust.study.report_checks import Check
from vizrobust.study.verify import verify as checks_of
from vizrobust.training import TrainingRecipe, recorded_threads

ACCURACIES = (("clean", "clean"), ("fgsm", "FGSM"), ("strongest", "strongest attack"))
# The fields of a request whose names in the plan, and in every recorded plan, are older.
PLAN_FIELDS = {"baselines": "arms"}


@dataclass(frozen=True, repr=False)
class StudyResult(Result):
    """A finished study: its report, and the page that shows it. None of both in processes that only helped."""

    request: StudyRequest
    report: StudyReport | None
    page: Path | None
    command: str = ""

    def rows(self) -> list[Row]:
        """What each contrast says about each metric: the report's ``trends``."""
        return [] if self.report is None else self.report.rows("trends")

    @property
    def sentences(self) -> list[str]:
        """The verdict, in sentences."""
        return [] if self.report is None else list(self.report["verdict"]["sentences"])

    def tables(self) -> list[Table]:
        """The accuracies of the networks, and the contrasts of secondary outcomes where they were measured."""
        if self.report is None:
            return []
        found = {(row["checkpoint"], row["kind"]): row["accuracy"] for row in self.report["accuracy"]}
        rows = [
            [one["label"], *(percent(found.get((one["name"], kind))) for kind, _ in ACCURACIES),
             (one["masked"] or {}).get("verdict", "")]
            for one in self.report["checkpoints"]
            if one["role"] != "random"
        ]  # fmt: skip
        header = ["network", *(name for _, name in ACCURACIES), "masked?"]
        besides = secondary_table(StudyGroups(self.report))
        return [Table(f"Accuracy at eps {self.report['data']['eps']:.3g}", header, rows), *([besides] if besides else [])]

    def lines(self) -> list[str]:
        """The verdict, and where the page is."""
        return [] if self.report is None else [*self.sentences, "", f"report: {self.page}"]

    def figure(self) -> Any:
        """The primary metrics of clarity over attack steps, as a matplotlib figure; None where no K are compared."""
        if self.report is None:
            raise ValueError("this process has no report; only the main process draws")
        return clarity_over_k(StudyGroups(self.report), "primary", LOGITS)

    def __repr__(self) -> str:
        return f"StudyResult({self.sentences[0] if self.sentences else 'no report'!r}, {str(self.page)!r})"


def study(request: StudyRequest, session: Session) -> Generator[Event, None, StudyResult | StudyOutlook]:
    """Go through a study's stages, write report.json and the page, and give back the report."""
    checkpoints = [_checkpoint(one, request, session) for one in dict.fromkeys(request.models)]
    data = load(request.data or _data_of(checkpoints), session.download, typed=request.data is not None)
    provided = provided_checkpoints(checkpoints, data) if checkpoints else []
    plan = resolve(request, data, provided)
    pilot = None if request.pilot is None else StudyReport.read(request.pilot)
    if request.plan:
        return outlook(request, plan, data, len(provided), pilot, session)
    identity = {"plan": repr(plan), "given": [one.checkpoint.sha256 for one in provided]}
    folder = str(session.out or default_folder("study", identity))
    # Also where only the main process sees the folder.
    threads = session.compute(request.precision).processes.broadcast(recorded_threads(folder))
    compute = Compute(session.device, request.precision, threads or session.threads)
    networks = None if request.networks is None else _folder(request.networks)
    own = Study(folder, plan, data, compute, session.argv, provided, wait=session.wait, pilot=pilot, networks=networks)
    with closing(own) as running:
        yield Note(f"study of {data.name} in {folder}: {_size(running)}")
        yield from (Note(f"left out: {text}") for text in plan.left_out(provided=bool(provided)))
        registered = False
        for stage in running.run():
            if not registered and "prereg" in running.facts:
                registered = True
                file, written = running.folder / preregistration.FILE, running.facts["prereg"]
                yield Note(f"preregistered in {file}, sha256 {written['sha256']}")
            yield Progress("study", stage.done, stage.total, stage=stage.what)
        if not compute.processes.main:
            return StudyResult(request, None, None)
        report = report_of(running, session.argv)
        report.write(running.folder)
        page = write_study(running.folder, report)
    yield dict(report)
    if session.argv:
        yield Note(f"made by: {session.argv}")
    return StudyResult(request, report, Path(page), session.argv)


@dataclass(frozen=True, repr=False)
class StudyOutlook(Result):
    """What a study would cost and what effect it could see; nothing was begun."""

    request: StudyRequest
    networks: int
    costs: tuple[Cost, ...]
    seconds: float
    contrasts: tuple[PlannedContrast, ...]

    def rows(self) -> list[Row]:
        """One row for each stage, one for each contrast."""
        hours = self.seconds / 3600
        stages = [{"stage": one.stage, "core_hours": one.passes * hours, "bytes": one.size} for one in self.costs]
        return [*stages, *(one.row() for one in self.contrasts)]

    def tables(self) -> list[Table]:
        hours = self.seconds / 3600
        total = Cost("together", sum(one.passes for one in self.costs), sum(one.size for one in self.costs))
        rows = [
            [one.stage, f"{one.passes / 1e6:.1f}", f"{one.passes * hours:.1f}", f"{one.size / 1e6:.0f}" if one.size else "-"]
            for one in (*self.costs, total)
        ]
        note = f"{self.networks} networks; {1000 * self.seconds:.2f} ms for a gradient pass of one image, measured here now"
        cost = Table("What it would cost", ["stage", "million passes", "core hours", "MB"], rows, note)
        seen = [
            [one.contrast, one.metric or "any", one.recipe or "any", f"{one.spread:.3g}", _or_none(one.half_width),
             _or_none(one.detectable)]
            for one in self.contrasts
        ]  # fmt: skip
        seeds = self.contrasts[0].seeds
        unit = "" if self.contrasts[0].metric else "; in deviations between training seeds: the report of a pilot gives units"
        header = ["contrast", "metric", "recipe", "spread", "interval, half width", "effect seen"]
        note = f"{seeds} training seeds; seen: supported with 80 % power, Holm over two primary metrics{unit}"
        return [cost, Table("What it could see", header, seen, note)]

    def __repr__(self) -> str:
        hours = sum(one.passes for one in self.costs) * self.seconds / 3600
        return f"StudyOutlook({self.networks} networks, {hours:.1f} core hours)"


def _or_none(value: float | None) -> str:
    return "none below three seeds" if value is None else f"{value:.3g}"


def outlook(
    request: StudyRequest, plan: Plan, data: DataSet, provided: int, pilot: StudyReport | None, session: Session
) -> StudyOutlook:
    """What the study of a request would cost and could see."""
    compute = session.compute(request.precision)
    networks = provided or len(list(training_runs(plan, plan.eps or data.usual_eps)))
    judges = len(default_judges(data.name, data.classes)) + len(plan.judges)
    parts = costs(plan, data, provided, judges)
    return StudyOutlook(request, networks, tuple(parts), seconds_per_pass(plan, data, compute), tuple(planned(plan, pilot)))


def resolve(request: StudyRequest, data: DataSet, provided: Sequence[StudyCheckpoint] = ()) -> Plan:
    """The plan: the data set's own recipe, what the quick version changes, then what the request states."""
    usual = "small_cnn" if data.shape[0] == 1 else "resnet_small"
    own = provided[0].checkpoint.info.arch if provided else request.arch or usual
    training = TRAININGS.get(data.name)
    if training is None or (request.arch is not None and request.arch != training.arch) or provided:
        training = TrainingRecipe(arch=own, data=data.name)
    plan = plan_for(training if provided else replace(training, precision=request.precision))
    if provided:
        plan = replace(plan, steps=(), arms=(), controls=(), radii=(), seeds=len({one.seed for one in provided}))
    if request.quick:
        plan = replace(quick(plan), eps=data.eps, seeds=plan.seeds if provided else 1)
    if request.epochs is not None:
        plan = replace(plan, training=replace(plan.training, epochs=request.epochs))
    known = {field.name for field in fields(plan)} - {"quick"}
    stated = {PLAN_FIELDS.get(field.name, field.name): getattr(request, field.name) for field in fields(request)}
    stated["recipes"] = tuple(parse_recipe(one) if isinstance(one, str) else one for one in request.recipes)
    stated["explain_methods"] = tuple(parse_attribution(one) if isinstance(one, str) else one for one in request.explain_methods)
    changes = {name: value for name, value in stated.items() if name in known and value is not None}
    # No texts of these mean the plan's own.
    plural = ("judges", "recipes", "explain_methods")
    return replace(plan, **{name: value for name, value in changes.items() if value or name not in plural})


def _checkpoint(model: Any, request: StudyRequest, session: Session) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    ref, own = split_code(str(model))
    return load_checkpoint(ref, own or request.arch, session.download)


def _folder(named: str) -> Path:
    if not (Path(named) / "checkpoints").is_dir():
        raise ParameterError("{networks} %r holds no folder checkpoints; give the folder of a study", named)
    return Path(named)


def _size(running: Study) -> str:
    plan = running.plan
    if running.provided:
        return f"{len(running.provided)} checkpoints, {len(plan.recipes)} recipes, {len(running.judges)} judges"
    number = len(list(training_runs(plan, plan.eps or running.data.usual_eps)))
    return f"{number} networks to train, {len(plan.recipes)} recipes, {len(running.judges)} judges"


def _data_of(checkpoints: Sequence[Checkpoint]) -> str:
    named = [one.info.data for one in checkpoints if one.info.data]
    if not named:
        raise ParameterError("none of the checkpoints records what it was trained on; give {data} (vizrobust list data)")
    return str(named[0])


MARKS: Mapping[bool | None, str] = {True: "fine", False: "WRONG", None: "not checked"}


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """What was checked of a report, and whether it holds; `ok` is False where anything differs."""

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool | None:
        return all(check.ok is not False for check in self.checks)

    def rows(self) -> list[Row]:
        return [_check_row(check) for check in self.checks]

    def tables(self) -> list[Table]:
        rows = [[check.how, MARKS[check.ok], check.what, check.detail] for check in self.checks]
        return [Table(f"{self.path}: what was looked at", ["how", "result", "what", "detail"], rows)]

    def __repr__(self) -> str:
        wrong = [check.what for check in self.checks if check.ok is False]
        return f"Verification({'differs: ' + ', '.join(wrong) if wrong else 'holds'}, {len(self.checks)} checks of {self.path!r})"


def _check_row(check: Check) -> Row:
    return {"what": check.what, "how": check.how, "fine": check.ok, "told": check.detail}


def verify(request: VerifyRequest, session: Session) -> Generator[Event, None, Verification]:
    """Check a report; a row for each part as soon as it is checked."""
    report = StudyReport.read(request.report)
    path = Path(request.report)
    compute = Compute(session.device, request.precision, report["threads"])
    found = []
    folder = path if path.is_dir() else path.parent
    copy = None if request.prereg is None else Path(request.prereg)
    networks = None if request.networks is None else _folder(request.networks)
    images = partial(load, report["data"]["name"], session.download)
    for check in checks_of(report, folder, images, compute, request.seed, copy, request.judges, networks):
        found.append(check)
        yield _check_row(check)
        yield Progress("verify", len(found), None, check.what)
    wrong = sum(check.ok is False for check in found)
    if wrong:
        yield Note(f"{wrong} finding{'s' if wrong > 1 else ''} differ from the report")
    return Verification(request.report, tuple(found))
