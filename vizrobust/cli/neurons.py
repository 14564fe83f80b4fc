"""`vizrobust neurons`: render what excites a network's units, for one or several checkpoints."""

from __future__ import annotations

import click
from click.core import ParameterSource

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say, table

# What the table of units can be sorted by; all but the unit itself with the largest first.
ORDERS = ("unit", "score", "transfer", "recognised", "forced_choice", "difference")

# Render steps of the command without a REF.
FIRST_LOOK = 100


@click.command()
@options.refs
@options.pictures
@options.seeds(1)
@click.option("--neuron", metavar="Y,X", help="One position of the layer's map instead of the mean over all.")
@click.option("--negative", is_flag=True, help="Render what the units dislike.")
@click.option("--both", is_flag=True, help="Render what the units like and what they dislike.")
@click.option("--diversity", default=1, show_default=True, metavar="N", help="N pictures of each unit that differ in style.")
@click.option("--objective", "objective_text", metavar="SPEC", help="A whole objective in place of --layer and --neuron.")
@click.option("--steps", type=int, help="Render steps; default: the recipe's.")
@click.option("--size", type=int, help="Picture size; default: the network's input.")
@click.option("--start", metavar="IMAGE", help="Begin from an image, a file or DATA#index, instead of noise.")
@click.option(
    "--sort",
    "order",
    type=click.Choice(ORDERS),
    default="unit",
    show_default=True,
    help="Order of the units in the table of scores; difference: of transfer (or the AUC), last REF minus first.",
)
@click.option("--movie", is_flag=True, help="A GIF of each picture's way beside it.")
@click.option(
    "--exemplars", type=click.IntRange(min=1), metavar="N", help="Natural images too: N that excite a unit most, N least."
)
@options.running
def command(
    refs: tuple[str, ...], layer: str, units: str | None, neuron: str | None, negative: bool, both: bool, diversity: int,
    objective_text: str | None, recipe_text: str, steps: int | None, size: int | None, start: str | None, movie: bool,
    exemplars: int | None, order: str, seeds: int, batch_size: int | None, judge: str | None, data: str | None, arch: str | None,
    seed: int, out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Render what excites a network's units; two or more checkpoints end with their difference in clarity.

    Without a REF: the class units of the built-in sweep on photographs, K = 0 to 8 attack steps, by 100 steps of the recipe
    plain. What is in the run folder already is not rendered again.

    \b
    vizrobust neurons
    vizrobust neurons mnist-k0 mnist-k8 --layer conv2 --units 0:16 --out runs/conv2
    vizrobust neurons mnist-k8 --layer conv2 --units 3,7 --exemplars 9
    vizrobust neurons torchvision:resnet18 --layer layer3 --units 3,7,11 --recipe fourier
    """
    from dataclasses import replace

    from vizrobust.cli.loading import load_all, maybe_data_of
    from vizrobust.cli.natural import add_exemplars, exemplar_source, with_exemplars
    from vizrobust.cli.rendering import Pictured, asked_for, clarity_rows, difference_table, find_judge, request_for
    from vizrobust.cli.unit_scores import unit_table
    from vizrobust.compute import Compute
    from vizrobust.features import Logit, main_term
    from vizrobust.models import SWEEP
    from vizrobust.report import write_gallery

    checkpoints = load_all(refs or SWEEP, arch, download)
    if not refs:
        given = click.get_current_context().get_parameter_source
        # The first look: the sweep's class units in one batch without repeats, half the steps, in under half a minute.
        if given("batch_size") is ParameterSource.DEFAULT:
            batch_size = len(checkpoints[0].info.classes)
        if given("recipe_text") is ParameterSource.DEFAULT and steps is None:
            steps = FIRST_LOOK
    loaded = maybe_data_of(checkpoints[0], data, download)
    objective, numbered = asked_for(checkpoints[0], layer, units, neuron, objective_text)
    request = request_for(
        checkpoints[0], loaded, objective, numbered, negative=negative, recipe_text=recipe_text, steps=steps, size=size,
        start=start, seeds=range(seed, seed + seeds), batch_size=batch_size, diversity=diversity, movie=movie,
    )  # fmt: skip
    natural = None if exemplars is None else exemplar_source(loaded, request.objective, checkpoints, exemplars)
    count = len(request.units)
    say(f"{count} unit{'s' if count > 1 else ''} of {request.layer}, {request.objective}, {request.recipe}")
    pictured = Pictured.open("neurons", request, Compute(device, precision), out)
    # A hidden unit's clarity needs pictures of the negated unit too: twice the work, done where networks are compared.
    judged = len(checkpoints) > 1 or isinstance(main_term(objective), Logit)
    found = find_judge(checkpoints, loaded, judge, pictured.compute, objective) if judged else None
    signs = [request, replace(request, sign=-request.sign)] if both else [request]
    rows = pictured.render([(checkpoint, one) for one in signs for checkpoint in checkpoints], quiet or as_json)
    if found is not None:
        pictured.render_for_clarity(checkpoints, quiet or as_json)
    finished = pictured.alone()
    if finished is None:
        return
    pictured = finished
    if natural is not None and exemplars is not None:
        rows = with_exemplars(rows, add_exemplars(pictured, checkpoints, natural, exemplars, quiet or as_json))
    tables, numbers, scores = [], [], None
    if found is not None:
        scores = pictured.clarity(checkpoints, loaded, found, quiet or as_json)
        numbers = clarity_rows(scores, checkpoints, request.units, found.name)
        if len(checkpoints) > 1:
            tables.append(difference_table(scores, checkpoints, found.name))
    tables.insert(0, unit_table(rows, checkpoints, request, scores, found.name if found else "", order))
    page = write_gallery(pictured.folder, [pictured.folder], tables)
    if as_json:
        for row in [*rows, *numbers]:
            json_row(row)
        return
    unfit = [row for row in rows if row["status"] != "ok"]
    for status in sorted({row["status"] for row in unfit}):
        where = ", ".join(f"{row['checkpoint']} unit {row['unit']}" for row in unfit if row["status"] == status)
        say(f"{status}: {where}")
    for one in tables:
        table(one.title, one.header, one.rows, one.note)
    say(f"made by: {command_line()}")
    click.echo(f"gallery: {page}")
