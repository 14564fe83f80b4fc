"""What commands that attack share: from options to fitted attacks, and evaluations in a run folder with progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizrobust.cli.output import command_line, progress, say
from vizrobust.compute import Compute, versions
from vizrobust.robustness import BATCH_SIZE, merge_results
from vizrobust.robustness.evaluation import Stop
from vizrobust.robustness.evaluation_runs import evaluate_in_folder, identity
from vizrobust.runs import RunFolder, default_folder

if TYPE_CHECKING:
    from vizrobust.attacks import Attack
    from vizrobust.data import DataSet, Split
    from vizrobust.models import Checkpoint
    from vizrobust.robustness import PartialResult, RobustAccuracy


@dataclass
class Evaluations:
    """A run folder in which attacks on checkpoints are evaluated; what it holds already is read."""

    run: RunFolder
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
        return cls(RunFolder(folder, command, described, record, compute.processes), compute, seed, batch_size, quiet)

    def of(
        self, checkpoint: Checkpoint, attack: Attack, images: Split, *, indices: Sequence[int] | None = None,
        stop: Stop = "success", all_runs: bool = False,
    ) -> RobustAccuracy:  # fmt: skip
        """The attack's outcome on a checkpoint, with a bar for each walk."""
        self.run.remember("checkpoints", {checkpoint.id: {"name": checkpoint.name, "weights_sha256": checkpoint.sha256}})
        parts: list[PartialResult] = []
        with progress(self.quiet) as bars:
            tasks: dict[str, Any] = {}
            for part in evaluate_in_folder(
                self.run, checkpoint, attack, images, self.compute, self.seed, self.batch_size,
                indices=indices, stop=stop, all_runs=all_runs,
            ):  # fmt: skip
                if part.run not in tasks:
                    tasks[part.run] = bars.add_task(f"{checkpoint.name}  {part.run}", total=len(images))
                bars.advance(tasks[part.run], len(part.indices))
                parts.append(part)
        return merge_results(attack, parts)


def fitted(
    texts: Sequence[str], data: DataSet, *, norm: str | None = None, eps: float | None = None, steps: int | None = None,
    default: str = "pgd", unbounded: bool = False,
) -> list[Attack]:  # fmt: skip
    """The attacks that `--attack`, `--norm`, `--eps` and `--steps` describe, with the data set's eps where none is named."""
    from vizrobust.attacks import configured, parse_attack, with_default_eps

    attacks = [
        configured(parse_attack(text, typed=True), data.eps, norm, unbounded=unbounded, eps=eps, steps=steps)
        for text in texts or (default,)
    ]
    for text in dict.fromkeys(note for attack in attacks for note in attack.notes(len(data.classes))):
        say(f"note: {text}")
    # An unforeseen attack has a radius in units of its own; without one it gets the medium for images of this size.
    known = [unbounded or attack.threat_model()[1] is not None for attack in attacks]
    return [attack if chosen else with_default_eps(attack, data.shape) for attack, chosen in zip(attacks, known, strict=True)]
