"""`microscope`: a site of static pages about the units of checkpoints, from a run folder that grows."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from vizrobust.commands.masking import masking
from vizrobust.commands.microscope_facts import (
    attribution_facts,
    clarity_facts,
    class_facts,
    layer_facts,
    masking_facts,
    matching_facts,
    network_facts,
    word_facts,
)
from vizrobust.commands.pictures import PictureReport
from vizrobust.commands.unit_pictures import (
    UnitRun,
    checkpoints_of,
    find_judges,
    job_of,
    objective_of,
    recipe_of,
    units_asked,
    units_text,
)
from vizrobust.commands.unit_tables import WordLabels
from vizrobust.data import DataSet
from vizrobust.features import RenderJob, missing
from vizrobust.features.exemplar_runs import ImageSource, exemplars_into
from vizrobust.features.exemplars import check_images
from vizrobust.models import LOGITS, Checkpoint
from vizrobust.report.microscope import read_facts
from vizrobust.report.microscope_pages import write_microscope
from vizrobust.requests.evaluation import MaskingRequest
from vizrobust.requests.pictures import MicroscopeRequest
from vizrobust.results import Event, Note, Row, answer_of
from vizrobust.runs import RunFolder
from vizrobust.session import Session

# What a run's pictures depend on and each layer has for itself.
GROWS = ("objective", "references")


def microscope(request: MicroscopeRequest, session: Session) -> Generator[Event, None, PictureReport]:
    """Render the units of every layer and checkpoint of the request, find out about them, and write the site's pages."""
    words = None if request.clip is None else WordLabels(request.words, request.clip, request.seed, session)
    checkpoints = checkpoints_of(request.models, session, request.data)
    data = session.maybe_data_for(checkpoints[0], request.data)
    source = None if data is None else ImageSource(data, most=request.exemplar_images)
    if source is None:
        yield Note("without data there are no natural images, activations and clarity; name a data set")
    else:
        for checkpoint in checkpoints:
            check_images(source.images, request.exemplars, checkpoint.info.input_shape)
    resolved, jobs = resolve(request, checkpoints, data, session)
    compute = session.compute(request.precision)
    identity = {key: value for key, value in jobs[0].identity(compute.precision).items() if key not in GROWS}
    run = session.folder("microscope", identity, compute, exact=request.exact, request=repr(request), resolved=repr(resolved))
    yield Note(plan(run, checkpoints, jobs, request))
    rows: list[Row] = []
    page = run.folder / "index.html"
    for checkpoint in checkpoints:
        network_facts(run, checkpoint)
        if data is not None and request.adversarial and len(data.classes) == len(checkpoint.info.classes):
            own = session.data_for(checkpoint, data)

            def advance(done: int, total: int, name: str = checkpoint.name) -> None:
                session.progress(f"{name}, adversarial examples", done, total)

            class_facts(run, checkpoint, own, request.adversarial, request.seed, compute, advance)
    _diagnose(run, request, checkpoints, data, session)
    runs = [UnitRun(run, job, compute, session, about=job.layer) for job in jobs]
    for pictured in runs:
        for row in pictured.rendered([(one, signed) for signed in signs(request, pictured.job) for one in checkpoints]):
            rows.append(row)
            yield row
        if source is not None:
            yield Note(f"{pictured.job.layer}: what the units do on {len(source.images):,} natural images")
            learn(pictured, checkpoints, source, request, words)
        page = write_microscope(run.folder)  # what there is can be looked at while the next layer is rendered
    for pictured in runs:
        layer, judged = pictured.job.layer, data is not None and (not request.likes or pictured.job.layer == LOGITS)
        judges = find_judges(checkpoints, data, request, pictured.job.objective, compute, session) if judged else []
        if data is not None and judges:
            yield Note(f"{layer}: clarity by {judges[0].name}")
            clarity_facts(pictured, checkpoints, data, judges, request.query_images)
            page = write_microscope(run.folder)
    if session.argv:
        yield Note(f"made by: {session.argv}")
    return PictureReport(resolved, rows, (), [("site", page)], None, run.folder)


