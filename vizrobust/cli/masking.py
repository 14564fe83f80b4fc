"""`vizrobust masking`: whether gradients are masked, so that a robust accuracy cannot be believed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vizrobust.cli import options
from vizrobust.cli.output import PIPE_WIDTH, json_row, percent, progress, table
from vizrobust.requests.request import named_parameters

if TYPE_CHECKING:
    from rich.console import Console

    from vizrobust.attacks import Attack, Ball
    from vizrobust.data import DataSet
    from vizrobust.models import Checkpoint
    from vizrobust.robustness.masking import Check, Diagnosis, MaskingAttacks

MASKED_EXIT, UNDECIDED_EXIT = 3, 4
# Below this width a check's evidence stands under its name, above it in a column of its own.
WIDE = 110
MARKS = {True: "YES", False: "no", None: "-"}


@click.command()
@options.some_refs
@click.option("--eps", type=options.Number(), help="Radius of the ball; default: that of training, else the data set's.")
@options.norm
@click.option("--images", "n", default=500, show_default=True, help="Use the first N test images.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--batch-size", default=50, show_default=True, help="Recorded: an image's result is bit-equal at one batch size.")
@click.option("--transfer-from", "source", metavar="REF", help="Transfer attacks from this checkpoint too.")
@click.option("--trained-with", metavar="SPEC|none", help="What a checkpoint that does not say it was trained against.")
@click.option(
    "--effort", "effort_text", default="AttackBudget", metavar="SPEC",
    help="How hard attacks try "
    "[AttackBudget(steps=50, restarts=3, confirm_restarts=10, queries=1000, noise_samples=100, probes=100)].",
)  # fmt: skip
@click.option("--thorough", is_flag=True, help="The standard ensemble (AutoAttack) counts among the attacks; slow.")
@options.data
@options.arch
@options.running
def command(
    refs: tuple[str, ...], eps: float | None, norm: str | None, n: int, split: str, batch_size: int, source: str | None,
    trained_with: str | None, effort_text: str, thorough: bool, data: str | None, arch: str | None, seed: int, out: str | None,
    download: bool, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Say whether checkpoints mask their gradients: checks with their evidence, and a verdict in one sentence.

    The exit code is 0 if all are sound (also those that are not robust), 3 if any is masked, and 4 if none is but
    some are undecided. Attacks already run are kept in the run folder.

    \b
    vizrobust masking mnist-k0 mnist-k1 mnist-k8
    vizrobust masking mnist-k8 --images 1000 --transfer-from mnist-k4
    vizrobust masking theirs.safetensors --eps 8/255 --trained-with 'PGD(steps=10)' --json
    """
    from vizrobust.cli.loading import data_of, load_all
    from vizrobust.compute import Compute
    from vizrobust.models import load_checkpoint

    if n < 1 or batch_size < 1:
        raise ValueError(f"--images and --batch-size must be at least 1, got {n} and {batch_size}")
    if source is not None:
        load_checkpoint(source)  # a wrong name is told before minutes of attack, not after
    compute, effort = Compute(device, precision), _effort(effort_text)
    loaded = [(checkpoint, data_of(checkpoint, data, download)) for checkpoint in load_all(refs, arch, download)]
    subjects = [_subject(*pair, split, n, eps, norm, trained_with, source, thorough) for pair in loaded]
    diagnoses = []
    for (checkpoint, own_data), subject in zip(loaded, subjects, strict=True):
        from vizrobust.cli.attacking import Evaluations

        kept = Evaluations.open(
            "masking", own_data, split, compute, seed=seed, batch_size=batch_size, out=out, quiet=quiet or as_json
        )  # fmt: skip
        context, diagnosis = _diagnosed(checkpoint, subject, kept, effort)
        diagnoses.append((checkpoint, context, diagnosis))
        if as_json:
            about = {"checkpoint": checkpoint.name, "data": own_data.name, "split": split, "n": context.n}
            json_row({**about, "norm": type(subject.ball).__name__, **diagnosis.row()})
        else:
            _print(f"{checkpoint.name} on {own_data.name} {split}, {context.n} images, {subject.ball}", diagnosis)
    if not as_json and len(diagnoses) > 1:
        _summary(diagnoses)
    if not compute.processes.main:
        return  # one answers
    if any(diagnosis.verdict.masked for _, _, diagnosis in diagnoses):
        raise click.exceptions.Exit(MASKED_EXIT)
    if any(diagnosis.verdict.undecided for _, _, diagnosis in diagnoses):
        raise click.exceptions.Exit(UNDECIDED_EXIT)


