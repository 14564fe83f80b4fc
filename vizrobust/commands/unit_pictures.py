"""What `neurons`, `compare` and `spritemap` share: from a request to the pictures of units in a run folder, and their clarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vizrobust.clarity import Clarity, Judge, default_judges, judges_for, natural_clarity, scale_for, score_run, scoring_jobs
from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.data.published import of_imagenet
from vizrobust.features import (
    Direction,
    Logit,
    Objective,
    Recipe,
    RenderJob,
    check_input_size,
    main_term,
    missing,
    needs_unit,
    objective_for,
    parse_objective,
    parse_recipe,
    picture_key,
    recipe_for,
    reference_image,
    reference_sha256,
    render_into,
    restate,
    sources,
    units_of,
    with_data_statistics,
)
from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.features.scorer import as_objective
from vizrobust.models import Checkpoint
from vizrobust.models import layer as layer_of
from vizrobust.models.packages import INSTALL_LITE, LITE, installed_lite
from vizrobust.requests import ParameterError
from vizrobust.requests.pictures import Rendering, UnitPictures
from vizrobust.runs import Row, RunFolder
from vizrobust.session import Session, named_apart


def checkpoints_of(models: Sequence[Any], session: Session, data: Any = None) -> list[Checkpoint]:
    """The checkpoints of a request, each once; networks given as objects take their shape from `data`."""
    found: dict[str, Checkpoint] = {}
    for model in models:
        given = session.dataset(data, model=model) if isinstance(model, nn.Module) else None
        checkpoint = session.checkpoint(model, given)
        found.setdefault(checkpoint.id, checkpoint)
    return named_apart(found.values())


def recipe_of(request: Rendering, checkpoint: Checkpoint, data: DataSet | None, session: Session) -> Recipe:
    """The recipe that a request names, with its steps and size, and with the data set's statistics where it asks for them.

    Where it names none the recipe is chosen by the size of the checkpoint's images; a note says so where it is not `plain`.
    """
    parsed = parse_recipe(request.recipe, typed=True) if isinstance(request.recipe, str) else request.recipe
    if parsed is None:
        parsed = recipe_for(checkpoint.info.input_shape)
        if parsed.name != "plain":
            side = min(checkpoint.info.input_shape[1:])
            session.note(
                ParameterError(
                    "images of %s pixels: recipe %s; {recipe} plain shows the network alone, often noise", side, parsed.name
                )
            )
    recipe = with_data_statistics(parsed, data)
    steps, size = (recipe.steps if request.steps is None else request.steps), request.size or recipe.size
    return replace(recipe, steps=steps, size=size)


def objective_of(checkpoint: Checkpoint, layer: str, neuron: tuple[int, int] | None = None, objective: Any = None) -> Objective:
    """The objective that a request names: a whole one (or a function), or the one for the units of a layer."""
    if objective is None:
        return objective_for(checkpoint, layer, neuron)[0]
    asked = parse_objective(objective, typed=True) if isinstance(objective, str) else objective
    found = as_objective(asked, checkpoint.net(), checkpoint.info.input_shape, Compute("cpu"))
    for name in found.layers:
        layer_of(checkpoint.net(), checkpoint.info.input_shape, name)
    return found


def units_asked(checkpoint: Checkpoint, objective: Objective, units: Any, session: Session) -> tuple[int, ...]:
    """The units that a request names, as text or as numbers; a note where they are the first of many."""
    text = units if units is None or isinstance(units, str) else ",".join(map(str, units))
    numbers, count = units_of(checkpoint, objective, text)
    if units is None and len(numbers) < count:
        session.note(
            f"{main_term(objective).layers[0]} has {count} units; rendering the first {len(numbers)} (all for all of them)"
        )
    return numbers


def units_text(units: Sequence[int]) -> str:
    """Units as a request writes them.

    >>> units_text((0, 1, 2)), units_text((3, 7))
    ('0:3', '3,7')
    """
    first, end = units[0], units[-1] + 1
    return f"{first}:{end}" if len(units) > 2 and tuple(units) == tuple(range(first, end)) else ",".join(map(str, units))


def job_of(
    checkpoint: Checkpoint, data: DataSet | None, recipe: Recipe, objective: Objective, units: Sequence[int], *,
    seeds: Sequence[int], batch_size: int | None = None, negative: bool = False, start: str | None = None, frames: int = 0,
) -> RenderJob:  # fmt: skip
    """What is rendered of a checkpoint; ``ValueError`` where it cannot take images of the recipe's size."""
    own = checkpoint.info.input_shape
    shape = own if recipe.size is None else (own[0], recipe.size, recipe.size)
    if shape != own:
        check_input_size(checkpoint, objective, shape)
    return RenderJob(
        recipe=recipe, objective=objective, units=tuple(units), seeds=tuple(seeds), sign=-1 if negative else 1,
        batch_size=batch_size,
        start=None if start is None else reference_image(start, shape), start_reference=start or "",
        start_sha256="" if start is None else reference_sha256(start),
        data_share=1.0 if data is None else data.saturated_share,
        references=sources(objective, recipe), frames=frames,
    )  # fmt: skip


def folder_for(
    command: str, request: Rendering, resolved: Rendering, job: RenderJob, session: Session,
    identity: dict[str, Any] | None = None,
) -> RunFolder:  # fmt: skip
    """The run folder of a job's pictures; run.json holds the request as it was typed and as it was resolved."""
    compute = session.compute(request.precision)
    record: dict[str, Any] = {"request": repr(request), "resolved": repr(resolved)}
    if job.start_reference:
        record["start"] = job.start_reference
    described = job.identity(compute.precision) if identity is None else identity
    return session.folder(command, described, compute, exact=request.exact, **record)


