"""`vizrobust compare`: checkpoints side by side: recipes, accuracies, pictures and their clarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, percent, say, table

if TYPE_CHECKING:
    from vizrobust.models import Checkpoint
    from vizrobust.report import Table


@click.command()
@options.some_refs
@options.pictures
@options.seeds(3)
@options.running
def command(
    refs: tuple[str, ...], layer: str, units: str | None, recipe_text: str, seeds: int, batch_size: int, judge: str | None,
    data: str | None, arch: str | None, seed: int, out: str | None, download: bool, device: str, precision: str,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Put checkpoints side by side: training recipe, accuracy, feature images and two measures of their clarity.

    Clarity comes with its references: the same questions asked with natural images and with the pictures of a
    randomly initialised network. Accuracies are those in the checkpoints' descriptions.

    \b
    vizrobust compare mnist-k0 mnist-k8
    vizrobust compare mnist-k0 mnist-k8 --layer conv2 --seeds 2
    """
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.cli.rendering import Pictured, clarity_rows, difference_table, find_judge, request_for, score_table
    from vizrobust.compute import Compute
    from vizrobust.features.session import checkpoint_facts
    from vizrobust.report import write_gallery
    from vizrobust.study import RANDOM

    checkpoints = load_all(refs, arch, download)
    if len(checkpoints) < 2:
        raise click.UsageError(f"compare needs two or more different checkpoints, got {len(checkpoints)}")
    loaded = data_of(checkpoints[0], data, download)
    request, _ = request_for(
        checkpoints[0], loaded, layer=layer, units=units, recipe_text=recipe_text,
        seeds=range(seed, seed + seeds), batch_size=batch_size,
    )  # fmt: skip
    compute = Compute(device, precision)
    pictured = Pictured.open("compare", request, compute, out)
    found = find_judge(checkpoints, loaded, judge, compute)
    pictured.render([(checkpoint, request) for checkpoint in checkpoints], quiet or as_json)
    tables, numbers = [recipes(checkpoints)], []
    if found is not None:
        scores = pictured.clarity(checkpoints, loaded, found, quiet or as_json, [checkpoints[0].untrained(RANDOM)])
        numbers = clarity_rows(scores, checkpoints, request.units, found.name)
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
    from vizrobust.report import Table

    rows = []
    for one in checkpoints:
        about = one.about
        steps = "-" if about.attack_steps is None else str(about.attack_steps)
        metrics = about.metrics
        rows.append([one.name, steps, about.training or "unknown", percent(metrics.get("clean")), percent(metrics.get("robust"))])
    attacks = dict.fromkeys(str(one.about.metrics["attack"]) for one in checkpoints if "attack" in one.about.metrics)
    note = f"robust: {', '.join(attacks)}" if attacks else "robust: - where the checkpoint's description names no attack"
    return Table("Training and accuracy", ["checkpoint", "K", "training", "clean", "robust"], rows, note)