def _effort(text: str) -> Any:
    from vizrobust.attacks import NAMES
    from vizrobust.robustness.masking import AttackBudget
    from vizrobust.spec import named, parse

    effort = parse(text, {**NAMES, **named(AttackBudget)}, "effort")
    if not isinstance(effort, AttackBudget):
        raise ValueError(f"{text!r} is not an effort; write AttackBudget(steps=50, restarts=3, queries=1000)")
    return effort


def _subject(
    checkpoint: Checkpoint, loaded: DataSet, split: str, n: int, eps: float | None, norm: str | None,
    trained_with: str | None, source: str | None, thorough: bool,
) -> Any:  # fmt: skip
    from vizrobust.attacks import AutoAttack
    from vizrobust.data import head
    from vizrobust.robustness.masking import NetworkUnderTest

    trained = _trained(checkpoint, trained_with)
    ball = _ball(checkpoint, trained or (), loaded, eps, norm)
    ensemble = AutoAttack(ball=ball) if thorough else None
    # From itself it would be an attack by its own gradients.
    source = None if source == checkpoint.name else source
    return NetworkUnderTest(checkpoint.net(), head(loaded.split(split), n), ball, trained, source, ensemble)


def _trained(checkpoint: Checkpoint, told: str | None) -> tuple[Attack, ...] | None:
    """The attacks of training: none for standard training, None where nobody knows."""
    from vizrobust.attacks import PGD, parse_attack
    from vizrobust.cli.output import say
    from vizrobust.training import attacks_seen

    about = checkpoint.info
    if told is not None:
        return () if told.lower() == "none" else (parse_attack(told, typed=True),)
    # torchvision publishes standardly trained classifiers only.
    if about.attack_steps == 0 or (about.arch.startswith("torchvision:") and about.training.startswith("published")):
        return ()
    try:
        attacks = attacks_seen(about.training)
    except ValueError as error:
        say(f"note: {checkpoint.name}: what it was trained against cannot be read ({error}); --trained-with tells it")
        return None
    if attacks or not about.attack_steps:
        return attacks or None
    return (PGD(steps=about.attack_steps),)


def _ball(checkpoint: Checkpoint, trained: Sequence[Attack], loaded: DataSet, eps: float | None, norm: str | None) -> Ball:
    """The evaluation's ball: as the command line says, else that of training, else the data set's."""
    from vizrobust.attacks import BALLS, PGD, ball_of, configured
    from vizrobust.spec import lookup

    about = checkpoint.info
    balls = [ball for attack in trained if (ball := ball_of(attack)) is not None and ball.eps is not None]
    if not balls and about.eps and about.norm in BALLS:
        balls = [BALLS[about.norm](eps=about.eps)]
    wanted = type(lookup(BALLS, norm, "norm")()) if norm else None
    own = next((ball for ball in balls if wanted is None or isinstance(ball, wanted)), None)
    return configured(PGD() if own is None else PGD(ball=own), loaded.eps, norm, eps=eps).ball  # type: ignore[attr-defined]


def _diagnosed(checkpoint: Checkpoint, subject: Any, kept: Any, effort: Any) -> tuple[MaskingAttacks, Diagnosis]:
    from vizrobust.robustness.evaluation_runs import evaluate_in_folder
    from vizrobust.robustness.masking import CHECKS, MaskingAttacks, diagnose, diagnosis_of

    def evaluate(attack: Attack, indices: Sequence[int] | None) -> Any:
        return evaluate_in_folder(
            kept.run, checkpoint, attack, subject.images, kept.compute, kept.seed, kept.batch_size,
            net=context.net, indices=indices,
        )  # fmt: skip

    kept.run.remember("checkpoints", {checkpoint.id: {"name": checkpoint.name, "weights_sha256": checkpoint.sha256}})
    with progress(kept.quiet) as bars:
        task = bars.add_task(checkpoint.name, total=len(CHECKS))

        def report(text: str) -> None:
            bars.update(task, description=f"{checkpoint.name}  {text[-60:]}")

        context = MaskingAttacks(subject, kept.compute, effort, kept.seed, kept.batch_size, report, evaluate)
        checks: list[Check] = []
        for check in diagnose(context):
            checks.append(check)
            bars.advance(task)
        return context, diagnosis_of(context, tuple(checks))


