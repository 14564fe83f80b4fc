"""`vizrobust layers`: the layers of a network, their shapes and units."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import PIPE_WIDTH, json_row, table

if TYPE_CHECKING:
    from vizrobust.models import Layer


@click.command()
@click.argument("ref")
@options.arch
@options.download
@options.as_json
def command(ref: str, arch: str | None, download: bool, as_json: bool) -> None:
    """List a network's layers: output shape (units first), units, layout, and whether `neurons` can render them.

    \b
    vizrobust layers mnist-k8
    vizrobust layers torchvision:resnet18@random
    vizrobust layers torchvision:vit_b_16@random

    In transformers the patch tokens are a map, L:class is the class token of layer L, L:token1 its next token that is
    no patch, and L:heads the attention heads.
    """
    from vizrobust.models import layers, load_checkpoint

    checkpoint = load_checkpoint(ref, arch, download)
    listed = layers(checkpoint.net(), checkpoint.info.input_shape)
    if as_json:
        for layer in listed:
            json_row({"layer": layer.name, "kind": layer.kind, "shape": layer.shape, "units": layer.units, "layout": layer.layout,
                      "visualizable": layer.visualizable, "reason": layer.reason})  # fmt: skip
        return
    reasons = list(dict.fromkeys(layer.reason for layer in listed if layer.reason))
    rows = [
        [layer.name, layer.kind, "x".join(map(str, layer.shape)) or "-", str(layer.units or "-"), layer.layout,
         f"no ({reasons.index(layer.reason) + 1})" if layer.reason else "yes"]
        for layer in listed
    ]  # fmt: skip
    size = " x ".join(map(str, checkpoint.info.input_shape))
    shown = sum(layer.visualizable for layer in listed)
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    notes.append(f"{shown} of {len(listed)} layers can be rendered: vizrobust neurons {ref} --layer {_example(listed)}")
    _show(f"{ref}: {checkpoint.info.arch}, input {size}", rows, "\n".join(notes))


def _show(title: str, rows: list[list[str]], note: str) -> None:
    """A table; where the terminal is too narrow for it, two lines for each layer, so that no name is broken."""
    header = ["layer", "kind", "output", "units", "layout", "renders"]
    width = get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    if sum(max(map(len, column)) + 3 for column in zip(header, *rows, strict=True)) <= width:
        table(title, header, rows, note)
        return
    click.echo(f"\n{title}\n")
    for name, kind, shape, units, layout, renders in rows:
        click.echo(f"{name}\n    {kind}, {shape}, {units} units, {layout}, renders: {renders}")
    click.echo(f"\n{note}")


def _example(listed: list[Layer]) -> str:
    """A layer worth looking at: the last that is a map of several places, else the last."""
    maps = [layer for layer in listed if layer.visualizable and layer.shape[1:] > (1, 1)]
    return (maps or listed)[-1].name
