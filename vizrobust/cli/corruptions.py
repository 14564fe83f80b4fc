"""`vizrobust attack --suite corruptions`: accuracy under common corruptions, a distribution shift without an adversary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vizrobust.cli.attacking import Evaluations
from vizrobust.cli.output import command_line, json_row, percent, progress, say, table
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.corrupted import corrupted, mean_corruption_error
from vizrobust.robustness.corruptions import COMMON, SEVERITIES

if TYPE_CHECKING:
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint


def corruptions(
    checkpoints: Sequence[tuple[Checkpoint, DataSet]], images: Mapping[str, Split], open_: Callable[[DataSet], Evaluations],
    plot: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate every checkpoint on every common corruption, print the tables, and draw the curves if asked to."""
    found: list[tuple[Checkpoint, list[dict[str, Any]]]] = []
    for checkpoint, loaded in checkpoints:
        rows = _rows(checkpoint, images[checkpoint.id], open_(loaded))
        found.append((checkpoint, rows))
        for row in rows if as_json else ():
            json_row({"data": loaded.name, **row, "checkpoint": checkpoint.name})
    _, base = found[0]
    errors = [(checkpoint, mean_corruption_error(rows, base if len(found) > 1 else None)) for checkpoint, rows in found]
    if as_json:
        for checkpoint, error in errors:
            json_row({"checkpoint": checkpoint.name, "baseline": found[0][0].name if len(found) > 1 else None, **vars(error)})
    else:
        for checkpoint, rows in found:
            _print(checkpoint, rows)
        _summary(errors)
    if plot:
        from vizrobust.report.robustness_figures import corruption_curves

        curves = [(checkpoint.name, [row for row in rows if row["severity"]]) for checkpoint, rows in found]
        corruption_curves(plot, curves, command_line(), clean={checkpoint.name: 1 - error.clean for checkpoint, error in errors})
        say(f"drawn: {plot}")


def _rows(checkpoint: Checkpoint, images: Split, how: Evaluations) -> list[dict[str, Any]]:
    """The checkpoint's rows in the run folder; those that are there are not computed again."""
    mine = [row for row in how.run.rows() if row["checkpoint"] == checkpoint.id and row["n"] == len(images)]
    done = {(row["corruption"], row["severity"]) for row in mine}
    with progress(how.quiet) as bars:
        total = 1 + len(COMMON) * len(SEVERITIES)
        task = bars.add_task(f"{checkpoint.name}  corruptions", total=total, completed=len(done))
        for row in corrupted(checkpoint.net(), images, how.compute, seed=how.seed, batch_size=how.batch_size, done=done):
            mine.append({"checkpoint": checkpoint.id, **row})
            how.run.add(mine[-1])
            bars.advance(task)
    return mine


def _print(checkpoint: Checkpoint, rows: list[dict[str, Any]]) -> None:
    accuracy = {(row["corruption"], row["severity"]): row["accuracy"] for row in rows}
    notes = {row["corruption"]: row["note"] for row in rows if row["note"]}
    shown = []
    for name in COMMON:
        values = [accuracy[name, severity] for severity in SEVERITIES]
        shown.append([name + (" *" if name in notes else ""), *(percent(v) for v in values), percent(sum(values) / len(values))])
    n = rows[0]["n"]
    title = f"{checkpoint.name}: accuracy by corruption and severity, {n} images, clean {percent(accuracy[CLEAN, 0])}"
    note = "; ".join(f"* {text}" for text in dict.fromkeys(notes.values()))
    table(title, ["corruption", *(str(severity) for severity in SEVERITIES), "mean"], shown, note)


def _summary(errors: Sequence[tuple[Checkpoint, Any]]) -> None:
    base = errors[0][0].name
    rows = [
        [checkpoint.name, percent(error.clean), percent(error.mean), percent(error.mce), percent(error.relative_mce)]
        for checkpoint, error in errors
    ]
    header = ["checkpoint", "clean error", "mean error", "mCE", "relative mCE"]
    note = (
        f"mCE: relative to {base}"
        if len(errors) > 1
        else "mCE needs a second checkpoint to relate to: the first REF is the baseline"
    )
    table("mean corruption error", header, rows, "; ".join(filter(None, [note, errors[0][1].note])))