def _print(title: str, diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print()
    (_table if console.width >= WIDE else _list)(console, title, diagnosis.checks)
    console.print("Above the line stands what decides the verdict, below it what else was seen.", style="dim")
    console.print("A difference in points trips when even the lower bound in brackets is above its limit.", style="dim")
    console.print(f"\nverdict: [bold]{escape(diagnosis.verdict.sentence)}[/]")


def _table(console: Console, title: str, checks: Sequence[Check]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from vizrobust.robustness.masking import DECIDING

    drawn = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    drawn.add_column("check", no_wrap=True)
    for name in ("value", "limit"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("tripped", no_wrap=True)
    drawn.add_column("evidence")
    for number, check in enumerate(checks, start=1):
        name, *told = _told(check)
        drawn.add_row(
            name, _value(check), _limit(check), MARKS[check.flagged], "\n".join(told), end_section=number == len(DECIDING)
        )  # fmt: skip
    console.print(drawn)


def _list(console: Console, title: str, checks: Sequence[Check]) -> None:
    """For narrow terminals: each check's evidence below its numbers, over the whole width."""
    from rich.markup import escape
    from rich.padding import Padding

    from vizrobust.robustness.masking import DECIDING

    console.print(f"[bold]{escape(title)}[/]\n")
    column = max(len(check.name) for check in checks)
    console.print(f"{'check':<{column}}  {'value':>9}  {'limit':>8}  tripped\n{'─' * (column + 30)}")
    for number, check in enumerate(checks, start=1):
        name, *told = _told(check)
        blank = " " * (column - len(check.name))
        console.print(f"{name}{blank}  {_value(check):>9}  {_limit(check):>8}  {MARKS[check.flagged]}")
        for line in told:
            console.print(Padding(line, (0, 0, 0, 4)), style="dim" if not check.flagged else "")
        if number == len(DECIDING):
            console.print("─" * (column + 30))


def _told(check: Check) -> list[str]:
    """The check's name, its evidence, and what to do where there is something to do; those that tripped stand out."""
    from rich.markup import escape

    lines = [check.name, check.evidence, *([f"what to do: {_with_options(check.advice)}"] if check.advice else [])]
    bold = (True, False, True) if check.flagged else (False, False, False)
    return [f"[bold]{escape(line)}[/]" if strong else escape(line) for line, strong in zip(lines, bold, strict=False)]


def _with_options(advice: str) -> str:
    """Advice with its parameters as options: {transfer_from} becomes --transfer-from."""
    return named_parameters(advice, lambda name: "--" + name.replace("_", "-"))


def _summary(diagnoses: Sequence[tuple[Checkpoint, MaskingAttacks, Diagnosis]]) -> None:
    from vizrobust.intervals import share

    rows = []
    for checkpoint, context, diagnosis in diagnoses:
        own, under = context.survives.get("training attacks"), context.survives
        accuracies = [context.clean, own, under["pgd"], under["all"]]
        flagged = sum(bool(check.flagged) for check in diagnosis.checks)
        cells = [percent(None if alive is None else share(alive)) for alive in accuracies]
        rows.append([checkpoint.name, diagnosis.verdict.name, *cells, str(flagged)])
    header = ["checkpoint", "verdict", "clean", "training attack", "PGD", "strongest", "checks tripped"]
    table("verdicts", header, rows, "training attack: one step where it is not known")


def _value(check: Check) -> str:
    if check.value is None:
        return "-"
    return _number(check.value, check.unit) + {"share": " %", "points": " pts", "number": ""}[check.unit]


def _limit(check: Check) -> str:
    if check.threshold is None:
        return ""
    return f"{'>' if check.flagged_if == 'above' else '<'} {_number(check.threshold, check.unit)}"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}" if unit == "number" else f"{100 * value:.1f}"
