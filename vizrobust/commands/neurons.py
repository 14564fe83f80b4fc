"""`neurons`, `spritemap` and `atlas`: what excites the units of a layer, with exemplars and, by a judge, their clarity."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from vizrobust.commands import unit_pictures
from vizrobust.commands.pictures import PictureReport
from vizrobust.commands.unit_tables import clarity_rows, difference_table, natural_table, unit_table
from vizrobust.data import DataSet
from vizrobust.features import Logit, Objective, RenderJob, check_input_size, diverse, main_term, needs_unit, objective_for
from vizrobust.features.atlas import Atlas, Plan, atlas_into, atlas_layout, atlas_rows, missing_cells
from vizrobust.features.exemplar_runs import ImageSource, exemplars_into, ranking_measure
from vizrobust.features.exemplars import check_images
from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.models import SWEEP, Checkpoint
from vizrobust.report import write_gallery
from vizrobust.report.sheets import about_atlas, atlas_sheet, beside, facts_of, spritemap_sheet
from vizrobust.requests import ParameterError
from vizrobust.requests.pictures import AtlasRequest, NeuronsRequest, SpritemapRequest
from vizrobust.results import Event, Note
from vizrobust.runs import Row, RunFolder, slug
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


# Without a number an atlas is of at most so many images.
MOST_IMAGES = 2000


def spritemap(request: SpritemapRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """Render the units of a layer of every checkpoint and draw a sheet for each checkpoint."""
    checkpoints = unit_pictures.checkpoints_of(request.models, session, request.data)
    loaded = session.maybe_data_for(checkpoints[0], request.data)
    recipe, jobs = unit_pictures.recipe_of(request, checkpoints[0], loaded, session), []
    for checkpoint in checkpoints:
        objective = unit_pictures.objective_of(checkpoint, request.layer)
        units = unit_pictures.units_asked(checkpoint, objective, request.units, session)
        job = unit_pictures.job_of(
            checkpoint, loaded, recipe, objective, units, seeds=(request.seed,), batch_size=request.batch_size,
            negative=request.negative,
        )  # fmt: skip
        yield Note(f"{len(units)} units of {request.layer} of {checkpoint.name}, {job.objective}, {job.recipe}")
        jobs.append((checkpoint, job))
    name = None if loaded is None else loaded.name
    units_ = unit_pictures.units_text(max((job.units for _, job in jobs), key=len))
    resolved = replace(request, recipe=recipe, steps=recipe.steps, size=recipe.size, units=units_, data=name)
    run = unit_pictures.folder_for("spritemap", request, resolved, jobs[0][1], session)
    rows = []
    for row in unit_pictures.UnitRun(run, jobs[0][1], session.compute(request.precision), session).rendered(jobs):
        rows.append(row)
        yield row
    sheets = []
    for checkpoint in checkpoints:
        own = [row for row in rows if row["checkpoint"] == checkpoint.id]
        file = f"{checkpoint.id}-{slug(request.layer)}{'-neg' if request.negative else ''}-s{request.seed}.png"
        sheet = spritemap_sheet(
            run.folder / file, run.folder, own, facts_of(checkpoint), order=request.sort, columns=request.columns,
            command=session.argv,
        )  # fmt: skip
        sheets.append(("sheet", sheet))
    if session.argv:
        yield Note(f"made by: {session.argv}")
    return PictureReport(resolved, rows, (), sheets, sheets[0][1], run.folder)


def atlas(request: AtlasRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """Lay out the activations of many images, render the cells, and draw a sheet for each checkpoint."""
    checkpoints = unit_pictures.checkpoints_of(request.models, session, request.data)
    resolved, plan = resolve_atlas(request, checkpoints, session)
    compute, shown = session.compute(request.precision), plan.atlas
    yield Note(f"{shown.images} images of {plan.source.data.name} ({request.split}), {shown}, {plan.recipe}")
    identity = plan.identity(compute.precision)
    run = session.folder("atlas", identity, compute, exact=request.exact, request=repr(request), resolved=repr(resolved))
    for checkpoint in checkpoints:
        _fill_atlas(run, checkpoint, plan, session, request.precision)
    rows, sheets = [], []
    for checkpoint in checkpoints:
        own, facts = atlas_rows(run, checkpoint), run.info["atlas"][checkpoint.id]
        about = about_atlas(shown, facts, identity["images"], own[0], [one.name for one in plan.together])
        file = run.folder / f"{checkpoint.id}-{slug(request.layer)}.png"
        sheets.append(("sheet", atlas_sheet(file, run.folder, own, facts_of(checkpoint), about, shown.grid, session.argv)))
        rows += own
        yield from own
    if request.aligned:
        sheets.insert(0, ("aligned", beside(run.folder / "aligned.png", [file for _, file in sheets], session.argv)))
    if session.argv:
        yield Note(f"made by: {session.argv}")
    return PictureReport(resolved, rows, (), sheets, sheets[0][1], run.folder)


def resolve_atlas(request: AtlasRequest, checkpoints: list[Checkpoint], session: Session) -> tuple[AtlasRequest, Plan]:
    """The request with every open field filled, and the plan of the atlas."""
    first = checkpoints[0]
    if request.data is None and not first.info.data:
        raise ParameterError("%r does not record what it was trained on; give {data} (vizrobust list data)", first.name)
    loaded = session.dataset(first.info.data if request.data is None else request.data, typed=request.data is not None)
    source = ImageSource(loaded, request.split)
    n = min(MOST_IMAGES, len(source.whole)) if request.images is None else request.images
    atlas = Atlas(request.layer, request.grid, n, request.min_activations, request.layout, request.whiten, seed=request.seed)
    atlas.sampled_images(source.whole.labels)
    objective, *_ = [objective_for(checkpoint, request.layer)[0] for checkpoint in checkpoints]
    recipe = unit_pictures.recipe_of(request, first, loaded, session)
    if recipe.size is not None:
        check_input_size(first, objective, (first.info.input_shape[0], recipe.size, recipe.size))
    resolved = replace(request, recipe=recipe, steps=recipe.steps, size=recipe.size, images=n, data=loaded.name)
    return resolved, Plan(atlas, source, recipe, request.batch_size, tuple(checkpoints) if request.aligned else ())


def _fill_atlas(run: RunFolder, checkpoint: Checkpoint, plan: Plan, session: Session, precision: str) -> None:
    """Compute and render what the folder does not hold yet of a checkpoint's atlas."""
    compute, seen = session.compute(precision), 0
    session.remember(run, checkpoint, checkpoint_facts(checkpoint))
    session.note_dictionary(checkpoint, plan.atlas.layer)

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        session.progress(f"{checkpoint.name}, activations", seen, plan.atlas.images * max(1, len(plan.together)))

    there = atlas_layout(run, checkpoint, plan, compute, advance)
    todo = len(missing_cells(run, checkpoint, there))
    for done, _ in enumerate(atlas_into(run, checkpoint, plan, there, compute) if todo else (), 1):
        session.progress(f"{checkpoint.name}, cells", done, todo)
