"""`vizrobust trials`: a blind page that asks a person which image belongs, and the score of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, percent, say, table

if TYPE_CHECKING:
    from vizrobust.study.human_answers import Correlation, Score, ShareRight


@click.command()
@click.argument("run", type=click.Path(), metavar="RUN")
@click.option("--out", type=click.Path(), metavar="FILE", help="The page to write, an .html file.")
@click.option("--answers", type=click.Path(), metavar="FILE", help="Score the JSON file that the page lets one download.")
@click.option("--checkpoints", metavar="NAMES", help="With commas between; default: of every K the first training seed.")
@click.option("--trials", "count", default=60, show_default=True, help="Questions; about a tenth more are catch trials.")
@click.option("--recipe", default="plain", show_default=True, metavar="NAME", help="Which of the study's pictures are shown.")
@click.option("--layer", default="logits", show_default=True, help="Which of the study's layers is asked about.")
@options.arch
@options.seed
@options.download
@options.as_json
def command(
    run: str, out: str | None, answers: str | None, checkpoints: str | None, count: int, recipe: str, layer: str,
    arch: str | None, seed: int, download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Ask a person what the machine is asked: which of two images excites the unit whose pictures are shown?

    RUN is the folder of a finished study. The page is blind: it holds pixels and nothing about where they are from; the
    right answers stay in RUN/trials-key.json. It works by keyboard and can be interrupted. Its answers are scored with
    --answers: the share right for each checkpoint, and how well each machine metric ranks the same units.

    \b
    vizrobust trials runs/study --out trials.html
    vizrobust trials runs/study --out trials.html --checkpoints k0-s0,k8-s0 --trials 40 --recipe fourier
    vizrobust trials runs/study --answers answers-1a2b3c4d.json
    """
    if (out is None) == (answers is None):
        raise click.UsageError("say what to do: --out trials.html makes a page, --answers FILE scores the answers to one")
    if answers is not None:
        _score(run, answers, as_json)
    else:
        names = [name for name in (checkpoints or "").split(",") if name]
        _make(run, str(out), names, count, recipe, layer, arch, seed, download, as_json)


def _make(
    run: str, out: str, names: list[str], count: int, recipe: str, layer: str, arch: str | None, seed: int, download: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from vizrobust.compute import Compute
    from vizrobust.report.trials_page import write_trials
    from vizrobust.study.human_answers import write_key
    from vizrobust.study.human_trials import choose, data_of
    from vizrobust.study.report import StudyReport

    if not out.endswith(".html"):
        raise ValueError(f"--out {out!r} must end in .html: it is a page for a browser")
    report = StudyReport.read(run)
    trials = choose(run, report, data_of(report, download), Compute(), names, count, recipe, layer, seed, arch)
    key = write_key(run, trials)
    page = write_trials(out, run, trials)
    catch = sum(trial.catch for trial in trials.trials)
    facts = {"page": str(page), "key": str(key), "trials": len(trials.trials) - catch, "catch": catch, "token": trials.token}
    if as_json:
        json_row({**facts, "checkpoints": list(trials.about["checkpoints"]), "references": trials.about["references"]})
        return
    click.echo(f"page: {page}")
    each = trials.about["references"]
    shown = f"{each} picture{'s' * (each != 1)} on each side"
    say(f"{facts['trials']} questions and {catch} catch trials with {shown}; right answers: {key}")
    if each == 1:
        say("note: the study has one picture of each unit here; trials usually show nine, from different seeds")
    if not catch:
        say("note: the study has no natural exemplars, so there are no catch trials")
    say(f"next: open it, answer, and vizrobust trials {run} --answers answers-{trials.token}.json")


def _score(run: str, file: str, as_json: bool) -> None:
    from vizrobust.study.human_answers import read_answers, score
    from vizrobust.study.report import StudyReport

    report = StudyReport.read(run)
    key, answers = read_answers(file, run)
    found = score(key, answers, report)
    if as_json:
        for right in [*found.checkpoints, *([found.catch] if found.catch else [])]:
            json_row(right.row())
        for one in found.correlations:
            json_row(one.row())
        return
    _print(found)


def _print(found: Score) -> None:
    header = ["pictures of", "right", "of", "share", "95 % interval", "confidence", "seconds"]
    rows = [_right_row(one) for one in found.checkpoints] + ([_right_row(found.catch)] if found.catch else [])
    note = "share right of two alternatives, chance 50 %; confidence from 1 (guessed) to 3 (sure), mean; seconds: median"
    table("one person", header, rows, note)
    if not found.careful:
        say("note: fewer than 80 % of the catch trials are right, which have an easy answer: read the rest with care")
    header = ["metric", "judge", "control", "clearer is", "pairs", "rank correlation", "95 % interval", "p"]
    note = (
        "Spearman's, over (checkpoint, unit), of the machine's value with the person's share right; - where either does not "
        "vary; p is for each row alone, not corrected for their number"
    )
    table("machine and person", header, [_correlation_row(one) for one in found.correlations], note)


def _right_row(one: ShareRight) -> list[str]:
    interval = f"{100 * one.ci_low:.1f} to {100 * one.ci_high:.1f}"
    return [one.name, str(one.right), str(one.n), percent(one.share), interval, f"{one.confidence:.2f}", f"{one.seconds:.1f}"]


def _correlation_row(one: Correlation) -> list[str]:
    interval = "-" if one.ci_low is None or one.ci_high is None else f"{one.ci_low:+.2f} to {one.ci_high:+.2f}"
    rho, p = ("-" if one.rho is None else f"{one.rho:+.2f}"), ("-" if one.p is None else f"{one.p:.3f}")
    clearer = "larger" if one.direction > 0 else "smaller"
    return [one.metric, one.judge or "-", one.control or "-", clearer, str(one.n), rho, interval, p]
