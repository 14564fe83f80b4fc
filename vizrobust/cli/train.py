"""`vizrobust train`: train a network with K attack steps, in a folder that can be taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.training import Training


@click.command()
@click.option("--data", required=True, metavar="REF", help="Data set (vizrobust list data).")
@click.option("--arch", required=True, metavar="REF", help="Architecture (vizrobust list archs), or path/to/file.py:callable.")
@click.option("--steps", type=int, help="K: attack steps for each training example; 0 is standard training.")
@click.option("--attack", "attack_text", metavar="SPEC", help="The whole attack: FGSM() or 'PGD(steps=7, ball=L2(eps=1.0))'.")
@options.eps
@options.norm
@click.option("--clean-weight", default=0.0, show_default=True, help="Share of the clean loss in the mix.")
@click.option("--epochs", default=20, show_default=True)
@click.option("--batch-size", default=100, show_default=True)
@click.option("--optimizer", default="adam", show_default=True, help="adam or sgd.")
@click.option("--lr", default=2e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--eps-ramp", type=int, help="Epochs over which eps rises from 0; default: the first fifth, at most 5.")
@click.option("--augment", default="none", show_default=True, help="none, crop, crop+flip or heavy.")
@options.running
def command(
    data: str, arch: str, steps: int | None, attack_text: str | None, eps: float | None, norm: str | None, out: str | None,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool, **fields: object,
) -> None:  # fmt: skip
    """Train with K attack steps; the same command goes on where it stopped.

    \b
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --eps 0.3 --epochs 20 --out runs/k8
    vizrobust train --data mnist5k --arch small_cnn --steps 0 --out runs/k0          # standard training
    vizrobust train --data mnist5k --arch small_cnn --attack 'FGSM()' --out runs/fgsm
    """
    from vizrobust.attacks import fit, parse_attack
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.runs import default_folder
    from vizrobust.training import Training, recorded_threads

    if steps is None and attack_text is None:
        raise click.UsageError("say how to train: --steps K (0 is standard training) or --attack SPEC")
    if steps is not None and steps < 0:
        raise ValueError(f"--steps must not be negative, got {steps}; 0 is standard training")
    loaded = load(data, download)
    attack = None
    if attack_text is not None or steps:
        attack = fit(parse_attack(attack_text or "PGD"), loaded.eps, norm, eps=eps, steps=steps)
    recipe = Training(arch=arch, data=data, attack=attack, precision=precision, **fields)  # type: ignore[arg-type]
    folder = out or str(default_folder("train", {"training": repr(recipe)}))
    compute = Compute(device, precision, recorded_threads(folder))
    _train(recipe, loaded, compute, folder, as_json, quiet)


def _train(recipe: Training, loaded: object, compute: object, folder: str, as_json: bool, quiet: bool) -> None:
    from vizrobust.report.model_card import write_card
    from vizrobust.training import Progress, train, trained

    with progress(quiet, "loss", "clean", "robust") as bars:
        task = None
        for event in train(recipe, loaded, compute, folder, command_line()):  # type: ignore[arg-type]
            if isinstance(event, Progress):
                if task is None:
                    say(f"{recipe}\nin {folder}")
                    task = bars.add_task("epochs", total=recipe.epochs * event.batches, loss="", clean="", robust="")
                done = (event.epoch - 1) * event.batches + event.batch
                name = f"epoch {event.epoch}/{recipe.epochs}"
                bars.update(task, completed=done, description=name, loss=f"loss {event.loss:.3f}")
            elif task is not None:
                clean, robust = percent(event["val_clean"]), percent(event["val_robust"])
                bars.update(task, clean=f"clean {clean}", robust=f"robust {robust}")
                if as_json:
                    json_row(event)
    checkpoint = trained(folder, recipe.arch)
    write_card(folder, checkpoint)
    measured = checkpoint.about.metrics
    if as_json:
        json_row({"checkpoint": f"{folder}/checkpoint.safetensors", "weights_sha256": checkpoint.sha256, **measured})
        return
    row = [folder, str(recipe.attack_steps), percent(measured["clean"]), percent(measured["robust"]), checkpoint.sha256[:8]]
    note = f"robust: {measured['attack']} on the first {measured['n']} test images"
    table("trained", ["run", "K", "clean", "robust", "weights"], [row], note)
    say(f"next: vizrobust neurons {folder}")
