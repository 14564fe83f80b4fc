"""`vizrobust calibrate`: what robustness can be had against each attack on a data set, the measure behind UAR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.attacks import Attack


@click.command()
@click.option("--data", required=True, metavar="REF", help="Data set (vizrobust list data).")
@click.option(
    "--attack", "attacks", multiple=True, required=True, metavar="SPEC",
    help="A norm (L2) or an attack (Elastic); with eps, as in 'L2(eps=8)', that is the largest candidate.",
)  # fmt: skip
@click.option("--anchor", default="Linf", show_default=True, metavar="SPEC", help="The attack whose six sizes the others match.")
@click.option("--arch", default="small_cnn", show_default=True, metavar="REF", help="Architecture (vizrobust list archs).")
@click.option("--steps", default=5, show_default=True, help="K: attack steps in training; UAR takes 10.")
@click.option("--epochs", default=8, show_default=True, help="Of each training.")
@click.option("--eps-ramp", type=int, help="Epochs over which eps rises from 0; default: half of them.")
@click.option("--batch-size", default=100, show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--candidates", default=7, show_default=True, help="Radii per attack, each twice the one before; six are chosen.")
@click.option("--test-steps", default=50, show_default=True, help="Attack steps in testing; UAR takes 200.")
@click.option("--images", "n", default=500, show_default=True, help="Test on the first N test images.")
@options.running
def command(
    data: str, attacks: tuple[str, ...], anchor: str, arch: str, steps: int, epochs: int, eps_ramp: int | None,
    batch_size: int, lr: float, candidates: int, test_steps: int, n: int, seed: int, out: str | None, download: bool,
    device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Calibrate UAR: train a network against every attack at every size, and find six sizes that are equally hard.

    The result is a file for each attack in the run folder; an interrupted run goes on where it stopped.

    \b
    vizrobust calibrate --data mnist5k --attack L2 --attack L1 --attack Elastic --attack JPEG --out runs/uar
    vizrobust calibrate --data cifar10 --arch resnet18 --steps 10 --epochs 30 --attack 'L2(eps=10)' --out runs/uar
    """
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.experiments.uar_calibration import Plan, Stage, calibrate
    from vizrobust.runs import default_folder
    from vizrobust.training import TrainingRecipe, recorded_threads

    # Large radii often do not start to learn with the shorter ramp of `train`; UAR draws eps from (0, eps) instead.
    ramp = epochs // 2 if eps_ramp is None else eps_ramp
    recipe = TrainingRecipe(
        arch=arch, data=data, epochs=epochs, eps_ramp=ramp, batch_size=batch_size, lr=lr, precision=precision, seed=seed
    )
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    plan = Plan(recipe, tuple(_type(text, steps) for text in attacks), _type(anchor, steps), candidates, test_steps, n)
    loaded = load(data, download, typed=True)
    folder = out or str(default_folder("calibrate", {"plan": repr(plan)}))
    compute = Compute(device, precision, recorded_threads(folder))
    say(f"{plan}\nin {folder}")
    found: list[dict[str, Any]] = []
    with progress(quiet or as_json) as bars:
        task = bars.add_task("calibrate", total=None)
        for event in calibrate(plan, loaded, compute, folder, command_line()):
            if isinstance(event, Stage):
                bars.update(task, completed=event.done, total=event.total, description=event.what)
            else:
                found.append(event)
                if as_json:
                    json_row(event)
    if not as_json:
        _print(found, loaded.name)
    say(f"written: {folder}/calibrations/*.json")


def _type(text: str, steps: int) -> Attack:
    """An attack type from its text; a norm stands for PGD in its ball."""
    from vizrobust.attacks import ATTACKS, NAMES, PGD, UNFORESEEN, Attack, Ball
    from vizrobust.spec import parse, vary

    found = parse(text, NAMES, "attack", typed=True)
    attack = PGD(ball=found) if isinstance(found, Ball) else found
    if not isinstance(attack, Attack):
        raise ValueError(f"{text!r} is not an attack; there are: {', '.join((*ATTACKS, *UNFORESEEN))}")
    return vary(attack, steps=steps)


def _print(found: list[dict[str, Any]], data: str) -> None:
    rows = [
        [row["name"], *(f"{eps:.3g}: {percent(ata)}" for eps, ata in zip(row["eps"], row["ata"], strict=True))] for row in found
    ]
    header = ["attack", *(f"size {k + 1}" for k in range(len(found[0]["eps"])))]
    note = "ATA: the accuracy at each eps of the network that is best there, of those trained against the attack"
    table(f"calibration on {data}: eps and ATA", header, rows, note)
