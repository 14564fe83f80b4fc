"""The checkpoints that a study compares: the trained cells, or the ones that somebody brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vizrobust.attacks import FGSM, PGD
from vizrobust.data import DataSet
from vizrobust.models import Checkpoint
from vizrobust.runs import Row
from vizrobust.study.cells import Cell
from vizrobust.training import Training, seen

DOSE, ARM, CONTROL, RANDOM = "dose", "arm", "control", "random"


@dataclass(frozen=True)
class Compared:
    """A checkpoint in its place: `group` is the same for all training seeds, `k` the dose (None outside the slope)."""

    checkpoint: Checkpoint
    group: str
    role: str
    k: int | None
    seed: int
    label: str
    history: tuple[Row, ...] = ()

    def row(self, reference: str, masked: dict[str, str] | None) -> dict[str, Any]:
        """Its row of the report; `reference` loads it again."""
        about = self.checkpoint.about
        last = self.history[-1] if self.history else {}
        eps = last.get("eps")
        passes = [one.get("gradient_passes", _passes(about.training)) for one in self.history]
        return {
            "name": self.checkpoint.name,
            "label": self.label,
            "role": self.role,
            "group": self.group,
            "k": self.k,
            "seed": self.seed,
            "ref": reference,
            "weights_sha256": self.checkpoint.sha256,
            "training": about.training,
            "clean": about.metrics.get("clean"),
            "delta_linf": last["delta_linf"] / eps if eps and last.get("delta_linf") is not None else None,
            "delta_l2": last.get("delta_l2"),
            "gradient_passes": sum(passes) if passes else None,
            "epochs": len(self.history) or None,
            "masked": masked,
        }


def _passes(training: str) -> int:
    """Gradient passes per image and epoch of runs that did not yet count them: K for the attack, one for the weights."""
    return 1 + sum(getattr(attack, "steps", int(isinstance(attack, FGSM))) for attack in seen(training))


def of_cell(cell: Cell, checkpoint: Checkpoint, history: Sequence[Row]) -> Compared:
    """A trained cell under its own name."""
    named = replace(checkpoint, name=cell.name)
    return Compared(named, cell.group, cell.role, cell.k, cell.seed, cell.label, tuple(history))


def brought(checkpoints: Sequence[Checkpoint], data: DataSet) -> list[Compared]:
    """Checkpoints that somebody brings, by what their descriptions say of their training.

    A random start and the usual step make a dose, FGSM an arm; where the training is not known, the number of attack
    steps decides. Two checkpoints of one dose are two training seeds. Raises ``ValueError`` where they take other
    images or classes than `data`, or where there are not two doses.
    """
    found: list[Compared] = []
    for checkpoint in checkpoints:
        _fits(checkpoint, data)
        group, role, k = _place(checkpoint)
        seed = sum(one.group == group for one in found)
        label = f"{checkpoint.name} (K = {k})" if role == DOSE else checkpoint.name
        found.append(Compared(checkpoint, group, role, k, seed, label))
    doses = {one.k for one in found if one.role == DOSE}
    if len(doses) < 2:
        have = f"K = {', '.join(map(str, sorted(k for k in doses if k is not None)))}" if doses else "none"
        raise ValueError(f"a study compares two or more K, got {have}; name checkpoints of other numbers of attack steps")
    return found


def _place(checkpoint: Checkpoint) -> tuple[str, str, int | None]:
    about = checkpoint.about
    try:
        attacks = seen(about.training) if about.training.startswith(Training.__name__) else None
    except ValueError:
        attacks = None
    if attacks is None:
        k = about.attack_steps
        return (f"k{k}", DOSE, k) if k is not None else (checkpoint.name, "given", None)
    if about.data.startswith("shuffled:"):
        return checkpoint.name, CONTROL, None
    if not attacks:
        return "k0", DOSE, 0
    (attack, *others) = attacks
    if isinstance(attack, PGD) and not others and attack.random_start and attack.alpha is None:
        return f"k{attack.steps}", DOSE, attack.steps
    if isinstance(attack, FGSM) and not others:
        return "fgsm", ARM, None
    return checkpoint.name, "given", None


def _fits(checkpoint: Checkpoint, data: DataSet) -> None:
    about = checkpoint.about
    if about.input_shape != data.shape or len(about.classes) != len(data.classes):
        takes = f"{about.input_shape} and {len(about.classes)} classes"
        raise ValueError(
            f"{checkpoint.name} takes {takes}, {data.name} has {data.shape} and {len(data.classes)}: a study compares "
            "checkpoints of one data set; leave it out, or give its --data"
        )
    for number, (own, theirs) in enumerate(zip(about.classes, data.classes, strict=True)):
        if own.lower() != theirs.lower():
            raise ValueError(
                f"class {number} is {own!r} for {checkpoint.name} and {theirs!r} in {data.name}: a study compares "
                "checkpoints with one order of classes; leave it out"
            )
    if about.data and about.data.removeprefix("shuffled:") != data.name:
        raise ValueError(
            f"{checkpoint.name} was trained on {about.data}, the others on {data.name}: a study compares checkpoints of one "
            "data set; leave it out"
        )
