"""`vizrobust caricature`: what a layer makes of an image, exaggerated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say, table

if TYPE_CHECKING:
    from vizrobust.features import Similarity


@click.command()
@options.reconstruction("fourier")
@click.option("--power", default=1.0, show_default=True, help="How much direction counts beside strength: dot · cosine^power.")
@click.option("--start", is_flag=True, help="Begin from IMAGE itself instead of noise.")
@options.running
def command(
    refs: tuple[str, ...], image: str, layers: tuple[str, ...], recipe_text: str, steps: int | None, size: int | None,
    seeds: int, batch_size: int, data: str | None, arch: str | None, power: float, start: bool, seed: int, out: str | None,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draw caricatures of IMAGE: pictures to which a layer answers as it does to IMAGE, only more so.

    IMAGE is a file, or DATA#index, a test image. The multiple is the projection of the picture's activations on those
    of IMAGE, 1 for IMAGE itself; the cosine is that of the angle between them.

    \b
    vizrobust caricature mnist-k0 mnist-k8 mnist5k#3
    vizrobust caricature mnist-k8 seven.png --layer conv2 --start --recipe plain
    """
    from vizrobust.cli.reconstructing import Reconstructions, number
    from vizrobust.features import Caricature

    def lines(one: Similarity) -> tuple[str, ...]:
        return f"× {number(one.relative_projection)}", f"cosine {number(one.cosine)}"

    done = Reconstructions.make(
        "caricature", refs, image, layers, lambda layer: Caricature(layer, image, power), data=data, arch=arch,
        download=download, out=out, device=device, precision=precision, quiet=quiet or as_json,
        seeds=range(seed, seed + seeds), from_image=start, recipe_text=recipe_text, steps=steps, size=size,
        batch_size=batch_size,
    )  # fmt: skip
    caption = [
        "×: projection of the layer's activations on the image's, 1 for the image itself; cosine: of the angle between the two",
        f"{done.request.objective!r} and so on, {done.request.recipe!r}",
    ]
    sheet = done.sheet(f"Caricatures of {image}", lines, caption)
    if as_json:
        for one in done.made:
            json_row(one.facts())
        return
    rows = [
        [one.checkpoint.name, one.layer, *([str(one.row["seed"])] if done.several_seeds else []),
         number(one.similarity.relative_projection), number(one.similarity.cosine), number(one.similarity.ssim)]
        for one in done.made
    ]  # fmt: skip
    header = ["checkpoint", "layer", *(["seed"] if done.several_seeds else []), "multiple", "cosine", "SSIM"]
    table(f"Caricatures of {image}", header, rows, "multiple: projection on the image's activations over their own length")
    say(f"made by: {command_line()}")
    click.echo(f"sheet: {sheet}")
