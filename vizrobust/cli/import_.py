"""`vizrobust import`: someone else's checkpoint file, once, into our format."""

from __future__ import annotations

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, say, table


@click.command("import")
@click.argument("file", type=click.Path())
@click.option(
    "--arch", required=True, metavar="REF", help="Ours, torchvision:NAME, timm:NAME or path/to/file.py:callable (is run)."
)
@click.option("--normalize", metavar="NAME|MEAN/STD", help="none, imagenet, cifar10, mnist or 0.5,0.5,0.5/0.2,0.2,0.2.")
@click.option("--data", default="", metavar="REF", help="Data set that it was trained on (vizrobust list data).")
@click.option("--out", required=True, type=click.Path(), metavar="FILE", help="The converted checkpoint, a .safetensors file.")
@click.option("--drop", multiple=True, metavar="PATTERN", help="Keys to leave out, with * and ?; several allowed.")
@click.option("--key", default="", metavar="KEY", help="Where the weights are, if a file holds several: ema, models.1.")
@click.option("--shape", default="", metavar="C,H,W", help="Shape of the images, for data that is not on this machine.")
@click.option("--classes", default="", metavar="N|A,B,C", help="Classes: how many, or their names.")
@options.download
@options.as_json
def command(
    file: str, arch: str, normalize: str | None, data: str, out: str, drop: tuple[str, ...], key: str, shape: str, classes: str,
    download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert someone else's checkpoint file to vizrobust's format; no code from it is run.

    The weights may lie under the usual names and prefixes. --normalize says what was done to images in [0, 1] before
    the network; it is read from the file where that holds a normalizing layer.

    \b
    vizrobust import theirs.pt --arch small_cnn --normalize none --data mnist --out theirs.safetensors
    vizrobust import theirs.pth --arch my_nets.py:Wide --normalize cifar10 --data cifar10 --drop 'mask*' --out wide.safetensors
    vizrobust import pets.ckpt --arch torchvision:resnet18 --shape 3,64,64 --classes cat,dog --out pets.safetensors
    """
    from vizrobust.models.architectures import is_user_code
    from vizrobust.models.convert import import_file, task

    converted = import_file(file, out, arch, task(data, shape, classes, download), normalize, drop, key)
    about, sha256 = converted.checkpoint.about, converted.checkpoint.sha256
    if as_json:
        json_row({"checkpoint": out, "weights_sha256": sha256, "arch": arch, "input_shape": about.input_shape,
                  "classes": about.classes, "normalization": {"mean": about.mean, "std": about.std}, "data": data,
                  "notes": converted.notes})  # fmt: skip
        return
    mean, std = (",".join(f"{value:g}" for value in values) for values in (about.mean, about.std))
    size = " x ".join(map(str, about.input_shape))
    row = [out, arch, size, str(len(about.classes)), f"{mean} / {std}", sha256[:8]]
    table("imported", ["checkpoint", "arch", "input", "classes", "normalization", "weights"], [row], "; ".join(converted.notes))
    say(f"next: vizrobust attack {out}{f' --arch {arch}' if is_user_code(arch) else ''}")
