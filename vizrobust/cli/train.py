"""`vizrobust train`: train a network with K attack steps, or a sweep of them, in folders that can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, json_row, percent, progress, say, say_next, table

if TYPE_CHECKING:
    from vizrobust.attacks import Attack
    from vizrobust.compute import Compute
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint
    from vizrobust.training import Method, MultiAttack, TrainingRecipe

# Written out here, because asking training would make every --help slow; a test compares them with its own.
MIX_MODES = ("avg", "max", "random")
BASELINE_ATTACKS = ("fgsm", "fast", "noise")
SCHEDULES = ("one-cycle", "cosine", "piecewise", "constant")
ON_COLLAPSE = ("warn", "stop", "rollback")
TRACKERS = ("tensorboard", "wandb", "mlflow")


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a number of steps such as 8, nor several such as 0,1,8", param, ctx)
        if len(set(found)) < len(found):
            self.fail(f"{value!r} has a number twice", param, ctx)
        return found


how = options.together(
    click.option("--steps", type=Numbers(), metavar="K[,K]", help="K: attack steps for each example; 0 is standard training."),
    click.option(
        "--attack", "attacks", multiple=True, metavar="SPEC",
        help="The whole attack: FGSM() or 'PGD(steps=7, ball=L2(eps=1.0))'; several with --mix.",
    ),
    click.option(
        "--mix", type=click.Choice(MIX_MODES), help="With several attacks: learn from all, each image's worst, or one at random."
    ),
    click.option(
        "--method", metavar="NAME|SPEC",
        help="TRADES(beta=6), Free(replays=8), NFGSM(), GradAlign(weight=0.2), Distillation(temperature=100), or for short "
        + ", ".join(BASELINE_ATTACKS) + ".",
    ),
    options.eps,
    options.norm,
    click.option("--clean-weight", default=0.0, show_default=True, help="Share of the clean loss in the mix."),
    click.option("--label-smoothing", default=0.0, show_default=True),
    click.option("--awp", default=0.0, show_default=True, help="Adversarial weight perturbation, as .005 or .01."),
)  # fmt: skip
course = options.together(
    click.option("--epochs", default=20, show_default=True),
    click.option("--batch-size", default=100, show_default=True),
    click.option("--optimizer", default="adam", show_default=True, help="adam or sgd."),
    click.option("--lr", default=2e-3, show_default=True, help="Peak of the learning rate."),
    click.option("--schedule", type=click.Choice(SCHEDULES), default="one-cycle", show_default=True, help="Of the rate."),
    click.option("--weight-decay", default=0.0, show_default=True),
    click.option("--ema", type=float, metavar="DECAY", help="Keep a moving average of the weights, as .999."),
    click.option("--eps-ramp", type=int, help="Epochs over which eps rises from 0; default: the first fifth, at most 5."),
    click.option("--augment", default="none", show_default=True, help="none, crop, crop+flip, window+flip or heavy."),
    click.option("--watch", default=200, show_default=True, help="Validation images on which accuracy is watched."),
    click.option("--early-stopping", type=int, metavar="EPOCHS", help="End after so many without a better robust accuracy."),
    click.option(
        "--on-collapse", type=click.Choice(ON_COLLAPSE), default="warn", show_default=True,
        help="When robust accuracy collapses: go on, end before it, or train the epoch again.",
    ),
)  # fmt: skip
keeping = options.together(
    click.option("--seeds", type=int, metavar="N", help="A sweep over N training seeds, from --seed on."),
    click.option("--cell", metavar="NAME|NUMBER", help="of a sweep this training run alone, for a job array."),
    click.option("--checkpoint-every", type=int, metavar="BATCHES", help="Keep the state within epochs too."),
    click.option("--compile", is_flag=True, help="Send batches through torch.compile; worth it on GPUs, measure first."),
    click.option("--track", type=click.Choice(TRACKERS), help="Send the numbers to a tracker as well."),
)


@click.command()
@click.option("--data", required=True, metavar="REF", help="Data set (vizrobust list data).")
@click.option("--arch", required=True, metavar="REF", help="Architecture (vizrobust list archs), or path/to/file.py:callable.")
@how
@course
@keeping
@options.running
def command(
    data: str, arch: str, steps: tuple[int, ...] | None, attacks: tuple[str, ...], mix: str | None, method: str | None,
    eps: float | None, norm: str | None, seeds: int | None, cell: str | None, checkpoint_every: int | None, track: str | None,
    seed: int, out: str | None, download: bool, device: str, precision: str, as_json: bool, quiet: bool, **fields: object,
) -> None:  # fmt: skip
    """Train with K attack steps; the same command goes on where it stopped.

    With several attacks --steps sets each one's steps, and each SPEC names its own radius. Several K, or --seeds, are a
    sweep: every training run has a folder of its own inside --out, and several processes may work on it at once.

    \b
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --eps 0.3 --epochs 20 --out runs/k8
    vizrobust train --data mnist5k --arch small_cnn --steps 0 --out runs/k0          # standard training
    vizrobust train --data mnist5k --arch small_cnn --method fast --out runs/fast
    vizrobust train --data mnist5k --arch small_cnn --method 'TRADES(beta=1)' --steps 8 --out runs/trades
    vizrobust train --data mnist5k --arch small_cnn --steps 0,1,2,4,8 --seeds 3 --out runs/sweep
    vizrobust train --data mnist5k --arch small_cnn --steps 8 --mix max \\
        --attack 'PGD(ball=Linf(eps=0.3))' --attack 'PGD(ball=L2(eps=2.0))' --out runs/two
    """
    from vizrobust.data import load
    from vizrobust.runs import default_folder
    from vizrobust.training import TrainingRecipe

    for k in steps or ():
        if k < 0:
            raise ValueError(f"--steps must not be negative, got {k}; 0 is standard training")
    if steps is not None and 0 in steps and attacks:
        raise click.UsageError("--steps 0 is standard training, without an --attack; leave out one of the two")
    if len(attacks) > 1 and mix is None:
        raise click.UsageError(f"{len(attacks)} attacks need --mix avg, max or random to say how to learn from them")
    if len(attacks) < 2 and mix is not None:
        raise click.UsageError(f"--mix {mix} needs two --attack or more, got {len(attacks)}; give another or leave --mix out")
    if len(attacks) > 1 and (eps is not None or norm is not None):
        raise click.UsageError("with several attacks write each one's norm and radius in its SPEC, not --eps or --norm")
    if method is not None and method.lower() in BASELINE_ATTACKS and (attacks or steps):
        raise click.UsageError(f"--method {method} is an attack already; leave out --attack and --steps")
    if seeds is not None and seeds < 1:
        raise click.UsageError(f"--seeds must be at least 1, got {seeds}")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise click.UsageError(f"--checkpoint-every must be at least 1 batch, got {checkpoint_every}")
    way = _method(method)
    if steps is None and not attacks and method is None:
        raise click.UsageError("say how to train: --steps K (0 is standard training), --attack SPEC or --method NAME")
    is_sweep = seeds is not None or (steps is not None and len(steps) > 1)
    if cell is not None and not is_sweep:
        raise click.UsageError(f"--cell {cell} is a part of a sweep; give several --steps, or --seeds")
    loaded = load(data, download, typed=True)

    def recipe(k: int | None, number: int) -> TrainingRecipe:
        attack = _attack(attacks, mix, k, method, way, eps, norm, loaded.usual_eps)
        return TrainingRecipe(arch=arch, data=data, attack=attack, method=way, precision=precision, seed=number, **fields)  # type: ignore[arg-type]

    job = Job(loaded, device, precision, checkpoint_every, track, as_json, quiet)
    if is_sweep:
        _sweep(job, recipe, steps or (None,), range(seed, seed + (seeds or 1)), cell, out)
        return
    one = recipe(steps[0] if steps else None, seed)
    folder = out or str(default_folder("train", {"training": repr(one)}))
    checkpoint = job.run(one, folder)
    if checkpoint is not None and not as_json:
        _show("trained", {folder: checkpoint})
        say_next("neurons", folder, arch)


def _method(text: str | None) -> Method | None:
    """The method of that name or spec; None for what needs no method."""
    from vizrobust.spec import parse
    from vizrobust.training import METHODS, Method

    if text is None or text.lower() in BASELINE_ATTACKS:
        return None
    parsed = parse(text, METHODS, "method")
    found = parsed() if isinstance(parsed, type) else parsed
    assert isinstance(found, Method)
    return found


def _attack(
    texts: tuple[str, ...], mix: str | None, steps: int | None, method: str | None, way: Method | None,
    eps: float | None, norm: str | None, default_eps: float,
) -> Attack | MultiAttack | None:  # fmt: skip
    """What to train against; None is standard training."""
    from vizrobust.attacks import configured, parse_attack
    from vizrobust.training import BASELINE_ATTACKS as NAMED
    from vizrobust.training import MultiAttack

    if method is not None and method.lower() in NAMED:
        return configured(NAMED[method.lower()](default_eps if eps is None else eps), norm=norm, eps=eps)
    if not texts and not steps:
        usual = None if way is None else way.default_attack
        return None if steps == 0 or usual is None else configured(usual, default_eps, norm, eps=eps)
    parsed = (parse_attack(text, typed=True) for text in texts or ("PGD",))
    fitted = tuple(configured(one, default_eps, norm, eps=eps, steps=steps) for one in parsed)
    return fitted[0] if mix is None else MultiAttack(fitted, mix)


class Job:
    """What all training runs of a command share: data, machine, and what a person wants to see."""

    def __init__(
        self, data: DataSet, device: str, precision: str, checkpoint_every: int | None, track: str | None,
        as_json: bool, quiet: bool,
    ) -> None:  # fmt: skip
        self.data, self.device, self.precision = data, device, precision
        self.checkpoint_every, self.track, self.as_json, self.quiet = checkpoint_every, track, as_json, quiet

    def run(self, recipe: TrainingRecipe, folder: str) -> Checkpoint | None:
        """Train, or go on, and describe the result; None in all processes but the one that speaks."""
        from vizrobust.compute import Compute
        from vizrobust.report.training_report import write_card
        from vizrobust.training import recorded_threads, trained_checkpoint

        compute = Compute(self.device, self.precision, recorded_threads(folder))
        self._train(recipe, folder, compute)
        if not compute.processes.main:
            return None
        checkpoint = trained_checkpoint(folder, recipe.arch)
        write_card(folder, checkpoint)
        if "constant_prediction" in checkpoint.info.metrics:
            say(
                f"warning: the network in {folder} predicts class {checkpoint.info.metrics['constant_prediction']!r} for every "
                "test image: training collapsed to one class; try a lower --lr or a longer --eps-ramp"
            )
        if self.as_json:
            measured = checkpoint.info.metrics
            json_row({"checkpoint": f"{folder}/checkpoint.safetensors", "weights_sha256": checkpoint.sha256, **measured})
        return checkpoint

    def _train(self, recipe: TrainingRecipe, folder: str, compute: Compute) -> None:
        from vizrobust.trackers import Tracker
        from vizrobust.training import Progress, train
        from vizrobust.training.loop import MONITOR_STEPS, overfits_attack

        overfitted, constant = False, ""
        track = self.track if compute.processes.main else None
        tracker = Tracker(track, Path(folder).name, Path(folder), {"training": repr(recipe)})
        with closing(tracker), progress(self.quiet, "loss", "clean", "robust") as bars:
            task = None
            for event in train(recipe, self.data, compute, folder, command_line(), checkpoint_every=self.checkpoint_every):
                if isinstance(event, Progress):
                    if task is None:
                        say(f"{recipe}\nin {folder}")
                        total = recipe.epochs * recipe.training_method.stages * event.batches
                        task = bars.add_task("epochs", total=total, loss="", clean="", robust="")
                    done = (event.epoch - 1) * event.batches + event.batch
                    name = f"epoch {event.epoch}/{recipe.epochs * recipe.training_method.stages}"
                    bars.update(task, completed=done, description=name, loss=f"loss {event.loss:.3f}")
                    continue
                tracker.log(event, event["epoch"])
                _say_what_happened(event)
                if event["epoch"] > recipe.ramp and overfits_attack(event) and not overfitted:
                    overfitted = True
                    say(
                        f"warning: in epoch {event['epoch']} the training attack leaves {percent(event['val_attack'])} of the "
                        f"watched images and {MONITOR_STEPS} steps leave {percent(event['val_robust'])}: the network has learnt "
                        "to fool its attack (vizrobust masking tells more)"
                    )
                if event.get("constant_prediction", constant) != constant:
                    constant = event["constant_prediction"]
                    say(
                        f"warning: in epoch {event['epoch']} the network predicts class {constant!r} for every watched image, "
                        "so its accuracies are the share of that class"
                    )
                if compute.processes.main:
                    _draw(folder)
                if task is not None:
                    clean, robust = percent(event["val_clean"]), percent(event["val_robust"])
                    one_class = " (one class)" if "constant_prediction" in event else ""
                    bars.update(task, clean=f"clean {clean}{one_class}", robust=f"robust {robust}")
                if self.as_json:
                    json_row(event)


def _say_what_happened(event: dict[str, Any]) -> None:
    """A collapse, and an early end, when they happen."""
    if "retreat" in event:
        say(event["retreat"])
    elif "collapse" in event:
        fallen = event["collapse"]
        say(
            f"warning: robust accuracy collapsed in epoch {fallen['epoch']}, from {percent(fallen['before'])} in epoch "
            f"{fallen['best_epoch']} to {percent(fallen['after'])}: catastrophic overfitting to the training attack; "
            "--on-collapse stop or rollback would not have gone on"
        )
    if "ended" in event:
        say(f"training ends after epoch {event['epoch']}: {event['ended']}")


def _draw(folder: str) -> None:
    from vizrobust.report.training_report import training_curves
    from vizrobust.runs import read_rows
    from vizrobust.training import METRICS_FILE

    rows = read_rows(folder, METRICS_FILE)
    if rows:
        training_curves(Path(folder) / "curves.png", rows, command_line())


def _sweep(
    job: Job, recipe: Callable[[int | None, int], TrainingRecipe], steps: tuple[int | None, ...], seeds: range, cell: str | None,
    out: str | None,
) -> None:  # fmt: skip
    from vizrobust.runs import Taken, default_folder
    from vizrobust.training.training_runs import select_run, sweep_runs

    all_cells = sweep_runs(recipe, steps, seeds)
    root = Path(out or default_folder("train", {name: repr(one) for name, one in all_cells.items()}))
    wanted = all_cells if cell is None else {select_run(all_cells, cell): all_cells[select_run(all_cells, cell)]}
    found: dict[str, Checkpoint] = {}
    taken = []
    for name, one in wanted.items():
        try:
            checkpoint = job.run(one, str(root / name))
            if checkpoint is not None:
                found[str(root / name)] = checkpoint
        except Taken as error:
            say(f"left out: {error}")
            taken.append(name)
    if not job.as_json and found:
        _show(f"{len(found)} of the sweep's {len(all_cells)} training runs", found)
    if taken:
        say(f"{len(taken)} training runs are being trained elsewhere: {', '.join(taken)}; run this again when they are done")


def _show(title: str, found: dict[str, Checkpoint]) -> None:
    rows, note = [], ""
    for folder, checkpoint in found.items():
        about = checkpoint.info
        measured = about.metrics
        clean, robust = percent(measured["clean"]), percent(measured["robust"])
        rows.append([folder, str(about.attack_steps), clean, robust, checkpoint.sha256[:8]])
        note = f"robust: {measured['attack']} on the first {measured['n']} test images"
    table(title, ["run", "K", "clean", "robust", "weights"], rows, note)