def _diagnose(
    run: RunFolder, request: MicroscopeRequest, checkpoints: Sequence[Checkpoint], data: DataSet | None, session: Session
) -> None:
    """Diagnose the gradients of each checkpoint whose verdict on so many images is not there yet."""
    for checkpoint in checkpoints if request.masking and data is not None else ():
        if read_facts(run.folder, f"masking-{checkpoint.id}.json").get("n", 0) < request.masking:
            asked = MaskingRequest(models=(checkpoint,), data=data, images=request.masking, seed=request.seed)
            inner = Session(device=session.device, memory=True, report=session.report)
            report, _ = answer_of(masking(asked, inner))
            masking_facts(run, checkpoint, report.found[0])


def resolve(
    request: MicroscopeRequest, checkpoints: Sequence[Checkpoint], data: DataSet | None, session: Session
) -> tuple[MicroscopeRequest, list[RenderJob]]:
    """The request with every open field filled, and what is rendered of each layer."""
    first, recipe, jobs = checkpoints[0], recipe_of(request, checkpoints[0], data, session), []
    for layer in request.layers or (LOGITS,):
        objective = objective_of(first, layer)
        units = units_asked(first, objective, request.units, session)
        seeds = range(request.seed, request.seed + request.seeds)
        jobs.append(job_of(first, data, recipe, objective, units, seeds=seeds, batch_size=request.batch_size))
    text = request.units if isinstance(request.units, str) else units_text(jobs[0].units)
    return replace(
        request, layers=tuple(job.layer for job in jobs), recipe=recipe, steps=recipe.steps, size=recipe.size, units=text,
        data=None if data is None else data.name,
    ), jobs  # fmt: skip


def signs(request: MicroscopeRequest, job: RenderJob) -> list[RenderJob]:
    """What the units like, and unless that is all that is asked for, what they dislike."""
    return [job] if request.likes else [job, replace(job, sign=-1)]


def plan(run: RunFolder, checkpoints: Sequence[Checkpoint], jobs: Sequence[RenderJob], request: MicroscopeRequest) -> str:
    """How many units and pictures there are, how many are missing, and how long those take at the speed until now."""
    units = sum(len(job.units) for job in jobs) * len(checkpoints)
    pairs = [(one, signed) for job in jobs for signed in signs(request, job) for one in checkpoints]
    wanted = sum(len(job.units) * len(job.seeds) for _, job in pairs)
    todo = sum(len(missing(run, one, job)) for one, job in pairs)
    seconds = [row["seconds"] for row in run.rows() if row.get("seconds") is not None]
    counts = {"unit": units, "layer": len(jobs), "checkpoint": len(checkpoints)}
    counted = [f"{count:,} {word}{'s' * (count != 1)}" for word, count in counts.items()]
    text = f"{counted[0]} in {counted[1]} of {counted[2]}: {wanted:,} pictures, {todo:,} to render"
    if todo and seconds:
        text += f", about {max(1, round(todo * sum(seconds) / len(seconds) / 60)):,} minutes"
    return text


def learn(
    pictured: UnitRun,
    checkpoints: Sequence[Checkpoint],
    source: ImageSource,
    request: MicroscopeRequest,
    words: WordLabels | None,
) -> None:
    """Exemplars and facts of a layer of every checkpoint, and which units match."""
    run, job = pictured.run, pictured.job
    for checkpoint in checkpoints:
        done = 0

        def advance(count: int, name: str = checkpoint.name) -> None:
            nonlocal done
            done += count
            pictured.session.progress(f"{name} {job.layer}, natural images", done, len(source.images))

        found = exemplars_into(run, checkpoint, job.objective, job.units, source, request.exemplars, pictured.compute, advance)
        done = 0
        layer_facts(run, checkpoint, job, source, found, pictured.compute, advance)
        if words is not None:
            word_facts(run, checkpoint, job, source, words, pictured.compute)
        if not request.likes:
            attribution_facts(run, checkpoint, job, source, found, pictured.compute)
    matching_facts(run, job.layer)
