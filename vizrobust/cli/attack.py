"""`vizrobust attack`: accuracy under attack, with intervals, curves, smallest radii and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, say

if TYPE_CHECKING:
    from vizrobust.cli.attack_tables import Result
    from vizrobust.compute import Compute
    from vizrobust.data import DataSet, Split

CURVES = ("eps", "steps", "training-steps")
SUITES = ("unforeseen", "corruptions")


@click.command()
@options.some_refs
@click.option(
    "--attack", "attacks", multiple=True, metavar="SPEC",
    help="fgsm, pgd, standard (AutoAttack) or a whole spec (vizrobust list attacks); several allowed [pgd].",
)  # fmt: skip
@click.option("--steps", type=int, help="Gradient steps, for attacks that have them.")
@options.eps
@options.norm
@click.option("--images", "n", default=1000, show_default=True, help="Use the first N test images.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--batch-size", default=100, show_default=True)
@click.option("--minimal", is_flag=True, help="Each image's smallest eps that breaks it, with the median.")
@click.option("--curve", type=click.Choice(CURVES), help="Accuracy over eps, over attack steps, or over training steps K.")
@click.option("--suite", type=click.Choice(SUITES), help="Attacks that training has not used, or common corruptions.")
@click.option("--calibration", type=click.Path(), metavar="DIR", help="With --suite unforeseen: a run of vizrobust calibrate.")
@click.option("--per-class", is_flag=True, help="Accuracy for each class, the worst first.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the curve, or the smallest eps, to a .png, .svg or .pdf.")
@click.option("--show", type=click.Path(), metavar="FILE", help="Draw clean image, perturbation and adversarial image.")
@options.data
@options.arch
@options.running
def command(
    refs: tuple[str, ...], attacks: tuple[str, ...], steps: int | None, eps: float | None, norm: str | None, n: int, split: str,
    batch_size: int, minimal: bool, curve: str | None, suite: str | None, calibration: str | None, per_class: bool,
    plot: str | None, show: str | None, data: str | None, arch: str | None, seed: int, out: str | None, download: bool,
    device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Attack checkpoints and print their accuracy with Wilson 95 % intervals.

    An image counts as robust if it is right clean and at every point that the attack passed. Broken images leave
    the batch. Verdicts are kept in the run folder: an interrupted evaluation goes on where it stopped.

    \b
    vizrobust attack mnist-k8 runs/k8 --attack fgsm --attack ism --attack pgd --steps 40 --eps 0.3
    vizrobust attack mnist-k8 --attack standard --images 200
    vizrobust attack mnist-k0 mnist-k8 --minimal --plot smallest.png
    vizrobust attack mnist-k0 mnist-k8 --curve eps --plot curve.png
    vizrobust attack mnist-k8 --suite unforeseen
    """
    from vizrobust.cli.attacking import Evaluations, fitted
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.compute import Compute
    from vizrobust.data import head
    from vizrobust.report.style import format_of

    _refuse_what_excludes(minimal, curve, suite, attacks, per_class, show, plot or as_json)
    if n < 1 or batch_size < 1:
        raise ValueError(f"--images and --batch-size must be at least 1, got {n} and {batch_size}")
    for file in filter(None, (plot, show)):
        format_of(file)  # before minutes of attack, not after
    compute = Compute(device, precision)
    if not compute.processes.main:
        plot = show = None  # all attack, one draws
    checkpoints = [(checkpoint, data_of(checkpoint, data, download)) for checkpoint in load_all(refs, arch, download)]
    images = {checkpoint.id: head(loaded.split(split), n) for checkpoint, loaded in checkpoints}

    def evaluations(loaded: DataSet, holds: str = "attack") -> Evaluations:
        return Evaluations.open(
            holds, loaded, split, compute, seed=seed, batch_size=batch_size, out=out, quiet=quiet or as_json
        )  # fmt: skip

    options_: dict[str, Any] = {"norm": norm, "eps": eps, "steps": steps}
    if suite == "corruptions":
        from vizrobust.cli.corruptions import corruptions

        corruptions(checkpoints, images, lambda loaded: evaluations(loaded, "corruptions"), plot, as_json)
        return
    if suite == "unforeseen":
        from vizrobust.cli.unforeseen import unforeseen

        unforeseen(checkpoints, images, evaluations, attacks, plot, as_json, calibration, **options_)
        return
    if minimal or curve == "eps":
        from vizrobust.cli.radii import smallest_radii

        smallest_radii(checkpoints, images, evaluations, attacks, split, minimal, plot, as_json, **options_)
        return
    results: list[Result] = []
    for checkpoint, loaded in checkpoints:
        for attack in fitted(attacks, loaded, **options_):
            found = evaluations(loaded).of(checkpoint, attack, images[checkpoint.id], all_runs=curve == "steps")
            results.append((checkpoint, loaded, found))
            if as_json:
                json_row({"checkpoint": checkpoint.name, "data": loaded.name, "split": split, **found.row()})
                for row in found.curve() if curve == "steps" else ():
                    json_row({"checkpoint": checkpoint.name, "attack": repr(attack), "curve": "steps", **row})
    _print(results, split, images, per_class, as_json)
    if plot and curve:
        _plot(plot, curve, results)
        say(f"drawn: {plot}")
    if show:
        _show(show, results, split, compute, seed)
        say(f"drawn: {show}")


