"""`vizrobust verify`: look whether a study's report holds."""

from __future__ import annotations

import sys

import click

from vizrobust.cli import options
from vizrobust.cli.output import json_row, say

MARKS = {True: "fine", False: "WRONG", None: "not looked at"}


@click.command()
@click.argument("path", metavar="REPORT.json")
@options.seed
@options.download
@options.machine
@options.as_json
def command(path: str, seed: int, download: bool, device: str, precision: str, as_json: bool) -> None:
    """Render five pictures of a study again, attack fifty images again, and compute its verdict again from its rows.

    Exit code 0 where everything holds, 1 where something differs; each line says what. `--seed` draws others. On another
    processor than the recorded one pictures may differ in their last bits: then scores must agree to 2 %.

    \b
    vizrobust verify runs/study
    vizrobust verify gallery/mnist-study/report.json --seed 7
    """
    from pathlib import Path

    from vizrobust.compute import Compute
    from vizrobust.data import load
    from vizrobust.study import StudyReport, verify

    report = StudyReport.read(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    wrong = 0
    compute = Compute(device, precision, report["threads"])
    for check in verify(report, folder, lambda: load(report["data"]["name"], download), compute, seed):
        wrong += check.ok is False
        if as_json:
            json_row({"what": check.what, "fine": check.ok, "told": check.detail})
        else:
            click.echo(f"{MARKS[check.ok]:14} {check.what}: {check.detail}")
    if wrong:
        say(f"{wrong} finding{'s' if wrong > 1 else ''} differ from the report")
        sys.exit(1)
