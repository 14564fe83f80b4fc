"""`compare`: checkpoints side by side: recipes, accuracies, pictures and their clarity."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from vizrobust.attacks import Attack
from vizrobust.clarity import RANDOM_NETWORK
from vizrobust.commands import unit_pictures
from vizrobust.commands.pictures import PictureReport
from vizrobust.commands.targets import attacks_for
from vizrobust.commands.unit_tables import clarity_rows, difference_table, natural_table, score_table
from vizrobust.data import DataSet, head
from vizrobust.features import RenderJob
from vizrobust.features.picture_runs import checkpoint_facts
from vizrobust.intervals import mcnemar, worst_class
from vizrobust.models import Checkpoint
from vizrobust.report import write_gallery
from vizrobust.requests import ParameterError
from vizrobust.requests.evaluation import AttackRequest
from vizrobust.requests.pictures import CompareRequest
from vizrobust.results import Event, Note, Row, Table, interval_text, percent
from vizrobust.robustness import BATCH_SIZE, RobustAccuracy
from vizrobust.robustness.evaluation_runs import evaluated, identity
from vizrobust.session import Session

Evaluations = Sequence[tuple[Checkpoint, RobustAccuracy]]


@dataclass(frozen=True, repr=False)
class Comparison(PictureReport):
    """What `compare` found: `evaluations` under the attack, one for each checkpoint, besides rows, tables and pictures."""

    evaluations: Evaluations = ()

    def __repr__(self) -> str:
        names = " and ".join(str(row["checkpoint"]) for row in self.found if "weights_sha256" in row)
        shares = ", ".join(percent(result.accuracy) for _, result in self.evaluations)
        attack = f" under {self.evaluations[0][1].attack!r}" if self.evaluations else ""
        return f"Comparison of {names}{f': {shares}{attack}' if shares else ''}"


def resolve(
    request: CompareRequest, checkpoints: Sequence[Checkpoint], data: DataSet, attack: Attack | None, session: Session
) -> tuple[CompareRequest, RenderJob]:
    """The request with every open field filled, and what is rendered of each checkpoint."""
    first = checkpoints[0]
    objective = unit_pictures.objective_of(first, request.layer)
    units = unit_pictures.units_asked(first, objective, request.units, session)
    recipe = unit_pictures.recipe_of(request, first, data, session)
    seeds = range(request.seed, request.seed + request.seeds)
    job = unit_pictures.job_of(first, data, recipe, objective, units, seeds=seeds, batch_size=request.batch_size)
    return replace(
        request, units=unit_pictures.units_text(units), recipe=recipe, steps=recipe.steps, size=recipe.size, data=data.name,
        attack=request.attack if attack is None else attack,
    ), job  # fmt: skip


def compare(request: CompareRequest, session: Session) -> Generator[Event, None, Comparison]:
    """Attack, render and score the checkpoints of the request, and test the differences from the first."""
    checkpoints = unit_pictures.checkpoints_of(request.models, session, request.data)
    if len(checkpoints) < 2:
        raise ParameterError("{models}: compare needs two or more different checkpoints, got %s", len(checkpoints))
    loaded = session.data_for(checkpoints[0], request.data)
    compute = session.compute(request.precision)
    attack: Attack | None = None
    sets: list[DataSet] = []
    if request.images:
        sets = [session.data_for(checkpoint, loaded) for checkpoint in checkpoints]  # labels in each one's order
        asked = AttackRequest(models=request.models, attacks=(request.attack,), eps=request.eps, norm=request.norm)
        (attack,) = yield from attacks_for(asked, loaded, ())
    resolved, job = resolve(request, checkpoints, loaded, attack, session)
    pictured = unit_pictures.UnitRun(unit_pictures.folder_for("compare", request, resolved, job, session), job, compute, session)
    judges = unit_pictures.find_judges(checkpoints, loaded, request, job.objective, compute, session)
    for _ in pictured.rendered([(checkpoint, job) for checkpoint in checkpoints]):
        pass
    tables, numbers = [recipes(checkpoints)], [{"checkpoint": one.name, **checkpoint_facts(one)} for one in checkpoints]
    found: Evaluations = ()
    if attack is not None:
        found = attacked(checkpoints, sets, attack, request, session)
        accuracies = accuracy_rows(found, loaded)
        tables += accuracy_tables(accuracies)
        numbers += accuracies
    reference = random_reference(checkpoints[0])
    if reference is None:
        yield Note(f"no random network as a reference: {checkpoints[0].name} has parameters that reset_parameters() leaves")
    untrained = [] if reference is None else [reference]
    if judges:
        pictured.render_for_clarity([*checkpoints, *untrained])
    finished = pictured.alone()
    if finished is None:
        return Comparison(resolved, numbers, evaluations=found)
    if judges:
        clarity = finished.clarity(checkpoints, loaded, judges, request.query_images, untrained)
        numbers += clarity_rows(clarity, checkpoints, job.units)
        tables += natural_table(clarity, checkpoints)
        for judge, scores in clarity.scores.items():
            tables += [score_table(scores, judge), difference_table(scores, checkpoints, judge)]
    page = write_gallery(finished.folder, [finished.folder], tables, title=" and ".join(one.name for one in checkpoints))
    yield from numbers
    yield Note("pictures and tables are in the gallery")
    sheet = page.parent / "contact-sheet.png"
    return Comparison(resolved, numbers, tables, [("gallery", page)], sheet, finished.folder, evaluations=found)


def random_reference(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with fresh weights; None where it is a person's own object with parameters that nothing resets."""
    untrained = checkpoint.untrained(RANDOM_NETWORK)
    if not checkpoint.info.arch.startswith("object:"):
        return untrained
    same = (
        not _constant(checkpoint.state[name]) and torch.equal(checkpoint.state[name], untrained.state[name])
        for name, _ in checkpoint.build().named_parameters()
    )
    return None if any(same) else untrained


