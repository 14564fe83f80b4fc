"""What commands that attack share: from options to fitted attacks, and evaluations in a run folder with progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizrobust.cli.output import command_line, progress, say
from vizrobust.compute import Compute, versions
from vizrobust.robustness import BATCH_SIZE, gather
from vizrobust.robustness.evaluation import Until
from vizrobust.robustness.evaluation_runs import evaluate_into, identity
from vizrobust.runs import Run, default_folder

if TYPE_CHECKING:
    from vizrobust.attacks import Attack
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint
    from vizrobust.robustness import Evaluation, Part


@dataclass
class Evaluations:
    """A run folder in which attacks on checkpoints are evaluated; what it holds already is read."""

    run: Run
    compute: Compute
    seed: int
    batch_size: int
    quiet: bool

    @classmethod
    def open(
        cls, command: str, data: DataSet, split: str, compute: Compute, *, seed: int, batch_size: int = BATCH_SIZE,
        out: str | None = None, quiet: bool = False,
    ) -> Evaluations:  # fmt: skip
        described = identity(data.name, split, seed, batch_size, compute.precision)
        folder = Path(out) if out else default_folder(command, described)
        record = {"argv": command_line(), "threads": compute.threads, "device": compute.device.type, "versions": versions()}
        return cls(Run(folder, command, described, record, compute.processes), compute, seed, batch_size, quiet)

    def of(
        self, checkpoint: Checkpoint, attack: Attack, images: Split, *, only: Sequence[int] | None = None,
        until: Until = "broken", every_walk: bool = False,
    ) -> Evaluation:  # fmt: skip
        """The attack's outcome on a checkpoint, with a bar for each walk."""
        self.run.remember("checkpoints", {checkpoint.id: {"name": checkpoint.name, "weights_sha256": checkpoint.sha256}})
        parts: list[Part] = []
        with progress(self.quiet) as bars:
            tasks: dict[str, Any] = {}
            for part in evaluate_into(
                self.run, checkpoint, attack, images, self.compute, self.seed, self.batch_size,
                only=only, until=until, every_walk=every_walk,
            ):  # fmt: skip
                if part.walk not in tasks:
                    tasks[part.walk] = bars.add_task(f"{checkpoint.name}  {part.walk}", total=len(images))
                bars.advance(tasks[part.walk], len(part.images))
                parts.append(part)
        return gather(attack, parts)


def fitted(
    texts: Sequence[str], data: DataSet, *, norm: str | None = None, eps: float | None = None, steps: int | None = None,
    default: str = "pgd", unlimited: bool = False,
) -> list[Attack]:  # fmt: skip
    """The attacks that `--attack`, `--norm`, `--eps` and `--steps` describe, with the data set's eps where none is named."""
    from vizrobust.attacks import fit, notes, parse_attack, suited, threat

    attacks = [fit(parse_attack(text), data.eps, norm, unlimited=unlimited, eps=eps, steps=steps) for text in texts or (default,)]
    for text in dict.fromkeys(note for attack in attacks for note in notes(attack, len(data.classes))):
        say(f"note: {text}")
    # An unforeseen attack has a radius in units of its own; without one it gets the medium for images of this size.
    return [attack if unlimited or threat(attack)[1] is not None else suited(attack, data.shape) for attack in attacks]
