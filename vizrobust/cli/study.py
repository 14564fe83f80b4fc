"""`vizrobust study`: find out whether feature images get clearer as more attack steps are used in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import command_line, percent, progress, say, table

if TYPE_CHECKING:
    from vizrobust.data import DataSet
    from vizrobust.study import Plan, Study

Strings = tuple[str, ...]


@click.command()
@options.refs
@options.data
@click.option("--steps", metavar="LIST", help="The doses K to train, such as 0,1,2,4,8,16 (the default).")
@click.option("--seeds", type=click.IntRange(min=1), help="Training seeds of each dose.  [default: 5]")
@click.option("--arch", metavar="REF", help="Architecture to train (vizrobust list archs), or your network's code.")
@click.option("--epochs", type=click.IntRange(min=1), help="Default: those of the data set's own recipe, else 20.")
@click.option(
    "--eps", type=options.Number(), help="Radius of training and evaluation; default: the smallest at which FGSM fails."
)
@click.option("--arms", metavar="LIST", help="Named arms: fgsm, fast, noise, or none.  [default: all]")
@click.option("--controls", metavar="LIST", help="k0-early, k1-long, k8-eps/4, k8-eps/2, k0-shuffled, or none.  [default: all]")
@click.option("--image-seeds", type=click.IntRange(min=2), help="Pictures of each class unit.  [default: 9]")
@click.option("--layer", metavar="NAME", help="Hidden layer whose units are drawn; default: the last one of a built-in network.")
@click.option("--hidden", type=click.IntRange(min=0), help="Hidden units, drawn at random; 0 is none.  [default: 50]")
@click.option("--hidden-seeds", type=click.IntRange(min=2), help="Pictures of each hidden unit.  [default: 9]")
@click.option("--judge", "judges", multiple=True, metavar="REF", help="One more judge; several allowed.")
@click.option("--images", type=click.IntRange(min=1), help="Test images to attack.  [default: 1000]")
@click.option(
    "--masking-images", type=click.IntRange(min=0), help="Of these for the whole masking diagnosis; 0 is none.  [default: 200]"
)
@click.option(
    "--unforeseen-images", type=click.IntRange(min=0), help="Of these for unforeseen attacks; 0 is none.  [default: 200]"
)
@click.option("--corruption-images", type=click.IntRange(min=0), help="Of these for corruptions; 0 is none.  [default: 200]")
@click.option("--quick", is_flag=True, help="At most ten minutes: one seed, fewer pictures, lighter attacks.")
@click.option("--out", type=click.Path(), metavar="DIR", help="The study's folder; default: runs/study-<hash>.")
@options.download
@options.machine
@options.as_json
@options.quiet
def command(
    refs: Strings, data: str | None, steps: str | None, seeds: int | None, arch: str | None, epochs: int | None,
    eps: float | None, arms: str | None, controls: str | None, image_seeds: int | None, layer: str | None,
    hidden: int | None, hidden_seeds: int | None, judges: Strings, images: int | None,
    masking_images: int | None, unforeseen_images: int | None, corruption_images: int | None, quick: bool, out: str | None,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a sweep over attack steps, or take checkpoints, and answer with a report.

    Preregisters what it will do, attacks every network, renders the same units for all, lets outside judges score
    the pictures, tests three contrasts over training seeds and writes one page. It can be stopped at any moment; the
    same command goes on. torchrun shares the work among processes; the report is the same.

    \b
    vizrobust study --data mnist5k --quick --out runs/quick
    vizrobust study --data mnist5k --steps 0,1,2,4,8,16 --seeds 5 --out runs/study
    vizrobust study mnist-k0 mnist-k1 mnist-k8 --quick --out runs/builtin
    """
    from vizrobust.cli.loading import load_all
    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.report import write_study
    from vizrobust.runs import default_folder
    from vizrobust.study import Study, provided_checkpoints, report_of
    from vizrobust.training import recorded_threads

    checkpoints = load_all(refs, arch, download)
    if not refs and data is None:
        raise click.UsageError("say what to study: --data REF trains a sweep on it, or name two or more checkpoints")
    if refs and (steps or seeds or arms or controls or epochs):
        raise click.UsageError(
            "checkpoints are given, so nothing is trained; leave out --steps, --seeds, --arms, --controls, --epochs"
        )
    loaded = load(data or _data_of(checkpoints), download, typed=data is not None)
    provided = provided_checkpoints(checkpoints, loaded) if checkpoints else []
    plan = _plan(
        loaded, provided, arch=arch, epochs=epochs, is_quick=quick, steps=_numbers(steps), seeds=seeds, eps=eps,
        arms=_names(arms), controls=_names(controls), image_seeds=image_seeds, layer=layer, hidden=hidden,
        hidden_seeds=hidden_seeds, judges=judges or None, images=images, masking_images=masking_images,
        unforeseen_images=unforeseen_images, corruption_images=corruption_images,
    )  # fmt: skip
    folder = out or str(default_folder("study", {"plan": repr(plan), "given": [one.checkpoint.sha256 for one in provided]}))
    compute = Compute(device, precision)
    # Also where only the main process sees the folder.
    threads = compute.processes.broadcast(recorded_threads(folder))
    study = Study(folder, plan, loaded, Compute(device, precision, threads), command_line(), provided)
    say(f"study of {loaded.name} in {folder}: {_size(study)}")
    for text in plan.left_out(provided=bool(provided)):
        say(f"left out: {text}")
    _run(study, quiet or as_json)
    if not compute.processes.main:
        return
    report = report_of(study, command_line())
    path = report.write(study.folder)
    page = write_study(study.folder, report)
    if as_json:
        click.echo(path.read_text(encoding="utf-8"))
        return
    _print(report)
    say(f"made by: {command_line()}")
    click.echo(f"report: {page}")


