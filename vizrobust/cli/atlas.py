"""`vizrobust atlas`: the activations of many images, laid out in two dimensions and rendered cell by cell."""

from __future__ import annotations

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, progress, say

# Written out here, because the library's modules load torch; a test compares them.
SPLITS = ("train", "val", "test")
LAYOUTS = ("tsne", "pca")
MOST_IMAGES = 2000


@click.command()
@options.some_refs
@click.option("--layer", required=True, help="Layer by name (vizrobust layers REF).")
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Which images of the data set.")
@click.option("--images", type=int, metavar="N", help="How many, the same share of each class; default: at most 2,000.")
@click.option("--grid", default=8, show_default=True, help="Cells along each side.")
@click.option("--fewest", default=5, show_default=True, help="Cells with fewer activations stay empty.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="tsne", show_default=True, help="How activations are laid out.")
@click.option("--whiten", is_flag=True, help="Multiply means with the inverse of the activations' second moments.")
@options.recipe
@options.render_steps
@options.size
@options.batch_size
@options.data
@options.arch
@options.running
def command(
    refs: tuple[str, ...], layer: str, split: str, images: int | None, grid: int, fewest: int, layout: str, whiten: bool,
    recipe_text: str, steps: int | None, size: int | None, batch_size: int | None, data: str | None, arch: str | None,
    seed: int, out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw an activation atlas: what a layer makes of many images, laid out, averaged cell by cell, rendered.

    Each REF has an atlas of its own, of the same images seen at the same places. A run that was stopped goes on
    where it was; its activations and layout are not computed again.

    \b
    vizrobust atlas mnist-k8 --layer linear1
    vizrobust atlas mnist-k0 mnist-k8 --layer conv2 --grid 6
    """
    from functools import partial

    from vizrobust.cli.loading import load_all
    from vizrobust.cli.rendering import made_with, request_for
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.features import objective_for
    from vizrobust.features.atlas import Atlas, Plan, atlas_into, atlas_layout, atlas_rows, missing_cells
    from vizrobust.features.exemplar_runs import ImageSource
    from vizrobust.report.sheets import about_atlas, atlas_sheet, facts_of
    from vizrobust.runs import RunFolder, default_folder, slug

    checkpoints = load_all(refs, arch, download)
    first = checkpoints[0]
    ref = data or first.info.data
    if not ref:
        raise click.UsageError(f"{first.name!r} does not say what it was trained on; give --data (vizrobust list data)")
    loaded = load(ref, download)
    source = ImageSource(loaded, split)
    n = min(MOST_IMAGES, len(source.whole)) if images is None else images
    atlas = Atlas(layer, grid, n, fewest, layout, whiten, seed=seed)
    atlas.sampled_images(source.whole.labels)
    objectives = [objective_for(checkpoint, layer)[0] for checkpoint in checkpoints]
    request = request_for(
        first, loaded, objectives[0], (0,), recipe_text=recipe_text, steps=steps, size=size, batch_size=batch_size
    )
    plan, compute = Plan(atlas, source, request.recipe, batch_size), Compute(device, precision)
    say(f"{n} images of {loaded.name} ({split}), {atlas}, {plan.recipe}")
    identity = plan.identity(compute.precision)
    run = RunFolder(out or default_folder("atlas", identity), "atlas", identity, made_with(compute, request))
    with progress(quiet or as_json) as bars:
        for checkpoint in checkpoints:
            looking = bars.add_task(f"{checkpoint.name}, activations", total=n)
            there = atlas_layout(run, checkpoint, plan, compute, partial(bars.advance, looking))
            bars.remove_task(looking)
            todo = len(missing_cells(run, checkpoint, there))
            if todo:
                task = bars.add_task(f"{checkpoint.name}, cells", total=todo)
                for _ in atlas_into(run, checkpoint, plan, there, compute):
                    bars.advance(task)
    sheets = []
    for checkpoint in checkpoints:
        rows, facts = atlas_rows(run, checkpoint), run.info["atlas"][checkpoint.id]
        about = about_atlas(atlas, facts, identity["images"], rows[0])
        name = run.folder / f"{checkpoint.id}-{slug(layer)}.png"
        sheets.append(atlas_sheet(name, run.folder, rows, facts_of(checkpoint), about, grid, command_line()))
        if as_json:
            for row in rows:
                json_row(row)
    if as_json:
        return
    say(f"made by: {command_line()}")
    for sheet in sheets:
        click.echo(f"sheet: {sheet}")
