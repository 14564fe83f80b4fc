"""`vizrobust import`: someone else's checkpoint file, once, into our format; or one of ours into half precision."""

from __future__ import annotations

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, percent, say_next, table


@click.command("import")
@click.argument("file", type=click.Path(), metavar="FILE|REF")
@click.option("--arch", metavar="REF", help="Ours, torchvision:NAME, timm:NAME or path/to/file.py:callable (is run).")
@click.option("--normalize", metavar="NAME|MEAN/STD", help="none, imagenet, cifar10, mnist or 0.5,0.5,0.5/0.2,0.2,0.2.")
@click.option("--data", default="", metavar="REF", help="Data set that it was trained on (vizrobust list data).")
@click.option("--out", required=True, type=click.Path(), metavar="FILE", help="The converted checkpoint, a .safetensors file.")
@click.option("--drop", multiple=True, metavar="PATTERN", help="Keys to leave out, with * and ?; several allowed.")
@click.option("--key", default="", metavar="KEY", help="Where the weights are, if a file holds several: ema, models.1.")
@click.option("--shape", default="", metavar="C,H,W", help="Shape of the images, for data that is not on this machine.")
@click.option("--classes", default="", metavar="N|A,B,C", help="Classes: how many, or their names.")
@click.option("--half", is_flag=True, help="Store one of our own checkpoints in half precision, measured anew, with its card.")
@click.option("--eps", type=options.Number(), help="With --half: radius at which it is measured; default: the data set's.")
@options.download
@options.as_json
def command(
    file: str, arch: str | None, normalize: str | None, data: str, out: str, drop: tuple[str, ...], key: str, shape: str,
    classes: str, half: bool, eps: float | None, download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Convert someone else's checkpoint file to vizrobust's format; no code from it is run.

    The weights may lie under the usual names and prefixes. --normalize says what was done to images in [0, 1] before
    the network; it is read from the file where that holds a normalizing layer.

    With --half a checkpoint of our own (a file, a training run's folder) is stored in half precision. Clean, FGSM and
    PGD-50 accuracy are measured with the stored weights, and the model card is written beside the file.

    \b
    vizrobust import theirs.pt --arch small_cnn --normalize none --data mnist --out theirs.safetensors
    vizrobust import theirs.pth --arch my_nets.py:Wide --normalize cifar10 --data cifar10 --drop 'mask*' --out wide.safetensors
    vizrobust import pets.ckpt --arch torchvision:resnet18 --shape 3,64,64 --classes cat,dog --out pets.safetensors
    vizrobust import runs/k8 --half --out k8.safetensors
    """
    if half:
        foreign = {"--normalize": normalize, "--drop": drop, "--key": key, "--shape": shape, "--classes": classes}
        wrong = [name for name, value in foreign.items() if value]
        if wrong:
            raise click.UsageError(f"--half takes one of our own checkpoints, which needs no {wrong[0]}; leave it out")
        _store(file, arch, data, out, eps, download, as_json)
        return
    if arch is None:
        raise click.UsageError("Missing option '--arch': which network the weights are for (vizrobust list archs)")
    if eps is not None:
        raise click.UsageError("--eps goes with --half, which measures; leave it out, and use vizrobust attack --eps afterwards")
    _convert(file, arch, normalize, data, out, drop, key, shape, classes, download, as_json)


def _convert(
    file: str, arch: str, normalize: str | None, data: str, out: str, drop: tuple[str, ...], key: str, shape: str, classes: str,
    download: bool, as_json: bool,
) -> None:  # fmt: skip
    from vizrobust.models.importing import import_file, task

    converted = import_file(file, out, arch, task(data, shape, classes, download), normalize, drop, key)
    about, sha256 = converted.checkpoint.info, converted.checkpoint.sha256
    if as_json:
        json_row({"checkpoint": out, "weights_sha256": sha256, "arch": arch, "input_shape": about.input_shape,
                  "classes": about.classes, "normalization": {"mean": about.mean, "std": about.std}, "data": data,
                  "notes": converted.notes})  # fmt: skip
        return
    mean, std = (",".join(f"{value:g}" for value in values) for values in (about.mean, about.std))
    size = " x ".join(map(str, about.input_shape))
    row = [out, arch, size, str(len(about.classes)), f"{mean} / {std}", sha256[:8]]
    table("imported", ["checkpoint", "arch", "input", "classes", "normalization", "weights"], [row], "; ".join(converted.notes))
    say_next("attack", out, arch)


def _store(ref: str, arch: str | None, data: str, out: str, eps: float | None, download: bool, as_json: bool) -> None:
    from pathlib import Path

    from vizrobust.cli.loading import data_of
    from vizrobust.compute import Compute
    from vizrobust.models import load_checkpoint
    from vizrobust.report.training_report import write_card_beside
    from vizrobust.training import recorded_threads
    from vizrobust.training.half_precision import check_target, store_half

    check_target(out, ref)
    checkpoint = load_checkpoint(ref, arch, download)
    run = Path(ref) if Path(ref).is_dir() else Path(ref).parent if Path(ref).is_file() else None
    # The run's thread count: another one rounds otherwise, which moves an image or two.
    threads = recorded_threads(run) if run else None
    loaded = data_of(checkpoint, data or None, download)
    shipped = store_half(checkpoint, loaded, Compute(threads=threads), out, eps, data)
    card = write_card_beside(out, shipped, run)
    measured, size = shipped.info.metrics, Path(out).stat().st_size
    if as_json:
        json_row({"checkpoint": out, "card": str(card), "bytes": size, "weights_sha256": shipped.sha256, **measured})
        return
    shares = [percent(measured[key]) for key in ("clean", "fgsm", "robust")]
    row = [out, *shares, f"{size / 1000:,.0f} kB", shipped.sha256[:8]]
    note = f"of the stored weights; robust: {measured['attack']} on the first {measured['n']} test images; card: {card}"
    table("stored in half precision", ["checkpoint", "clean", "FGSM", "robust", "size", "weights"], [row], note)