def _run(study: Study, quiet: bool) -> None:
    """Go through the stages with one bar for everything; each new stage is said where there is no bar."""
    import sys

    told = ""
    with progress(quiet) as bars:
        task = bars.add_task("study", total=study.total())
        for stage in study.run():
            bars.update(task, description=stage.what, completed=stage.done, total=stage.total)
            head = stage.what.partition(":")[0]
            if not quiet and head != told and not sys.stderr.isatty():
                say(f"{100 * stage.done / stage.total:3.0f} %  {head}")
                told = head


def _size(study: Study) -> str:
    plan = study.plan
    if study.provided:
        return f"{len(study.provided)} checkpoints, {len(plan.recipes)} recipes, {len(study.judges)} judges"
    from vizrobust.study import training_runs

    number = len(list(training_runs(plan, plan.eps or study.data.usual_eps)))
    return f"{number} networks to train, {len(plan.recipes)} recipes, {len(study.judges)} judges"


def _plan(data: DataSet, provided: list[Any], *, arch: str | None, epochs: int | None, is_quick: bool, **changes: Any) -> Plan:
    """The plan that the options describe: the data set's own recipe, what the quick version changes, then the options."""
    from dataclasses import replace

    from vizrobust.study import TRAININGS, plan_for, quick
    from vizrobust.training import TrainingRecipe

    usual = "small_cnn" if data.shape[0] == 1 else "resnet_small"
    own = provided[0].checkpoint.info.arch if provided else arch or usual
    training = TRAININGS.get(data.name)
    if training is None or (arch is not None and arch != training.arch) or provided:
        training = TrainingRecipe(arch=own, data=data.name)
    plan = plan_for(training)
    if provided:
        plan = replace(plan, steps=(), arms=(), controls=(), radii=(), seeds=len({one.seed for one in provided}))
    if is_quick:
        plan = replace(quick(plan), eps=data.eps, seeds=plan.seeds if provided else 1)
    if epochs is not None:
        plan = replace(plan, training=replace(plan.training, epochs=epochs))
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def _data_of(checkpoints: list[Any]) -> str:
    named = [one.info.data for one in checkpoints if one.info.data]
    if not named:
        raise click.UsageError("none of the checkpoints says what it was trained on; give --data (vizrobust list data)")
    return str(named[0])


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--steps {text!r} is not a list of numbers such as 0,1,2,4,8") from None


def _names(text: str | None) -> Strings | None:
    if text is None:
        return None
    return () if text.strip().lower() == "none" else tuple(part.strip() for part in text.split(","))


def _print(report: Mapping[str, Any]) -> None:
    """The accuracies and the verdict, as a person wants them first."""
    kinds = [("clean", "clean"), ("fgsm", "FGSM"), ("strongest", "strongest attack")]
    found = {(row["checkpoint"], row["kind"]): row["accuracy"] for row in report["accuracy"]}
    rows = [
        [one["label"], *(percent(found.get((one["name"], kind))) for kind, _ in kinds), (one["masked"] or {}).get("verdict", "")]
        for one in report["checkpoints"]
        if one["role"] != "random"
    ]
    eps = report["data"]["eps"]
    table(f"Accuracy at eps {eps:.3g}", ["network", *(name for _, name in kinds), "masked?"], rows)
    for sentence in report["verdict"]["sentences"]:
        click.echo(sentence)
    click.echo()
