"""A training run in a folder: state after each epoch, resume, and the finished checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vizrobust.attacks import threat
from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet
from vizrobust.locks import sole_writer
from vizrobust.models import Checkpoint, Description, load_checkpoint, save_checkpoint
from vizrobust.models.architectures import code_sha256
from vizrobust.models.checkpoints import body_state
from vizrobust.models.references import CHECKPOINT_FILE
from vizrobust.robustness import headline
from vizrobust.robustness.headline import HEADLINE_IMAGES as TESTED_IMAGES
from vizrobust.robustness.headline import HEADLINE_STEPS as TESTED_STEPS
from vizrobust.runs import Run, read_run, write_atomic, write_rows
from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.mix import members
from vizrobust.training.recipe import Training

STATE_FILE = "state.pt"
# The state within an epoch; `STATE_FILE` stays as it was before it, for an epoch that is to be taken back.
PART_FILE = "part.pt"
METRICS_FILE = "metrics.jsonl"


def recorded_threads(folder: Path | str) -> int | None:
    """The thread count of an earlier start of this run: going on with it makes the weights the same bit for bit."""
    info = read_run(folder)
    return info.get("threads") if info else None


def train(
    recipe: Training, data: DataSet, compute: Compute, folder: Path | str, argv: str = "", measure: bool = True,
    checkpoint_every: int | None = None,
) -> Iterator[Progress | dict[str, Any]]:  # fmt: skip
    """Train in a folder, or go on where an earlier process stopped; yields batches as `Progress` and epochs as rows.

    After each epoch ``state.pt`` and ``metrics.jsonl`` are written, and ``part.pt`` after every `checkpoint_every`
    batches; at the end ``checkpoint.safetensors``, with
    clean accuracy and accuracy under PGD-50 on the first 1,000 test images in its description (without them where
    `measure` is false, for whoever measures the stored weights). An epoch that is taken back after a collapse yields a
    row with ``retreat``, what was done about it. A finished run yields nothing. Raises ``ValueError``
    if the folder holds a run with another recipe.
    """
    finished = (Path(folder) / CHECKPOINT_FILE).is_file()
    if not finished:
        # A network that cannot be built, or an attack that does not fit it, leaves no folder behind.
        trainer = Trainer(recipe, data, compute)
        trainer.rehearse()
    record = {"argv": argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
    run = Run(folder, "train", {"training": repr(recipe)}, record)
    if finished:
        return
    with sole_writer(run.folder):
        yield from _trained(trainer, run, checkpoint_every)
        about = replace(_description(trainer), metrics=_measured(trainer) if measure else {})
        save_checkpoint(run.folder / CHECKPOINT_FILE, body_state(trainer.outcome()), about)


def _trained(trainer: Trainer, run: Run, checkpoint_every: int | None) -> Iterator[Progress | dict[str, Any]]:
    recipe, files = trainer.recipe, _Files(run.folder, trainer)
    files.take_up()
    while not trainer.finished:
        began = time.monotonic()
        for progress in trainer.run_epoch():
            if checkpoint_every and progress.batch % checkpoint_every == 0 and progress.batch < progress.batches:
                files.keep_part()
            yield progress
        row = trainer.metrics[-1]
        if recipe.on_collapse != "warn" and "collapse" in row:
            row = {**row, "retreat": trainer.retreat(files.state())}
        files.keep()
        run.remember("seconds", {str(row["epoch"]): round(time.monotonic() - began, 2)})
        yield row


@dataclass(frozen=True)
class _Files:
    """The states of a trainer on disk."""

    folder: Path
    trainer: Trainer

    def state(self, name: str = STATE_FILE) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.folder / name, map_location=self.trainer.compute.device, weights_only=True)
        return loaded

    def take_up(self) -> None:
        trainer = self.trainer
        if (self.folder / STATE_FILE).is_file():
            trainer.restore(self.state())
            # A process killed between the two files leaves the metrics one epoch behind.
            write_rows(self.folder / METRICS_FILE, trainer.metrics)
        if (self.folder / PART_FILE).is_file():
            part = self.state(PART_FILE)
            # One that was killed before it could remove the part of an epoch that is done, or taken back, leaves that.
            if (len(part["metrics"]), part["retries"]) == (trainer.epoch, trainer.retries):
                trainer.restore(part)

    def keep_part(self) -> None:
        write_atomic(self.folder / PART_FILE, lambda file: torch.save(self.trainer.state(), file))

    def keep(self) -> None:
        write_atomic(self.folder / STATE_FILE, lambda file: torch.save(self.trainer.state(), file))
        write_rows(self.folder / METRICS_FILE, self.trainer.metrics)
        (self.folder / PART_FILE).unlink(missing_ok=True)


def trained(folder: Path | str, arch: str | None = None) -> Checkpoint:
    """The checkpoint of a finished training run."""
    return load_checkpoint(str(folder), arch)


def _description(trainer: Trainer) -> Description:
    recipe, data = trainer.recipe, trainer.data
    # Several attacks have no one radius; `seen` reads each from the recipe.
    threats = list(dict.fromkeys(threat(attack) for attack in members(recipe.attack)))
    norm, eps = threats[0] if len(threats) == 1 else (" + ".join(dict.fromkeys(name for name, _ in threats)), None)
    return Description(
        arch=recipe.arch,
        input_shape=data.shape,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        data=recipe.data,
        training=repr(recipe),
        attack_steps=recipe.attack_steps,
        eps=eps,
        norm=norm,
        versions=versions(),
        arch_sha256=code_sha256(recipe.arch),
    )


def _measured(trainer: Trainer) -> dict[str, Any]:
    """Accuracies on the first 1,000 test images: clean, under one step, and under PGD-50 (``robust``)."""
    return headline(trainer.outcome(), trainer.data, trainer.compute, images=TESTED_IMAGES, steps=TESTED_STEPS)
