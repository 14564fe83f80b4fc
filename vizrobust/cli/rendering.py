"""What `neurons` and `compare` share: from options to a request, its pictures in a run folder, their clarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizrobust.clarity import NATURAL_IMAGES, RANDOM_NETWORK, PictureScores, score_run, scoring_jobs
from vizrobust.cli.output import command_line, progress, say
from vizrobust.compute import Compute, versions
from vizrobust.features import (
    Direction,
    Logit,
    Objective,
    RenderJob,
    check_input_size,
    diverse,
    main_term,
    missing,
    needs_unit,
    objective_for,
    parse_objective,
    parse_recipe,
    picture_key,
    reference_image,
    reference_sha256,
    render_into,
    sources,
    units_of,
    with_data_statistics,
)
from vizrobust.intervals import SCOPE, Difference, paired
from vizrobust.models import layer as layer_of
from vizrobust.results import Table
from vizrobust.runs import Row, RunFolder, default_folder

FRAMES = 60

if TYPE_CHECKING:
    from vizrobust.clarity import Judge
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint


def asked_for(
    checkpoint: Checkpoint, layer: str, units: str | None, neuron: str | None = None, objective_text: str | None = None
) -> tuple[Objective, tuple[int, ...]]:
    """The objective and the units that the options name."""
    if objective_text is not None:
        objective = parse_objective(objective_text, typed=True)
        for name in objective.layers:
            layer_of(checkpoint.net(), checkpoint.info.input_shape, name)
    else:
        objective, _ = objective_for(checkpoint, layer, _position(neuron))
    numbers, count = units_of(checkpoint, objective, units)
    if units is None and len(numbers) < count:
        say(
            f"{main_term(objective).layers[0]} has {count} units; "
            f"rendering the first {len(numbers)} (--units all for all of them)"
        )
    return objective, numbers


def request_for(
    checkpoint: Checkpoint,
    data: DataSet | None,
    objective: Objective,
    units: tuple[int, ...],
    *,
    negative: bool = False,
    recipe_text: str = "plain",
    steps: int | None = None,
    size: int | None = None,
    start: str | None = None,
    seeds: Sequence[int] = (0,),
    batch_size: int | None = None,
    diversity: int = 1,
    movie: bool = False,
) -> RenderJob:
    """The request that the options describe."""
    if not seeds or (batch_size is not None and batch_size < 1):
        raise ValueError(f"--seeds and --batch-size must be at least 1, got {len(seeds)} and {batch_size}")
    recipe = with_data_statistics(parse_recipe(recipe_text, typed=True), data)
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps, size=recipe.size if size is None else size)
    own = checkpoint.info.input_shape
    shape = own if recipe.size is None else (own[0], recipe.size, recipe.size)
    if shape != own:
        check_input_size(checkpoint, objective, shape)
    request = RenderJob(
        recipe=recipe,
        objective=objective,
        units=units,
        seeds=tuple(seeds),
        sign=-1 if negative else 1,
        batch_size=batch_size,
        start=None if start is None else reference_image(start, shape),
        start_reference=start or "",
        start_sha256="" if start is None else reference_sha256(start),
        data_share=1.0 if data is None else data.saturated_share,
        references=sources(objective, recipe),
        frames=min(FRAMES, recipe.steps + 1) if movie else 0,
    )
    if movie and recipe.steps >= FRAMES:
        say(f"the GIFs show {FRAMES} of the {recipe.steps + 1} pictures on the way")
    return diverse(request, checkpoint, diversity) if diversity > 1 else request


def made_with(compute: Compute, request: RenderJob) -> dict[str, Any]:
    """What run.json and every picture record besides the identity."""
    record = {"argv": command_line(), "versions": versions(), "threads": compute.threads, "device": compute.device.type}
    return {**record, "start": request.start_reference} if request.start_reference else record


@dataclass(frozen=True)
class Pictured:
    """A request with the run folder that holds its pictures."""

    run: RunFolder
    request: RenderJob
    compute: Compute

    @staticmethod
    def open(command: str, request: RenderJob, compute: Compute, out: str | None) -> Pictured:
        identity = request.identity(compute.precision)
        folder = out or default_folder(command, identity)
        return Pictured(RunFolder(folder, command, identity, made_with(compute, request), compute.processes), request, compute)

    @property
    def folder(self) -> Path:
        return self.run.folder

    def render(self, jobs: Sequence[tuple[Checkpoint, RenderJob]], quiet: bool) -> list[Row]:
        """Render what is missing of each job; returns all rows of the jobs, old and new."""
        with progress(quiet) as bars:
            for checkpoint, request in jobs:
                _check_units(checkpoint, request)
                todo = len(missing(self.run, checkpoint, request))
                if todo:
                    task = bars.add_task(checkpoint.name + (", negated" if request.sign < 0 else ""), total=todo)
                    for _ in render_into(self.run, checkpoint, request, self.compute):
                        bars.advance(task)
        wanted = {key for checkpoint, request in jobs for key in request.keys(checkpoint)}
        return [row for row in self.run.rows() if picture_key(row) in wanted]

    def alone(self) -> Pictured | None:
        """The same for the one process that goes on when all pictures are there; None in the others."""
        return replace(self, compute=self.compute.alone()) if self.run.writes else None

    def render_for_clarity(self, checkpoints: Sequence[Checkpoint], quiet: bool) -> None:
        """Render what the scores need besides."""
        self.render(scoring_jobs(checkpoints, self.request), quiet)

    def clarity(
        self, checkpoints: Sequence[Checkpoint], data: DataSet | None, judge: Judge, quiet: bool,
        references: Sequence[Checkpoint] = (),
    ) -> dict[str, PictureScores]:  # fmt: skip
        """Render what the scores need besides, and score."""
        self.render_for_clarity([*checkpoints, *references], quiet)
        return score_run(self.run, checkpoints, self.request, judge, data, self.compute, references)


def find_judge(
    checkpoints: Sequence[Checkpoint], data: DataSet | None, ref: str | None, compute: Compute, objective: Objective
) -> Judge | None:
    """The judge for these checkpoints, or None with a note that says why there is none."""
    from vizrobust.clarity import judge_for

    if not needs_unit(objective):
        say(f"clarity is not scored: {objective} asks for no unit that pictures could show")
        return None
    about = checkpoints[0].info
    name = about.data if data is None else data.name
    if data is None and not (name and isinstance(main_term(objective), Logit)):
        say("clarity is not scored: it needs the data set's images (--data REF)")
        return None
    shape, classes = (about.input_shape, about.classes) if data is None else (data.shape, data.classes)
    others = [one.name for one in checkpoints if one.info.input_shape != shape or len(one.info.classes) != len(classes)]
    if others:
        say(f"clarity is not scored: {', '.join(others)} and {name} differ in image shape or classes")
        return None
    judge = judge_for(name, checkpoints, compute, ref, typed=True)
    if judge is None:
        say(f"clarity is not scored: there is no built-in judge for {name}; name one with --judge REF")
    elif data is None:
        say(f"clarity without the images of {name}: no two-alternative choice, no natural reference")
    return judge


def clarity_rows(
    scores: dict[str, PictureScores], checkpoints: Sequence[Checkpoint], units: Sequence[int], judge: str
) -> list[Row]:
    """The scores and differences as numbers, for --json: one row for each set of pictures, one for each difference."""
    rows: list[Row] = [{"pictures": name, "judge": judge, "units": list(units), **asdict(one)} for name, one in scores.items()]
    for other, base, differences in _differences(scores, checkpoints):
        found = {measure: asdict(difference) for measure, difference in differences.items()}
        rows.append({"difference": [other, base], "judge": judge, "scope": SCOPE, **found})
    return rows


def difference_table(scores: dict[str, PictureScores], checkpoints: Sequence[Checkpoint], judge: str) -> Table:
    """The paired difference of each checkpoint from the first."""
    rows = [
        [f"{other} - {base}", *map(str, differences.values()), str(len(scores[other].forced_choice))]
        for other, base, differences in _differences(scores, checkpoints)
    ]
    header = ["difference", "transfer, log-odds", "recognised, share", "two-alternative AUC", "units"]
    note = f"judge {judge}; mean paired difference with its 95 % t interval {SCOPE}"
    return Table("Clarity: paired differences", header, rows, note)


def _differences(
    scores: dict[str, PictureScores], checkpoints: Sequence[Checkpoint]
) -> list[tuple[str, str, dict[str, Difference]]]:
    """(other, base, difference by measure) for each checkpoint behind the first."""
    base, *others = (asdict(scores[one.name]) for one in checkpoints)
    names = [one.name for one in checkpoints]
    return [
        (name, names[0], {measure: paired(base[measure], other[measure]) for measure in base})
        for name, other in zip(names[1:], others, strict=True)
    ]


def score_table(scores: dict[str, PictureScores], judge: str) -> Table:
    """Means over units, the references last."""

    def mean(values: Sequence[float | None], digits: int) -> str:
        there = [value for value in values if value is not None]
        return f"{sum(there) / len(there):.{digits}f}" if there else "-"

    def last(name: str) -> bool:
        return name == RANDOM_NETWORK or name.startswith(NATURAL_IMAGES)

    rows = [
        [name, mean(one.transfer, 2), mean(one.recognised, 2), mean(one.forced_choice, 3)]
        for name, one in sorted(scores.items(), key=lambda item: last(item[0]))
    ]
    header = ["pictures of", "transfer, log-odds", "recognised, share", "two-alternative AUC"]
    return Table("Clarity", header, rows, f"judge {judge}; means over units; AUC chance .5")


def _check_units(checkpoint: Checkpoint, request: RenderJob) -> None:
    if not needs_unit(request.objective) or isinstance(main_term(request.objective), Direction):
        return
    chosen = layer_of(checkpoint.net(), checkpoint.info.input_shape, request.layer)
    too_far = [unit for unit in request.units if unit >= chosen.units]
    if too_far:
        there = f"which has {chosen.units} (0 to {chosen.units - 1})"
        raise ValueError(f"no unit {too_far[0]} in layer {chosen.name} of {checkpoint.name}, {there}")


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--neuron {text!r} is not a row and a column such as 3,4") from None
    return y, x
