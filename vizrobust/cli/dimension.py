"""`vizrobust dimension`: one network trained at several image sizes, and how its gradient grows with their number of pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.data import DataSet
    from vizrobust.experiments.input_dimension import Growth

LOSSES = ("margin", "ce")
# Fresh first: the figure draws sqrt(d) through the first of them, and it is argued for fresh weights.
WEIGHTS = {"fresh": "_untrained", "trained": ""}  # and how the columns of a row end
# A slope through two sizes has no interval that would say what it is worth.
SIDES_AT_LEAST = 3

Slopes = list[tuple[str, str, "Growth"]]


@click.command()
@click.option("--data", required=True, metavar="REF", help="Data set (vizrobust list data).")
@click.option("--sides", "sides_text", required=True, metavar="LIST", help="Shorter sides in pixels, e.g. 7,14,28,56.")
@click.option("--arch", default="small_cnn", show_default=True, metavar="REF", help="Architecture, or path/to/file.py:callable.")
@click.option("--seeds", default=3, show_default=True, help="Networks at each size.")
@click.option("--steps", default=0, show_default=True, help="K: attack steps for each training example; 0: standard training.")
@click.option("--eps", type=options.Number(), help="Radius of training's attack, with --steps; default: the data set's.")
@click.option("--epochs", default=8, show_default=True, help="Of each training.")
@click.option("--batch-size", default=100, show_default=True)
@click.option("--lr", default=2e-3, show_default=True, help="Peak of the one-cycle learning rate.")
@click.option("--images", "n", default=1000, show_default=True, help="Gradients at the first N test images.")
@click.option("--loss", default="both", show_default=True, type=click.Choice((*LOSSES, "both")), help="Gradient of what.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the growth to a .png, .svg or .pdf.")
@options.running
def command(
    data: str, sides_text: str, arch: str, seeds: int, steps: int, eps: float | None, epochs: int, batch_size: int, lr: float,
    n: int, loss: str, plot: str | None, seed: int, out: str | None, download: bool, device: str, precision: str,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train one network at several image sizes and print how the L1 norm of its gradient grows with d, their pixels.

    The lecture's argument for adversarial examples: the drop that an L-inf step of eps promises is eps times this norm,
    and it grows as sqrt(d). Smaller images are means over areas, larger ones repeat pixels. The same command goes on
    where it stopped, also with more --sides or --seeds.

    \b
    vizrobust dimension --data mnist5k --sides 7,14,28,56 --plot growth.png --out runs/dimension
    vizrobust dimension --data mnist5k --sides 7,14,28 --seeds 5 --steps 8 --epochs 20 --out runs/dimension-k8
    """
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.experiments.input_dimension import dimension_study
    from vizrobust.report.style import format_of
    from vizrobust.runs import default_folder
    from vizrobust.training import Progress, TrainingRecipe, recorded_threads

    for name, value in (("--images", n), ("--seeds", seeds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if steps < 0 or (steps == 0 and eps is not None):
        raise ValueError(f"--steps {steps} with --eps {eps}: training against an attack needs --steps of at least 1")
    sides = _sides(sides_text)
    if plot:
        format_of(plot)  # before the trainings, not after
    loaded = load(data, download, typed=True)
    recipe = TrainingRecipe(
        arch=arch, data=data, attack=_attack(steps, eps, loaded), epochs=epochs, batch_size=batch_size, lr=lr,
        precision=precision,
    )  # fmt: skip
    _rehearse(arch, loaded, sides)
    folder = out or str(default_folder("dimension", {"training": repr(recipe), "images": n}))
    compute = Compute(device, precision, recorded_threads(folder))
    say(f"{recipe}\nin {folder}")
    cells = [(side, one) for side in sides for one in range(seed, seed + seeds)]
    rows: list[dict[str, Any]] = []
    with progress(quiet or as_json) as bars:
        task = bars.add_task("epochs", total=len(cells) * epochs)
        for event in dimension_study(
            recipe, loaded, sides, compute, folder, range(seed, seed + seeds), images=n, argv=command_line()
        ):  # fmt: skip
            if isinstance(event, Progress):
                side, number = cells[len(rows)]
                part = event.epoch - 1 + event.batch / event.batches
                bars.update(task, completed=len(rows) * epochs + part, description=f"{side} px, seed {number}")
                continue
            rows.append(event)
            bars.update(task, completed=len(rows) * epochs)
            if as_json:
                json_row(event)
    _report(rows, loaded, arch, LOSSES if loss == "both" else (loss,), plot, as_json)


def _sides(text: str) -> tuple[int, ...]:
    """The sides in a list such as 7,14,28, in order and each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise ValueError(f"--sides {text}: {part!r} is not a number of pixels; write whole numbers from 1 on, e.g. 7,14,28")
    sides = tuple(sorted({int(part) for part in parts}))
    if len(sides) < SIDES_AT_LEAST:
        raise ValueError(
            f"--sides {text!r} has {len(sides)} different sides; a slope with an interval needs {SIDES_AT_LEAST} or more"
        )
    return sides


def _attack(steps: int, eps: float | None, data: DataSet) -> Any:
    from vizrobust.attacks import PGD, configured

    return configured(PGD(), data.eps, steps=steps, eps=eps) if steps else None


def _rehearse(arch: str, data: DataSet, sides: Sequence[int]) -> None:
    """``ValueError`` where an image size does not fit the architecture, before an hour of training at those that do."""
    import torch

    from vizrobust.experiments.input_dimension import resized
    from vizrobust.models import architecture

    layers: dict[tuple[str, ...], int] = {}
    for side in sides:
        shape = resized(data, side).shape
        build = architecture(arch, shape, len(data.classes))
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
                warnings.simplefilter("ignore")  # of weights without any entry, which fail a line later
                net = build().eval()
                net(torch.zeros(1, *shape))
        except Exception as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            size = f"{shape[2]} x {shape[1]} px"
            raise ValueError(f"{arch} cannot take images of {size} ({why}); leave {side} out of --sides") from error
        layers.setdefault(tuple(net.state_dict()), side)
    if len(layers) > 1:
        others = " and ".join(f"{side} px" for side in layers.values())
        say(f"note: {arch} has different layers from {others} on, so its networks are not quite one family")


def _report(rows: list[dict[str, Any]], data: DataSet, arch: str, losses: Sequence[str], plot: str | None, as_json: bool) -> None:
    from vizrobust.experiments.input_dimension import LECTURE_SLOPE, growth

    slopes: Slopes = [(loss, weights, growth(rows, loss, weights == "trained")) for loss in losses for weights in WEIGHTS]
    if as_json:
        for loss, weights, one in slopes:
            fitted = {"slope": one.slope, "ci_low": one.ci_low, "ci_high": one.ci_high, "factor": one.factor}
            json_row({"loss": loss, "weights": weights, **fitted, "lecture": LECTURE_SLOPE, "n": len(rows)})
    else:
        _norms(rows, data, arch, losses)
        _slopes(slopes, len(rows))
    if plot:
        from vizrobust.report.first_order_figures import gradient_growth

        gradient_growth(plot, [(f"{loss}, {weights}", one) for loss, weights, one in slopes], command_line())
        say(f"drawn: {plot}")


def _norms(rows: list[dict[str, Any]], data: DataSet, arch: str, losses: Sequence[str]) -> None:
    def mean(name: str, side: int) -> float:
        values = [row[name] for row in rows if row["side"] == side]
        return sum(values) / len(values)

    names = [f"l1_{loss}{end}" for loss in losses for end in WEIGHTS.values()]
    shown = [
        [str(side), str(next(row["d"] for row in rows if row["side"] == side)), percent(mean("clean", side)),
         *(f"{mean(name, side):.3g}" for name in names)]
        for side in dict.fromkeys(row["side"] for row in rows)
    ]  # fmt: skip
    header = ["side, px", "d", "clean", *(f"{loss},\n{weights}" for loss in losses for weights in WEIGHTS)]
    seeds = len({row["seed"] for row in rows})
    note = (
        f"means over {seeds} network{'s' if seeds > 1 else ''} of each size and {rows[0]['n']} test images; d: values in an image"
    )
    table(f"L1 norm of the gradient: {arch} on {data.name}", header, shown, note)


def _slopes(slopes: Slopes, networks: int) -> None:
    from vizrobust.experiments.input_dimension import LECTURE_SLOPE

    rows = [
        [loss, weights, f"{one.slope:.2f}", "-" if one.ci_low is None else f"{one.ci_low:.2f} to {one.ci_high:.2f}",
         f"{LECTURE_SLOPE:.2f}"]
        for loss, weights, one in slopes
    ]  # fmt: skip
    note = (
        f"slope: of log(L1 norm) over log(d), fitted to all {networks} networks. Above 0, the same eps promises a\n"
        "larger drop on larger images. The lecture argues for sqrt(d), 0.50, of fresh weights."
    )
    table("growth with the input dimension d", ["loss", "weights", "slope", "95 % interval", "lecture"], rows, note)