@dataclass(frozen=True)
class UnitRun:
    """A job with the run folder that holds its pictures."""

    run: RunFolder
    job: RenderJob
    compute: Compute
    session: Session
    about: str = ""  # what the progress names beside the checkpoint

    @property
    def folder(self) -> Path:
        return self.run.folder

    def rendered(self, jobs: Sequence[tuple[Checkpoint, RenderJob]]) -> Iterator[Row]:
        """All rows of the jobs: of each job those that the folder holds, then the others as they are rendered."""
        note_other_classes([checkpoint for checkpoint, _ in jobs], self.job, self.session)
        for checkpoint, job in jobs:
            _check_units(checkpoint, job)
            self.session.note_dictionary(checkpoint, job.layer)
            self.session.remember(self.run, checkpoint, checkpoint_facts(checkpoint))
            restate(self.run, checkpoint, job)
            wanted = set(job.keys(checkpoint))
            yield from (row for row in self.run.rows() if picture_key(row) in wanted)
            todo = len(missing(self.run, checkpoint, job))
            task = f"{checkpoint.name} {self.about}".rstrip() + (", negated" if job.sign < 0 else "")
            for done, row in enumerate(render_into(self.run, checkpoint, job, self.compute) if todo else (), 1):
                self.session.progress(task, done, todo)
                yield row

    def alone(self) -> UnitRun | None:
        """The same for the one process that goes on when all pictures are there; None in the others."""
        return replace(self, compute=self.compute.alone()) if self.run.writes else None

    def render_for_clarity(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Render what the scores need besides."""
        for _ in self.rendered(scoring_jobs(checkpoints, self.job)):
            pass

    def clarity(
        self, checkpoints: Sequence[Checkpoint], data: DataSet | None, judges: Sequence[Judge], query_images: int,
        references: Sequence[Checkpoint] = (),
    ) -> Clarity:  # fmt: skip
        """Score the pictures; `render_for_clarity` has made them."""
        scores, scales, job = {}, {}, self.job
        for judge in judges:
            scores[judge.name] = score_run(
                self.run, checkpoints, job, judge, data, self.compute, references, query_images=query_images
            )
            if isinstance(main_term(job.objective), Logit) and (scale := scale_for(self.run, judge, data)) is not None:
                scales[judge.name] = scale
        families = {judge.name: judge.family or judge.name for judge in judges}
        natural = {
            one.name: natural_clarity(
                {name: _there(own[one.name].transfer) for name, own in scores.items()}, scales, families, job.units
            )
            for one in [*checkpoints, *references]
        }
        return Clarity(scores, scales, {name: value for name, value in natural.items() if value is not None})


def _there(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def find_judges(
    checkpoints: Sequence[Checkpoint], data: DataSet | None, request: UnitPictures, objective: Objective, compute: Compute,
    session: Session,
) -> list[Judge]:  # fmt: skip
    """The judges for these checkpoints, or none with a note that says why."""
    if not needs_unit(objective):
        session.note(f"clarity is not scored: {objective} asks for no unit that pictures could show")
        return []
    about = checkpoints[0].info
    name = about.data if data is None else data.name
    if data is None and not (name and isinstance(main_term(objective), Logit)):
        session.note("clarity is not scored: it needs the data set's images; name the data set")
        return []
    shape, classes = (about.input_shape, about.classes) if data is None else (data.shape, data.classes)
    others = [one.name for one in checkpoints if one.info.input_shape != shape or len(one.info.classes) != len(classes)]
    if others:
        session.note(f"clarity is not scored: {', '.join(others)} and {name} differ in image shape or classes")
        return []
    usual = default_judges(name, about.classes, [one.info.data for one in checkpoints])[:1]
    refs, independent = request.judge or usual, request.judge_independent
    judges = judges_for(name, checkpoints, compute, refs, builtin=False, typed=True, independent=independent)
    if not judges:
        session.note(f"clarity is not scored: there is no built-in judge for {name}; name a judge")
    elif data is None:
        session.note(f"clarity without the images of {name}: no two-alternative choice, no natural reference")
    for judge in judges:
        if judge.columns is not None:
            session.note(f"the judge {judge.name} knows {len(judge.columns)} of its classes by these names")
    if judges and of_imagenet(about.classes) and usual and usual[0] not in LITE and not installed_lite():
        session.note(f"the built-in judges see less than ImageNet's networks, which this data set could have: {INSTALL_LITE}")
    return judges


def note_other_classes(checkpoints: Sequence[Checkpoint], job: RenderJob, session: Session) -> None:
    """Say where one unit number stands for different classes of the checkpoints, which are shown under one number."""
    if not isinstance(main_term(job.objective), Logit):
        return
    first, *others = checkpoints
    for other in others:
        for unit in job.units:
            one, two = (c.info.classes[unit] if unit < len(c.info.classes) else str(unit) for c in (first, other))
            if one.casefold() != two.casefold() and not {one, two} & {str(unit)}:
                session.note(
                    f"unit {unit} is {one!r} in {first.name} and {two!r} in {other.name}: pictures of one number show different "
                    "classes; compare checkpoints with the same order of classes"
                )
                break


def _check_units(checkpoint: Checkpoint, job: RenderJob) -> None:
    if not needs_unit(job.objective) or isinstance(main_term(job.objective), Direction):
        return
    chosen = layer_of(checkpoint.net(), checkpoint.info.input_shape, job.layer)
    too_far = [unit for unit in job.units if unit >= chosen.units]
    if too_far:
        there = f"which has {chosen.units} (0 to {chosen.units - 1})"
        raise ValueError(f"no unit {too_far[0]} in layer {chosen.name} of {checkpoint.name}, {there}")
