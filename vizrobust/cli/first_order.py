"""`vizrobust head-order`: what the gradient at an image promises an attack, against what attacks really cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.attacks import Ball
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint
    from vizrobust.robustness.first_order import FirstOrder

    Found = list[tuple[Checkpoint, DataSet, FirstOrder]]

# The margin first: its shares are those to be believed, and its drops are drawn.
LOSSES = ("margin", "ce")


@click.command()
@options.some_refs
@options.eps
@options.norm
@click.option("--images", "n", default=1000, show_default=True, help="Use the first N test images.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--steps", default=20, show_default=True, help="Steps of PGD.")
@click.option("--loss", default="both", show_default=True, type=click.Choice((*LOSSES, "both")), help="Drops of what.")
@click.option("--batch-size", default=100, show_default=True, help="Recorded: an image's result is bit-equal at one batch size.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw each image's drops to a .png, .svg or .pdf.")
@options.data
@options.arch
@options.seed
@options.download
@options.machine
@options.as_json
@options.quiet
def command(
    refs: tuple[str, ...], eps: float | None, norm: str | None, n: int, split: str, steps: int, loss: str, batch_size: int,
    plot: str | None, data: str | None, arch: str | None, seed: int, download: bool, device: str, precision: str,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compare the drop that the gradient promises, eps times its dual norm, with the drops under FGSM and PGD.

    A network that has overfitted to one-step attacks, or whose gradient hides attacks, shows itself here in seconds;
    `vizrobust masking` then gives a verdict.

    \b
    vizrobust first-order mnist-k0 mnist-k1 mnist-k8
    vizrobust first-order mnist-k1 mnist-k8 --loss margin --plot drops.png
    vizrobust first-order mnist-k8 --norm L2 --eps 2 --images 200
    """
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.compute import Compute
    from vizrobust.data import head
    from vizrobust.report.style import format_of
    from vizrobust.robustness.first_order import first_order

    for name, value in (("--images", n), ("--steps", steps), ("--batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if plot:
        format_of(plot)  # before the attacks, not after
    compute = Compute(device, precision)
    loaded = [(checkpoint, data_of(checkpoint, data, download)) for checkpoint in load_all(refs, arch, download)]
    jobs = [(*pair, head(pair[1].split(split), n), _ball(pair[1], eps, norm)) for pair in loaded]
    losses = LOSSES if loss == "both" else (loss,)
    found: Found = []
    with progress(quiet or as_json) as bars:
        task = bars.add_task("", total=len(jobs) * len(losses))
        for checkpoint, own_data, images, ball in jobs:
            for one in losses:
                bars.update(task, description=f"{checkpoint.name}  {one}")
                try:
                    drops = first_order(checkpoint.net(), images, ball, compute, one, steps, seed, batch_size)
                except ValueError as error:
                    raise ValueError(f"{checkpoint.name}: {error}") from error
                found.append((checkpoint, own_data, drops))
                if as_json:
                    about = {"checkpoint": checkpoint.name, "data": own_data.name, "split": split}
                    json_row({**about, **drops.summary(), "drops": list(drops.rows())})
                bars.advance(task)
    if not as_json:
        _print(found, split)
    if plot:
        _plot(plot, [(checkpoint.name, drops) for checkpoint, _, drops in found if drops.loss == losses[0]])
        others = "; --loss ce draws log p" if loss == "both" else ""
        say(f"drawn: {plot} ({losses[0]}{others})")


def _ball(data: DataSet, eps: float | None, norm: str | None) -> Ball:
    from vizrobust.attacks import BALLS
    from vizrobust.spec import lookup

    kind = lookup(BALLS, norm or "Linf", "norm")
    if eps == 0:
        raise ValueError("--eps 0 leaves nothing to attack; give a positive radius")
    if eps is None and kind.__name__ != "Linf":
        raise ValueError(f"--norm {kind.__name__} needs --eps: the radius of {data.name}, {data.eps:g}, is an L-inf one")
    return kind(eps=data.eps if eps is None else eps)


def _print(found: Found, split: str) -> None:
    summaries = [(checkpoint.name, drops.summary()) for checkpoint, _, drops in found]
    where = ", ".join(dict.fromkeys(f"{data.name} {split}, {drops.ball}" for _, data, drops in found))
    rows = [
        [name, row["loss"], str(row["n"]), *(_number(row[drop]) for drop in ("predicted", "fgsm", "pgd")),
         _number(row["fgsm_over_linear"]), _number(row["pgd_over_predicted"]), _rank(row["rank_fgsm"])]
        for name, row in summaries
    ]  # fmt: skip
    header = ["checkpoint", "loss", "images", "predicted", "FGSM", "PGD", "FGSM /\nlinear", "PGD /\npredicted", "rank"]
    note = (
        "Medians over the images that are classified correctly, in logits (margin) or nats of log p (ce).\n"
        "linear: what the gradient promises at FGSM's point; rank: of the prediction with FGSM's drop."
    )
    table(f"predicted and real drops: {where}, PGD with {found[0][2].steps} steps", header, rows, note)
    rows = [[name, row["loss"], *_share(row, "short"), *_share(row, "hidden")] for name, row in summaries]
    note = (
        "short: FGSM gets under half of what the gradient promises, PGD does not; the mark of overfitting to\n"
        "one-step attacks. hidden: PGD gets over twice the prediction; the gradient hides the attack. Read it\n"
        "with the margin: cross entropy is flat on images that a network is sure of, and would accuse any."
    )
    header = ["checkpoint", "loss", "short", "95 % interval", "hidden", "95 % interval"]
    table("images where the gradient does not tell what attacks find", header, rows, note)


def _number(value: float | None) -> str:
    """Three digits, and more before the point: ratios can be huge where there is hardly any gradient."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _rank(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(row: dict[str, Any], name: str) -> list[str]:
    return [percent(row[name]), f"{100 * row[f'{name}_ci_low']:.1f} to {100 * row[f'{name}_ci_high']:.1f}"]


def _plot(path: str, panels: Sequence[tuple[str, FirstOrder]]) -> None:
    from vizrobust.report.first_order_figures import first_order_scatter

    rows = [(label, list(drops.rows())) for label, drops in panels]
    first_order_scatter(path, rows, command_line(), loss=panels[0][1].loss)
