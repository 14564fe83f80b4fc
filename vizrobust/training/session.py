"""A training run in a folder: state after each epoch, resume, and the finished checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vizrobust.attacks import threat
from vizrobust.compute import Compute, versions
from vizrobust.data import DataSet
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
METRICS_FILE = "metrics.jsonl"


def recorded_threads(folder: Path | str) -> int | None:
    """The thread count of an earlier start of this run: going on with it makes the weights the same bit for bit."""
    info = read_run(folder)
    return info.get("threads") if info else None


def train(
    recipe: Training, data: DataSet, compute: Compute, folder: Path | str, argv: str = "", measure: bool = True
) -> Iterator[Progress | dict[str, Any]]:
    """Train in a folder, or go on where an earlier process stopped; yields batches as `Progress` and epochs as rows.

    After each epoch ``state.pt`` and ``metrics.jsonl`` are written; at the end ``checkpoint.safetensors``, with
    clean accuracy and accuracy under PGD-50 on the first 1,000 test images in its description (without them where
    `measure` is false, for whoever measures the stored weights). A finished run yields nothing. Raises ``ValueError``
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
    state = run.folder / STATE_FILE
    if state.is_file():
        trainer.restore(torch.load(state, map_location=compute.device, weights_only=True))
        # A process killed between the two files leaves the metrics one epoch behind.
        write_rows(run.folder / METRICS_FILE, trainer.metrics)
    while not trainer.finished:
        yield from trainer.run_epoch()
        write_atomic(state, lambda file: torch.save(trainer.state(), file))
        write_rows(run.folder / METRICS_FILE, trainer.metrics)
        yield trainer.metrics[-1]
    about = replace(_description(trainer), metrics=_measured(trainer) if measure else {})
    save_checkpoint(run.folder / CHECKPOINT_FILE, body_state(trainer.net), about)


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
    return headline(trainer.net, trainer.data, trainer.compute, images=TESTED_IMAGES, steps=TESTED_STEPS)
