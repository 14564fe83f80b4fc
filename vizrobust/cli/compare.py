"""`vizrobust compare`: checkpoints side by side: recipes, accuracies, pictures and their clarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, percent, say, table
from vizrobust.results import interval_text

if TYPE_CHECKING:
    from vizrobust.cli.attacking import Evaluations
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint
    from vizrobust.results import Table
    from vizrobust.robustness import RobustAccuracy


@click.command()
@options.some_refs
@options.pictures
@options.seeds(3)
@click.option(
    "--attack", "attack_text", default="PGD(steps=50)", show_default=True, metavar="SPEC", help="Attack to compare under."
)
@options.eps
@options.norm
@click.option("--images", "n", default=1000, show_default=True, help="Attack the first N test images; 0 leaves this out.")
@options.running
def command(
    refs: tuple[str, ...], layer: str, units: str | None, recipe_text: str, seeds: int, batch_size: int | None, judge: str | None,
    data: str | None, arch: str | None, attack_text: str, eps: float | None, norm: str | None, n: int,
    seed: int, out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Put checkpoints side by side: training recipe, accuracy, feature images and two measures of their clarity.

    All are attacked on the same images, and each is tested against the first (McNemar). Clarity comes with its
    references: the same questions asked with natural images and with the pictures of a randomly initialised network.

    \b
    vizrobust compare mnist-k0 mnist-k8
    vizrobust compare mnist-k0 mnist-k8 --layer conv2 --seeds 2 --attack standard --images 200
    """
    from vizrobust.clarity import RANDOM_NETWORK
    from vizrobust.cli.attacking import Evaluations
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.cli.rendering import Pictured, asked_for, clarity_rows, difference_table, find_judge, request_for, score_table
    from vizrobust.compute import Compute
    from vizrobust.features.picture_runs import checkpoint_facts
    from vizrobust.report import write_gallery

    checkpoints = load_all(refs, arch, download)
    if len(checkpoints) < 2:
        raise click.UsageError(f"compare needs two or more different checkpoints, got {len(checkpoints)}")
    loaded = data_of(checkpoints[0], data, download)
    objective, numbered = asked_for(checkpoints[0], layer, units)
    request = request_for(
        checkpoints[0], loaded, objective, numbered, recipe_text=recipe_text,
        seeds=range(seed, seed + seeds), batch_size=batch_size,
    )  # fmt: skip
    compute = Compute(device, precision)
    if n < 0:
        raise ValueError(f"--images must not be negative, got {n}")
    evaluations = Evaluations.open("attack", loaded, "test", compute, seed=seed, quiet=quiet or as_json) if n else None
    pictured = Pictured.open("compare", request, compute, out)
    found = find_judge(checkpoints, loaded, judge, compute, objective)
    pictured.render([(checkpoint, request) for checkpoint in checkpoints], quiet or as_json)
    tables, numbers = [recipes(checkpoints)], []
    if evaluations is not None:
        found_ = attacked(checkpoints, loaded, evaluations, attack_text, eps, norm, n)
        tables += accuracy_tables(found_, loaded)
        numbers += accuracy_rows(found_, loaded)
    untrained = checkpoints[0].untrained(RANDOM_NETWORK)
    if found is not None:
        pictured.render_for_clarity([*checkpoints, untrained], quiet or as_json)
    finished = pictured.alone()
    if finished is None:
        return
    pictured = finished
    if found is not None:
        scores = pictured.clarity(checkpoints, loaded, found, quiet or as_json, [untrained])
        numbers += clarity_rows(scores, checkpoints, request.units, found.name)
        tables += [score_table(scores, found.name), difference_table(scores, checkpoints, found.name)]
    page = write_gallery(pictured.folder, [pictured.folder], tables, title=" and ".join(one.name for one in checkpoints))
    if as_json:
        for checkpoint in checkpoints:
            json_row({"checkpoint": checkpoint.name, **checkpoint_facts(checkpoint)})
        for row in numbers:
            json_row(row)
        return
    for one in tables:
        table(one.title, one.header, one.rows, one.note)
    say("pictures and tables are in the gallery")
    click.echo(f"gallery: {page}")


def recipes(checkpoints: list[Checkpoint]) -> Table:
    """How the checkpoints were trained and what their descriptions say of their accuracy."""
    from vizrobust.results import Table

    rows = []
    for one in checkpoints:
        about = one.info
        steps = "-" if about.attack_steps is None else str(about.attack_steps)
        metrics = about.metrics
        rows.append([one.name, steps, about.training or "unknown", percent(metrics.get("clean")), percent(metrics.get("robust"))])
    attacks = dict.fromkeys(str(one.info.metrics["attack"]) for one in checkpoints if "attack" in one.info.metrics)
    note = f"robust: {', '.join(attacks)}" if attacks else "robust: - where the checkpoint's description names no attack"
    return Table("Training and accuracy", ["checkpoint", "K", "training", "clean", "robust"], rows, note)


def attacked(
    checkpoints: list[Checkpoint], data: DataSet, evaluations: Evaluations, text: str, eps: float | None, norm: str | None, n: int
) -> list[tuple[Checkpoint, RobustAccuracy]]:
    """The same attack on the same images for every checkpoint."""
    from vizrobust.cli.attacking import fitted
    from vizrobust.data import head

    (attack,) = fitted([text], data, eps=eps, norm=norm)
    images = head(data.test, n)
    return [(checkpoint, evaluations.of(checkpoint, attack, images)) for checkpoint in checkpoints]


def accuracy_rows(found: list[tuple[Checkpoint, RobustAccuracy]], data: DataSet) -> list[dict[str, Any]]:
    """One JSON row for each checkpoint, with its worst class and, from the second on, its difference to the first."""
    from vizrobust.intervals import mcnemar, worst_class

    rows = []
    (reference, base), *_ = found
    for checkpoint, result in found:
        row = {"checkpoint": checkpoint.name, "data": data.name, **result.row()}
        row["worst_class"] = worst_class(result.robust, data.test.labels[result.indices], data.classes).row()
        if checkpoint is not reference:
            row |= {"minus": reference.name}
            row |= {name: mcnemar(a, b).row() for name, a, b in (
                ("clean_difference", result.correct, base.correct), ("accuracy_difference", result.robust, base.robust)
            )}  # fmt: skip
        rows.append(row)
    return rows


def accuracy_tables(found: list[tuple[Checkpoint, RobustAccuracy]], data: DataSet) -> list[Table]:
    """Accuracy under the attack, and the differences to the first checkpoint with McNemar's test."""
    from vizrobust.results import Table

    rows = accuracy_rows(found, data)
    attack, n = rows[0]["attack"], rows[0]["n"]
    shown = [
        [row["checkpoint"], percent(row["clean"]), percent(row["accuracy"]), interval_text(row["ci_low"], row["ci_high"]),
         f"{worst['class']}: {percent(worst['accuracy'])}", interval_text(worst["ci_low"], worst["ci_high"])]
        for row in rows
        for worst in (row["worst_class"],)
    ]  # fmt: skip
    header = ["checkpoint", "clean", "accuracy", "95 % interval", "worst class", "95 % interval of the lowest"]
    accuracies = Table(f"Under {attack}, the first {n} test images of {data.name}", header, shown)
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
