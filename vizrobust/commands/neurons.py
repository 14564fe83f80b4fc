"""`neurons`: what excites a network's units, rendered, with natural exemplars and, by a judge, their clarity."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from vizrobust.commands import unit_pictures
from vizrobust.commands.picture_report import PictureReport
from vizrobust.commands.unit_tables import clarity_rows, difference_table, natural_table, unit_table
from vizrobust.data import DataSet
from vizrobust.features import Logit, Objective, RenderJob, diverse, main_term, needs_unit
from vizrobust.features.exemplar_runs import ImageSource, exemplars_into, ranking_measure
from vizrobust.features.exemplars import check_images
from vizrobust.models import SWEEP, Checkpoint
from vizrobust.report import write_gallery
from vizrobust.requests import ParameterError
from vizrobust.requests.pictures import NeuronsRequest
from vizrobust.results import Event, Note
from vizrobust.runs import Row
from vizrobust.session import Session

# Render steps of the request without a model.
FIRST_LOOK = 100


def resolve(
    request: NeuronsRequest, checkpoints: Sequence[Checkpoint], data: DataSet | None, session: Session
) -> tuple[NeuronsRequest, RenderJob]:
    """The request with every open field filled, and what is rendered of each checkpoint.

    Without a model it is a first look at the built-in sweep: its class units in one batch without repeats, and half the
    usual steps, which takes under half a minute.
    """
    first = checkpoints[0]
    if not request.models:
        size = request.batch_size or len(first.info.classes)
        steps = FIRST_LOOK if request.steps is None and request.recipe == NeuronsRequest().recipe else request.steps
        request = replace(request, models=SWEEP, batch_size=size, steps=steps)
    objective = unit_pictures.objective_of(first, request.layer, request.neuron, request.objective)
    units = unit_pictures.units_asked(first, objective, request.units, session)
    recipe = unit_pictures.recipe_of(request, first, data, session)
    job = unit_pictures.job_of(
        first, data, recipe, objective, units, seeds=range(request.seed, request.seed + request.seeds),
        batch_size=request.batch_size, negative=request.negative, start=request.start,
        frames=min(request.frames, recipe.steps + 1) if request.movie else 0,
    )  # fmt: skip
    if request.diversity > 1:
        job = diverse(job, first, request.diversity)
    text = unit_pictures.units_text(job.units) if needs_unit(job.objective) else None
    name = None if data is None else data.name
    return replace(
        request, recipe=recipe, steps=recipe.steps, size=recipe.size, objective=job.objective, units=text, data=name
    ), job


def neurons(request: NeuronsRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """Render the units of every checkpoint of the request, score them where there is a judge, and write the gallery."""
    checkpoints = unit_pictures.checkpoints_of(request.models or SWEEP, session, request.data)
    loaded = session.maybe_data_for(checkpoints[0], request.data)
    resolved, job = resolve(request, checkpoints, loaded, session)
    source = None if request.exemplars is None else exemplar_source(resolved, job.objective, loaded, checkpoints)
    if request.movie and resolved.steps is not None and resolved.steps >= request.frames:
        yield Note(f"the GIFs show {request.frames} of the {resolved.steps + 1} pictures on the way")
    count = len(job.units)
    yield Note(f"{count} unit{'s' if count > 1 else ''} of {job.layer}, {job.objective}, {job.recipe}")
    compute = session.compute(request.precision)
    pictured = unit_pictures.UnitRun(unit_pictures.folder_for("neurons", request, resolved, job, session), job, compute, session)
    # A hidden unit's clarity needs pictures of the negated unit too: twice the work, done where networks are compared.
    judged = len(checkpoints) > 1 or isinstance(main_term(job.objective), Logit)
    judges = unit_pictures.find_judges(checkpoints, loaded, request, job.objective, compute, session) if judged else []
    rows: list[Row] = []
    for row in pictured.rendered([(one, job_) for job_ in signs(request, job) for one in checkpoints]):
        rows.append(row)
        if source is None:
            yield row
    if judges:
        pictured.render_for_clarity(checkpoints)
    finished = pictured.alone()
    if finished is None:
        return PictureReport(resolved, rows)
    if source is not None and request.exemplars is not None:
        rows = with_exemplars(rows, add_exemplars(finished, checkpoints, source, request.exemplars))
        yield from rows
    tables, numbers, scores, judge = [], [], None, ""
    if judges:
        clarity = finished.clarity(checkpoints, loaded, judges, request.query_images)
        numbers = clarity_rows(clarity, checkpoints, job.units)
        judge, scores = clarity.first, clarity.scores[clarity.first]
        tables += natural_table(clarity, checkpoints)
        if len(checkpoints) > 1:
            tables += [difference_table(own, checkpoints, name) for name, own in clarity.scores.items()]
    tables.insert(0, unit_table(rows, checkpoints, job, scores, judge, request.sort))
    page = write_gallery(finished.folder, [finished.folder], tables)
    yield from numbers
    unfit = [row for row in rows if row["status"] != "ok"]
    for status in sorted({row["status"] for row in unfit}):
        where = ", ".join(f"{row['checkpoint']} unit {row['unit']}" for row in unfit if row["status"] == status)
        yield Note(f"{status}: {where}")
    if session.argv:
        yield Note(f"made by: {session.argv}")
    return PictureReport(
        resolved, [*rows, *numbers], tables, [("gallery", page)], page.parent / "contact-sheet.png", finished.folder
    )


def signs(request: NeuronsRequest, job: RenderJob) -> list[RenderJob]:
    """The job, and with `both` also what its units dislike."""
    return [job, replace(job, sign=-job.sign)] if request.both else [job]


def exemplar_source(
    request: NeuronsRequest, objective: Objective, data: DataSet | None, checkpoints: Sequence[Checkpoint]
) -> ImageSource:
    """Where the exemplars come from; refused, before anything is rendered, where they cannot be found."""
    if data is None:
        raise ParameterError("{exemplars} needs natural images; name a data set with {data} (vizrobust list data)")
    ranking_measure(objective)
    source = ImageSource(data, most=request.exemplar_images)
    for checkpoint in checkpoints:
        check_images(source.images, request.exemplars or 1, checkpoint.info.input_shape)
    return source


def add_exemplars(pictured: unit_pictures.UnitRun, checkpoints: Sequence[Checkpoint], source: ImageSource, k: int) -> list[Row]:
    """Find and save the exemplars of every checkpoint's units; returns their rows."""
    rows, total = [], len(source.images)
    for checkpoint in checkpoints:
        done = 0

        def advance(count: int, name: str = checkpoint.name) -> None:
            nonlocal done
            done += count
            pictured.session.progress(f"{name}, natural images", done, total)

        rows += exemplars_into(
            pictured.run, checkpoint, pictured.job.objective, pictured.job.units, source, k, pictured.compute, advance
        )
    return rows


def with_exemplars(rows: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """Rows of pictures, each with both ends of its unit's images under ``exemplars``."""
    by_unit: dict[tuple[str, int], dict[int, Row]] = {}
    for row in found:
        by_unit.setdefault((row["checkpoint"], row["unit"]), {})[row["sign"]] = row

    def added(row: Row) -> Row:
        ends = by_unit[row["checkpoint"], row["unit"]]
        about = {key: ends[1][key] for key in ("data", "split", "n", "of", "map")}
        return {**row, "exemplars": {**about, "most": ends[1]["images"], "least": ends[-1]["images"]}}

    return [added(row) for row in rows]