def _constant(weights: torch.Tensor) -> bool:
    return bool((weights == weights.flatten()[0]).all())


def recipes(checkpoints: Sequence[Checkpoint]) -> Table:
    """How the checkpoints were trained and what their descriptions say of their accuracy."""
    rows = []
    for one in checkpoints:
        info = one.info
        steps = "-" if info.attack_steps is None else str(info.attack_steps)
        rows.append([
            one.name, steps, info.training or "unknown", percent(info.metrics.get("clean")), percent(info.metrics.get("robust")),
        ])  # fmt: skip
    attacks = dict.fromkeys(str(one.info.metrics["attack"]) for one in checkpoints if "attack" in one.info.metrics)
    note = f"robust: {', '.join(attacks)}" if attacks else "robust: - where the checkpoint's description names no attack"
    return Table("Training and accuracy", ["checkpoint", "K", "training", "clean", "robust"], rows, note)


def attacked(
    checkpoints: Sequence[Checkpoint], sets: Sequence[DataSet], attack: Attack, request: CompareRequest, session: Session
) -> Evaluations:
    """The same attack on the same images for every checkpoint, in the run folder that `attack` would use.

    `sets` are one data set with the labels of each checkpoint's classes.
    """
    compute, first = session.compute(request.precision), sets[0]
    size = min(BATCH_SIZE, len(head(first.test, request.images))) if session.memory else BATCH_SIZE
    described = identity(first.name, "test", request.seed, size, compute.precision)
    folder = session.folder("attack", described, compute, first, "test", shared=True, exact=request.exact)
    found = []
    for checkpoint, data in zip(checkpoints, sets, strict=True):
        images = head(data.test, request.images)
        session.remember(folder, checkpoint)

        def report(run: str, done: int, total: int, name: str = checkpoint.name) -> None:
            session.progress(f"{name}  {run}", done, total)

        result = evaluated(folder, checkpoint, attack, images, compute, request.seed, size, report=report)
        found.append((checkpoint, result))
    return found


def accuracy_rows(found: Evaluations, data: DataSet) -> list[Row]:
    """One JSON row for each checkpoint, with its worst class and, from the second on, its difference to the first."""
    rows = []
    (reference, base), *_ = found
    for checkpoint, result in found:
        row = {"checkpoint": checkpoint.name, "data": data.name, **result.row()}
        row["worst_class"] = worst_class(result.robust, data.test.labels[result.indices], data.classes).row()
        if checkpoint is not reference:
            row |= {"minus": reference.name}
            row |= {name: asdict(mcnemar(a, b)) for name, a, b in (
                ("clean_difference", result.correct, base.correct), ("accuracy_difference", result.robust, base.robust)
            )}  # fmt: skip
        rows.append(row)
    return rows


def accuracy_tables(rows: Sequence[Row]) -> list[Table]:
    """Accuracy under the attack, and the differences to the first checkpoint with McNemar's test, from `accuracy_rows`."""
    attack, n, data = (rows[0][key] for key in ("attack", "n", "data"))
    shown = [
        [row["checkpoint"], percent(row["clean"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"]),
         f"{worst['class']}: {percent(worst['accuracy'])}", interval_text(worst["ci_low"], worst["ci_high"])]
        for row in rows
        for worst in (row["worst_class"],)
    ]  # fmt: skip
    header = ["checkpoint", "clean", "accuracy", "95 % interval", "worst class", "95 % interval of the lowest"]
    accuracies = Table(f"Under {attack}, the first {n} test images of {data}", header, shown)
    differences = []
    for row in rows[1:]:
        for what in ("clean", "accuracy"):
            test = row[f"{what}_difference"]
            points = f"{100 * test['difference']:+.1f}"
            bounds = f"{100 * test['ci_low']:+.1f} to {100 * test['ci_high']:+.1f}"
            differences.append([
                f"{row['checkpoint']} - {row['minus']}", "under attack" if what == "accuracy" else what,
                points, bounds, str(test["only_a"]), str(test["only_b"]), f"{test['p']:.2g}",
            ])  # fmt: skip
    header = ["difference", "images", "points", "95 % interval", "only the first right", "only the second right", "p"]
    note = "on the same images: Newcombe's interval of the paired difference, McNemar's exact test"
    return [accuracies, Table("Differences in accuracy", header, differences, note)]
