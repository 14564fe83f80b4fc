"""`spritemap` and `atlas`: all units of a layer on one sheet, and the activations of many images as an atlas."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from vizrobust.commands import unit_pictures
from vizrobust.commands.picture_report import PictureReport
from vizrobust.features import check_input_size, objective_for
from vizrobust.features.atlas import Atlas, Plan, atlas_into, atlas_layout, atlas_rows, missing_cells
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.models import Checkpoint
from vizrobust.report.sheets import about_atlas, atlas_sheet, beside, facts_of, spritemap_sheet
from vizrobust.requests import ParameterError
from vizrobust.requests.pictures import AtlasRequest, SpritemapRequest
from vizrobust.results import Event, Note
from vizrobust.runs import RunFolder, slug
from vizrobust.session import Session

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
