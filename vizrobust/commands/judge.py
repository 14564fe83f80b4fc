"""`judge`: three judges of clarity for a person's own data, with a card that says what they can see."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vizrobust.clarity import Judge, NaturalScale, judges_for, natural_scale
from vizrobust.commands.train import train_one
from vizrobust.data import DataSet
from vizrobust.data.sources import held_out
from vizrobust.intervals import wilson
from vizrobust.requests.training import RECIPE_FIELDS, JudgeRequest, TrainRequest
from vizrobust.results import Event, Note, Result, Row, Table, interval_text, percent
from vizrobust.runs import default_folder, write_text
from vizrobust.session import Session
from vizrobust.study.protocol import training_attack
from vizrobust.training import TrainingRecipe

# Name -> architecture and augmentation; each is of another family, and `robust` learns from attacked images.
KINDS = {"standard": ("resnet_small", "none"), "heavy": ("vgg_small", "heavy"), "robust": ("small_cnn", "none")}
BINS, WEIGHT_STEPS = 15, 1500
CARD = "README.md"


@dataclass(frozen=True, repr=False)
class JudgeReport(Result):
    """The trained judges: folder, accuracy and calibration on the test images, and the natural scale of each."""

    request: JudgeRequest
    folder: Path
    judged: tuple[Row, ...]
    scales: tuple[NaturalScale, ...]

    def rows(self) -> list[Row]:
        """One row for each judge."""
        return list(self.judged)

    def tables(self) -> list[Table]:
        rows = [
            [row["judge"], row["arch"], percent(row["accuracy"]), _interval(row), f"{row['calibration_error']:.3f}",
             f"{row['resolves_from']:.1f}", row["disqualified"] or "judges"]
            for row in self.judged
        ]  # fmt: skip
        header = ["judge", "architecture", "accuracy", "95 % interval", "calibration error", "tells from scrambled", "verdict"]
        note = "on the test images; calibration: expected error over 15 bins; tells from scrambled: the share of phases needed"
        return [Table("Judges", header, rows, note)]

    def figure(self) -> Any:
        """How each judge's scores rise with the share of phases that natural images keep."""
        from vizrobust.report.understanding_figures import natural_curves

        return natural_curves([(Path(one.judge).name, one.coherences, one.curve().tolist()) for one in self.scales])

    def __repr__(self) -> str:
        shown = ", ".join(f"{Path(row['judge']).name} {percent(row['accuracy'])}" for row in self.judged)
        return f"JudgeReport({shown}, {str(self.folder)!r})"


def judge(request: JudgeRequest, session: Session) -> Generator[Event, None, JudgeReport]:
    """Train the three judges, or go on with them, and measure what they see."""
    data = session.dataset(request.data)
    named = request.data if isinstance(request.data, str) else data.name
    seen, name = (held_out(data), f"held-out:{named}") if request.split == "val" else (data, named)
    folder = Path(session.out or default_folder("judge", {"request": repr(request)}))
    eps = data.usual_eps if request.eps is None else request.eps
    epochs = request.epochs or usual_epochs(len(seen.train))
    rows, scales = [], []
    for kind, (arch, augment) in KINDS.items():
        attack = training_attack(request.steps if kind == "robust" else 0, eps)
        usual = {field: getattr(TrainRequest(data=name, arch=arch, steps=(0,)), field) for field in RECIPE_FIELDS}
        own = {"epochs": epochs, "augment": augment, "precision": request.precision}
        recipe = TrainingRecipe(arch=arch, data=name, attack=attack, seed=request.seed, **{**usual, **own})
        asked = TrainRequest(data=name, arch=arch, steps=(0,), epochs=epochs, precision=request.precision)
        yield from train_one(asked, session, seen, recipe, str(folder / kind))
        (found,) = judges_for("", [], session.compute("fp32"), [str(folder / kind)], builtin=False, independent=True)
        scale = natural_scale(found, data.test, named)
        row = {"judge": str(folder / kind), "arch": arch, **measured(found, data), "resolves_from": scale.resolves_from}
        rows.append({**row, "disqualified": scale.disqualified})
        scales.append(scale)
        yield rows[-1]
    report = JudgeReport(request, folder, tuple(rows), tuple(scales))
    write_text(folder / CARD, card(report, session.argv))
    refs = " ".join(f"--judge {shlex.quote(row['judge'])}" for row in rows if not row["disqualified"])
    if refs:
        yield Note(f"score the pictures of your networks (neurons, compare, study) with {refs}")
    return report


def usual_epochs(images: int) -> int:
    """Passes over so many images that make about 1,500 weight steps, but at least 10.

    >>> usual_epochs(500), usual_epochs(50000)
    (300, 10)
    """
    return max(10, round(WEIGHT_STEPS * TrainRequest.batch_size / images))


def _interval(row: Row) -> str:
    return interval_text(*wilson(round(row["accuracy"] * row["n"]), row["n"]))


def measured(found: Judge, data: DataSet) -> dict[str, Any]:
    """Accuracy and expected calibration error (Naeini, Cooper & Hauskrecht 2015) on the test images."""
    images = data.test.take(torch.arange(len(data.test)))
    p = found(images).logits.softmax(1)
    sure, guess = p.max(1)
    right = (guess == data.test.labels).float()
    place = (sure * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for one in range(BINS):
        mine = place == one
        if mine.any():
            error += float(mine.float().mean()) * abs(float(right[mine].mean() - sure[mine].mean()))
    return {"accuracy": float(right.mean()), "calibration_error": error, "n": len(images)}


def card(report: JudgeReport, command: str) -> str:
    """The card of the judges as Markdown."""
    (table,) = report.tables()
    lines = ["# Judges of clarity", "", f"Made by `{command or report.request!r}`.", "", f"| {' | '.join(table.header)} |"]
    lines += ["|" + "---|" * len(table.header), *(f"| {' | '.join(map(str, row))} |" for row in table.rows), "", table.note, ""]
    for scale in report.scales:
        curve = ", ".join(f"{share:g}: {value:.2f}" for share, value in zip(scale.coherences, scale.curve(), strict=True))
        lines.append(f"- {Path(scale.judge).name}: mean log-odds by share of phases kept: {curve}")
    return "\n".join([*lines, ""])
