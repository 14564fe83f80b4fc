"""`vizrobust rerender`: a picture once more from what its PNG says, compared pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say

if TYPE_CHECKING:
    from vizrobust.features import Provenance
    from vizrobust.models import Checkpoint


@click.command()
@click.argument("file", metavar="FILE.png", type=click.Path())
@click.argument("ref", required=False, metavar="[REF]")
@options.arch
@click.option("--out", type=click.Path(), metavar="FILE", help="Save the new picture; default: only compare.")
@click.option("--device", type=click.Choice(options.DEVICES), help="Default: the one it was made on.")
@options.download
@options.as_json
def command(
    file: str, ref: str | None, arch: str | None, out: str | None, device: str | None, download: bool, as_json: bool
) -> None:
    """Render a picture again from what its PNG says, and compare the pixels; exit 1 where they differ.

    FILE is a picture out of a run folder's images, wherever it is now. The same weights are needed, and the images and
    other files that it was made with; REF names the checkpoint where it has moved. Batch size, precision and number of
    threads are those of then: on the same machine and versions the pixels are the same.

    \b
    vizrobust rerender runs/neurons-0123abcd/images/mnist-k8-0123abcd/plain/logits/3-s0.png
    vizrobust rerender three.png models/mine.safetensors --arch nets.py:Net --out again.png
    """
    from dataclasses import asdict
    from pathlib import Path

    from vizrobust.features import PixelDifference, Provenance, rerender
    from vizrobust.features.pictures import to_uint8
    from vizrobust.runs import write_png

    if out is not None and Path(out).suffix.lower() != ".png":
        raise ValueError(f"--out {out!r} must end in .png")
    made = Provenance.read(file)
    checkpoint = _checkpoint(made, ref, arch, download)
    notes = made.differences(device)
    for note in notes:
        say(f"note: {note}")
    done = rerender(made, checkpoint, device)
    pixels = to_uint8(done.image)
    if out is not None:
        write_png(out, pixels, made.texts(done, device, command_line(), checkpoint))
        say(f"written: {out}")
    difference = PixelDifference.between(made.pixels, pixels)
    if as_json:
        json_row({
            "file": file, "checkpoint": checkpoint.name, "weights_sha256": checkpoint.sha256, "same": not difference,
            **asdict(difference), "score": round(done.score, 5), "score_then": made.row.get("score"), "notes": notes,
            "out": out,
        })  # fmt: skip
    else:
        click.echo(str(difference))
    if difference:
        raise click.exceptions.Exit(1)


def _checkpoint(made: Provenance, ref: str | None, arch: str | None, download: bool) -> Checkpoint:
    """The one that the picture names, or `ref`."""
    from vizrobust.models import load_checkpoint

    try:
        return load_checkpoint(ref or made.reference, arch, download)
    except FileNotFoundError as error:
        if ref is not None:
            raise
        raise FileNotFoundError(f"{error}; name the checkpoint with the weights {made.weights_sha256[:8]} as REF") from error
