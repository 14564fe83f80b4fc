"""`vizrobust attack`: accuracy under attack, with intervals, curves and examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.attacks import Attack
    from vizrobust.compute import Compute
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint
    from vizrobust.robustness import Evaluation

CURVES = ("steps", "training-steps")


@click.command()
@options.some_refs
@click.option("--attack", "attacks", multiple=True, metavar="SPEC", help="fgsm, ism, pgd or a whole spec; several allowed [pgd].")
@click.option("--steps", type=int, help="Gradient steps, for attacks that have them.")
@options.eps
@options.norm
@click.option("--images", "n", default=1000, show_default=True, help="Use the first N test images.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--batch-size", default=100, show_default=True)
@click.option("--curve", type=click.Choice(CURVES), help="With --plot: accuracy over attack steps, or over training steps K.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the curve to a .png, .svg or .pdf.")
@click.option("--show", type=click.Path(), metavar="FILE", help="Draw clean image, perturbation and adversarial image.")
@options.data
@options.arch
@options.seed
@options.download
@options.machine
@options.as_json
@options.quiet
def command(
    refs: tuple[str, ...], attacks: tuple[str, ...], steps: int | None, eps: float | None, norm: str | None, n: int, split: str,
    batch_size: int, curve: str | None, plot: str | None, show: str | None, data: str | None, arch: str | None, seed: int,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Attack checkpoints and print their accuracy with Wilson 95 % intervals.

    An image counts as robust if it is right clean and at every point that the attack passed.

    \b
    vizrobust attack mnist-k8 runs/k8 --attack fgsm --attack ism --attack pgd --steps 40 --eps 0.3
    vizrobust attack mnist-k0 mnist-k8 --curve steps --plot curve.png
    vizrobust attack mnist-k0 --attack pgd --show example.png
    """
    from vizrobust.attacks import fit, parse_attack
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.compute import Compute
    from vizrobust.data import first
    from vizrobust.report.style import format_of

    if (curve is None) != (plot is None):
        raise click.UsageError("--curve and --plot go together, e.g. --curve steps --plot curve.png")
    if n < 1 or batch_size < 1:
        raise ValueError(f"--images and --batch-size must be at least 1, got {n} and {batch_size}")
    for file in filter(None, (plot, show)):
        format_of(file)  # before minutes of attack, not after
    compute = Compute(device, precision)
    checkpoints = load_all(refs, arch, download)
    results: list[tuple[Checkpoint, DataSet, Evaluation]] = []
    with progress(quiet or as_json) as bars:
        for checkpoint in checkpoints:
            loaded = data_of(checkpoint, data, download)
            images = first(loaded.split(split), n)
            fitted = [fit(parse_attack(text), loaded.eps, norm, eps=eps, steps=steps) for text in attacks or ("pgd",)]
            for attack in fitted:
                task = bars.add_task(f"{checkpoint.name}  {attack}", total=len(images))
                result = _evaluate(checkpoint, attack, images, compute, seed, batch_size, lambda k, t=task: bars.advance(t, k))
                results.append((checkpoint, loaded, result))
                if as_json:
                    json_row({"checkpoint": checkpoint.name, "data": loaded.name, "split": split, **result.row()})
                    for row in result.curve() if curve == "steps" else ():
                        json_row({"checkpoint": checkpoint.name, "attack": repr(attack), "curve": "steps", **row})
    if not as_json:
        _print(results, split)
    if plot and curve:
        _plot(plot, curve, results)
        say(f"drawn: {plot}")
    if show:
        _show(show, results, split, compute, seed)
        say(f"drawn: {show}")


def _evaluate(
    checkpoint: Checkpoint, attack: Attack, images: Split, compute: Compute, seed: int, batch_size: int, advance: Any
) -> Evaluation:
    from vizrobust.robustness import evaluate, gather

    parts = []
    for part in evaluate(checkpoint.net(), attack, images, compute, seed, batch_size):
        parts.append(part)
        advance(len(part.images))
    return gather(attack, parts)


def _print(results: list[tuple[Checkpoint, DataSet, Evaluation]], split: str) -> None:
    rows = []
    for checkpoint, _, result in results:
        row = result.row()
        interval = f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}"
        rows.append([
            checkpoint.name, row["attack"] + (f"  ({row['note']}: {row['max_norm']:.3g})" if row["note"] else ""),
            percent(row["clean"]), percent(row["accuracy"]), interval,
            str(row["n"]), f"{row['seconds']:.1f}", f"{row['gradient_passes']:g}",
        ])  # fmt: skip
    header = ["checkpoint", "attack", "clean", "accuracy", "95 % interval", "images", "seconds", "gradients per image"]
    names = ", ".join(dict.fromkeys(f"{loaded.name} {split}" for _, loaded, _ in results))
    table(f"accuracy under attack, first images of {names}", header, rows)


def _plot(path: str, curve: str, results: list[tuple[Checkpoint, DataSet, Evaluation]]) -> None:
    from vizrobust.report.figures import accuracy_over_attack_steps, accuracy_over_training_steps

    if curve == "steps":
        accuracy_over_attack_steps(path, [(f"{c.name}, {r.attack}", r.curve()) for c, _, r in results], command=command_line())
        return
    series: dict[str, list[dict[str, Any]]] = {}
    for checkpoint, _, result in results:
        if checkpoint.about.attack_steps is None:
            raise ValueError(f"{checkpoint.name!r} does not say its number of training steps K; leave it out of the plot")
        point = {**result.row(), "steps": checkpoint.about.attack_steps, "name": checkpoint.name}
        series.setdefault(repr(result.attack), []).append(point)
    accuracy_over_training_steps(path, list(series.items()), command=command_line())


def _show(path: str, results: list[tuple[Checkpoint, DataSet, Evaluation]], split: str, compute: Compute, seed: int) -> None:
    """The first images that the attack breaks (the first images at all, where it breaks none)."""
    from vizrobust.report.examples import adversarial_examples
    from vizrobust.robustness import examples

    checkpoint, loaded, result = results[0]
    if len(results) > 1:
        say(f"--show draws the first result only: {checkpoint.name}, {result.attack}")
    shown = examples(checkpoint.net(), result, loaded.split(split), compute, seed)
    adversarial_examples(
        path, shown.x, shown.adv, shown.labels, shown.clean_probs, shown.adv_probs,
        loaded.classes, repr(result.attack), checkpoint.name, command=command_line(),
    )  # fmt: skip
