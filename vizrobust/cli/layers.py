"""`vizrobust layers`: the layers of a network, their shapes and units."""

from __future__ import annotations

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, table


@click.command()
@click.argument("ref")
@options.arch
@options.download
@options.as_json
def command(ref: str, arch: str | None, download: bool, as_json: bool) -> None:
    """List a network's layers, with what `neurons --layer` can render.

    \b
    vizrobust layers mnist-k8
    vizrobust layers torchvision:resnet18@random
    """
    from vizrobust.models import layers, load_checkpoint

    checkpoint = load_checkpoint(ref, arch, download)
    listed = layers(checkpoint.net(), checkpoint.about.input_shape)
    if as_json:
        for layer in listed:
            json_row({"layer": layer.name, "kind": layer.kind, "shape": layer.shape, "units": layer.units,
                      "visualizable": layer.visualizable})  # fmt: skip
        return
    rows = [
        [layer.name, layer.kind, " x ".join(map(str, layer.shape)), str(layer.units), "yes" if layer.visualizable else "no"]
        for layer in listed
    ]
    size = " x ".join(map(str, checkpoint.about.input_shape))
    table(f"{ref}: {checkpoint.about.arch}, input {size}", ["layer", "kind", "output", "units", "renders"], rows)
