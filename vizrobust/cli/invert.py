"""`vizrobust invert`: what layers keep of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say, table

if TYPE_CHECKING:
    from vizrobust.features import Similarity


@click.command()
@options.reconstruction("direct")
# Of 0.003 to 0.3, this gave the largest mean SSIM over four networks of digits and CIFAR-10, two of them robust.
@click.option("--smooth", default=0.1, show_default=True, help="Weight of the total variation that is subtracted.")
@options.running
def command(
    refs: tuple[str, ...], image: str, layers: tuple[str, ...], recipe_text: str, steps: int | None, size: int | None,
    seeds: int, batch_size: int, data: str | None, arch: str | None, smooth: float, seed: int, out: str | None,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Invert layers: from noise, find an image to which a layer answers as it does to IMAGE.

    What the picture has of IMAGE the layer has kept; where the two differ, the layer cannot tell. IMAGE is a file, or
    DATA#index, a test image. The error is the squared distance of the activations over their own square, 0 to 1 and
    beyond; that of a plain grey image stands beside it. PSNR and SSIM compare pixels.

    \b
    vizrobust invert mnist-k0 mnist-k8 mnist5k#3
    vizrobust invert mnist-k8 seven.png --layer conv2 --layer linear1 --seeds 3
    """
    from vizrobust.cli.reconstructing import Reconstructions, number, small
    from vizrobust.features import Inversion, Objective, Sum, TotalVariation

    if smooth < 0:
        raise ValueError(f"--smooth must not be negative, got {smooth:g}")

    def objective(layer: str) -> Objective:
        own = Inversion(layer, image)
        return Sum(((1.0, own), (-smooth, TotalVariation()))) if smooth else own

    def lines(one: Similarity) -> tuple[str, ...]:
        return f"error {small(one.error)}", f"SSIM {number(one.ssim)}"

    done = Reconstructions.make(
        "invert", refs, image, layers, objective, data=data, arch=arch, download=download, out=out, device=device,
        precision=precision, quiet=quiet or as_json, seeds=range(seed, seed + seeds), recipe_text=recipe_text, steps=steps,
        size=size, batch_size=batch_size,
    )  # fmt: skip
    caption = [
        "error: squared distance of the layer's activations from the image's, over the square of these; SSIM: likeness in pixels",
        f"{done.request.objective!r} and so on, {done.request.recipe!r}",
    ]
    sheet = done.sheet(f"What layers keep of {image}", lines, caption)
    if as_json:
        for one in done.made:
            json_row(one.facts())
        return
    rows = [
        [one.checkpoint.name, one.layer, *([str(one.row["seed"])] if done.several_seeds else []), small(one.similarity.error),
         small(one.similarity.grey_baseline_error), number(one.similarity.psnr, 1, "same"), number(one.similarity.ssim)]
        for one in done.made
    ]  # fmt: skip
    header = ["checkpoint", "layer", *(["seed"] if done.several_seeds else []), "error", "of grey", "PSNR", "SSIM"]
    note = "error: |a - a0|² / |a0|² of the activations; PSNR in dB and SSIM of the pixels"
    table(f"Inversions of {image}", header, rows, note)
    say(f"made by: {command_line()}")
    click.echo(f"sheet: {sheet}")
