"""`vizrobust train`: train a network with K attack steps, in a folder that can be taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.attacks import Attack
    from vizrobust.training import Mix, Training

# Written out here, because asking training would make every --help slow; a test compares them with its MIXES.
MIXES = ("avg", "max", "random")


@click.command()
@click.option("--data", required=True, metavar="REF", help="Data set (vizrobust list data).")
@click.option("--arch", required=True, metavar="REF", help="Architecture (vizrobust list archs), or path/to/file.py:callable.")
@click.option("--steps", type=int, help="K: attack steps for each training example; 0 is standard training.")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="SPEC",
    help="The whole attack: FGSM() or 'PGD(steps=7, ball=L2(eps=1.0))'; several with --mix.",
)
@click.option(
    "--mix", type=click.Choice(MIXES), help="With several attacks: learn from all, each image's worst, or one at random."
)
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
    data: str, arch: str, steps: int | None, attacks: tuple[str, ...], mix: str | None, eps: float | None, norm: str | None,
    out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool, **fields: object,
) -> None:  # fmt: skip
    """Train with K attack steps; the same command goes on where it stopped.

    With several attacks --steps sets each one's steps, and each SPEC names its own radius.

    \b
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --eps 0.3 --epochs 20 --out runs/k8
    vizrobust train --data mnist5k --arch small_cnn --steps 0 --out runs/k0          # standard training
    vizrobust train --data mnist5k --arch small_cnn --attack 'FGSM()' --out runs/fgsm
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --mix max \\
        --attack 'PGD(ball=Linf(eps=0.3))' --attack 'PGD(ball=L2(eps=2.0))' --out runs/two
    """
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.runs import default_folder
    from vizrobust.training import Training, recorded_threads

    if steps is None and not attacks:
        raise click.UsageError("say how to train: --steps K (0 is standard training) or --attack SPEC")
    if steps is not None and steps < 0:
        raise ValueError(f"--steps must not be negative, got {steps}; 0 is standard training")
    if steps == 0 and attacks:
        raise click.UsageError("--steps 0 is standard training, without an --attack; leave out one of the two")
    if len(attacks) > 1 and mix is None:
        raise click.UsageError(f"{len(attacks)} attacks need --mix avg, max or random to say how to learn from them")
    if len(attacks) < 2 and mix is not None:
        raise click.UsageError(f"--mix {mix} needs two --attack or more, got {len(attacks)}; give another or leave --mix out")
    if len(attacks) > 1 and (eps is not None or norm is not None):
        raise click.UsageError("with several attacks write each one's norm and radius in its SPEC, not --eps or --norm")
    loaded = load(data, download)
    attack = _attack(attacks, mix, steps, eps, norm, loaded.eps)
    recipe = Training(arch=arch, data=data, attack=attack, precision=precision, **fields)  # type: ignore[arg-type]
    folder = out or str(default_folder("train", {"training": repr(recipe)}))
    compute = Compute(device, precision, recorded_threads(folder))
    _train(recipe, loaded, compute, folder, as_json, quiet)


def _attack(
    texts: tuple[str, ...], mix: str | None, steps: int | None, eps: float | None, norm: str | None, default_eps: float
) -> Attack | Mix | None:
    """What to train against; None is standard training."""
    from vizrobust.attacks import fit, parse_attack
    from vizrobust.training import Mix

    if not texts and not steps:
        return None
    fitted = tuple(fit(parse_attack(text), default_eps, norm, eps=eps, steps=steps) for text in texts or ("PGD",))
    return fitted[0] if mix is None else Mix(fitted, mix)


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