def _refuse_what_excludes(
    minimal: bool, curve: str | None, suite: str | None, attacks: Sequence[str], per_class: bool,
    show: str | None, drawn: str | bool | None,
) -> None:  # fmt: skip
    modes = [name for name, given in (("--minimal", minimal), (f"--curve {curve}", curve), (f"--suite {suite}", suite)) if given]
    if len(modes) > 1:
        raise click.UsageError(f"{' and '.join(modes)} answer different questions; give one of them")
    if suite == "corruptions" and attacks:
        raise click.UsageError("--suite corruptions has no attack; leave --attack out")
    if (per_class or show) and (modes and modes != ["--curve steps"]):
        raise click.UsageError(f"--per-class and --show go with plain accuracies, not with {modes[0]}")
    if drawn and drawn is not True and not modes:
        raise click.UsageError("--plot needs something to draw: --curve eps, --curve steps, --curve training-steps or --minimal")
    if curve and not drawn:
        raise click.UsageError(f"--curve {curve} needs --plot FILE, e.g. --plot curve.png, or --json")


def _print(results: list[Result], split: str, images: dict[str, Split], per_class: bool, as_json: bool) -> None:
    from vizrobust.cli import attack_tables
    from vizrobust.intervals import per_class as by_class

    if not as_json:
        attack_tables.accuracies(results, split)
        attack_tables.successes_by_component(results)
        if per_class:
            attack_tables.classes(results, [images[checkpoint.id] for checkpoint, _, _ in results])
    elif per_class:
        for checkpoint, loaded, found in results:
            labels = images[checkpoint.id].labels[found.indices]
            for row in by_class(found.robust, labels, loaded.classes):
                json_row({"checkpoint": checkpoint.name, "attack": repr(found.attack), **row.row()})


def _plot(path: str, curve: str, results: list[Result]) -> None:
    from vizrobust.report.attack_figures import accuracy_over_attack_steps, accuracy_over_training_steps

    if curve == "steps":
        for _, _, found in results:
            if len(set(found.components)) > 1:
                raise ValueError(f"{found.attack} has members of different steps; --curve steps needs one, such as pgd")
        accuracy_over_attack_steps(path, [(f"{c.name}, {r.attack}", r.curve()) for c, _, r in results], command=command_line())
        return
    series: dict[str, list[dict[str, Any]]] = {}
    for checkpoint, _, result in results:
        if checkpoint.info.attack_steps is None:
            raise ValueError(f"{checkpoint.name!r} does not say its number of training steps K; leave it out of the plot")
        point = {**result.row(), "steps": checkpoint.info.attack_steps, "name": checkpoint.name}
        series.setdefault(repr(result.attack), []).append(point)
    accuracy_over_training_steps(path, list(series.items()), command=command_line())


def _show(path: str, results: list[Result], split: str, compute: Compute, seed: int) -> None:
    """The first images that the attack breaks (the first images at all, where it breaks none)."""
    from vizrobust.report.attack_figures import adversarial_examples
    from vizrobust.robustness import examples

    checkpoint, loaded, result = results[0]
    if len(results) > 1:
        say(f"--show draws the first result only: {checkpoint.name}, {result.attack}")
    shown = examples(checkpoint.net(), result, loaded.split(split), compute, seed)
    adversarial_examples(
        path, shown.x, shown.adv, shown.labels, shown.clean_probs, shown.adv_probs,
        loaded.classes, repr(result.attack), checkpoint.name, command=command_line(),
    )  # fmt: skip
