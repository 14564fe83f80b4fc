"""`vizrobust spritemap`: all units of a layer on one sheet."""

from __future__ import annotations

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say

# Written out here, because report loads matplotlib; a test compares them.
ORDERS = ("unit", "score")


@click.command()
@options.some_refs
@options.layer
@click.option("--units", metavar="LIST", help="all, 0:16 or 3,7,11; default: all.")
@options.recipe
@options.render_steps
@options.size
@click.option("--negative", is_flag=True, help="Render what the units dislike.")
@click.option("--sort", "order", type=click.Choice(ORDERS), default="unit", show_default=True, help="Order on the sheet.")
@click.option("--columns", type=click.IntRange(1), help="Tiles in a row; default: a near-square sheet.")
@options.batch_size
@options.data
@options.arch
@options.running
def command(
    refs: tuple[str, ...], layer: str, units: str | None, recipe_text: str, steps: int | None, size: int | None,
    negative: bool, order: str, columns: int | None, batch_size: int | None, data: str | None, arch: str | None,
    seed: int, out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Render all units of a layer and put them on one sheet; each REF has a sheet of its own.

    Stopped with Ctrl-C it goes on where it was when it is started again. Memory is that of one batch of pictures,
    however many units there are.

    \b
    vizrobust spritemap mnist-k8 --layer conv2
    vizrobust spritemap mnist-k0 mnist-k8 --layer linear1 --sort score
    vizrobust spritemap torchvision:resnet18 --layer layer4 --size 64 --recipe fourier --steps 64
    """
    from vizrobust.cli.loading import load_all, maybe_data_of
    from vizrobust.cli.rendering import Pictured, asked_for, request_for
    from vizrobust.compute import Compute
    from vizrobust.report.sheets import facts_of, spritemap_sheet
    from vizrobust.runs import slug

    checkpoints = load_all(refs, arch, download)
    loaded = maybe_data_of(checkpoints[0], data, download)
    jobs = []
    for checkpoint in checkpoints:
        objective, numbered = asked_for(checkpoint, layer, units or "all")
        request = request_for(
            checkpoint, loaded, objective, numbered, negative=negative, recipe_text=recipe_text, steps=steps, size=size,
            seeds=(seed,), batch_size=batch_size,
        )  # fmt: skip
        say(f"{len(numbered)} units of {layer} of {checkpoint.name}, {request.objective}, {request.recipe}")
        jobs.append((checkpoint, request))
    pictured = Pictured.open("spritemap", jobs[0][1], Compute(device, precision), out)
    rows = pictured.render(jobs, quiet or as_json)
    sheets = []
    for checkpoint in checkpoints:
        own = [row for row in rows if row["checkpoint"] == checkpoint.id]
        name = f"{checkpoint.id}-{slug(layer)}{'-neg' if negative else ''}-s{seed}.png"
        sheet = spritemap_sheet(
            pictured.folder / name, pictured.folder, own, facts_of(checkpoint), order=order, columns=columns,
            command=command_line(),
        )  # fmt: skip
        sheets.append(sheet)
    if as_json:
        for row in rows:
            json_row(row)
        return
    say(f"made by: {command_line()}")
    for sheet in sheets:
        click.echo(f"sheet: {sheet}")
