"""The cells of a study: each dose, arm and control at each training seed, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vizrobust.attacks import PGD, Attack, Linf
from vizrobust.spec import lookup
from vizrobust.study.plan import Plan
from vizrobust.training import ARMS, Training

# The control trainings refer to this dose.
STRONG = 8


@dataclass(frozen=True)
class Cell:
    """One training run of a study. `group` is the same for all seeds; `k` is None where steps are not what is varied.

    `until` names the cell whose clean validation accuracy ends this one's training early.
    """

    group: str
    role: str
    k: int | None
    seed: int
    training: Training
    until: str = ""

    @property
    def name(self) -> str:
        return f"{self.group.replace('/', '-')}-s{self.seed}"

    @property
    def label(self) -> str:
        what = f"K = {self.k}" if self.role == "dose" else self.group
        return f"{what}, seed {self.seed}"


def dose(k: int, eps: float) -> Attack | None:
    """K gradient steps from a random start; None, standard training, for K = 0."""
    return PGD(steps=k, ball=Linf(eps=eps)) if k else None


def cells(plan: Plan, eps: float) -> Iterator[Cell]:
    """All cells, seed by seed, so that the first seed's sweep is whole before the next begins."""
    strongest = STRONG if STRONG in plan.steps else max(plan.steps)
    for seed in range(plan.seeds):
        base = replace(plan.training, seed=seed)
        for k in plan.steps:
            yield Cell(f"k{k}", "dose", k, seed, replace(base, attack=dose(k, eps)))
        for name in plan.arms:
            yield Cell(name, "arm", None, seed, replace(base, attack=lookup(ARMS, name, "arm")(eps)))
        for name in plan.controls:
            yield _control(name, base, eps, strongest, seed)


def _control(name: str, base: Training, eps: float, strongest: int, seed: int) -> Cell:
    """What else varies with K, held fixed: clean accuracy, gradient passes, the size of the perturbation."""
    if name == "k0-early":
        return Cell(name, "control", 0, seed, base, until=f"k{strongest}-s{seed}")
    if name == "k0-shuffled":
        # Trained on labels that mean nothing: its pictures can be strange, not clear.
        return Cell(name, "control", 0, seed, replace(base, data=f"shuffled:{base.data}"))
    if name == "k1-long":
        # K attack passes and one for the weights: as many passes as K = 8 takes.
        epochs = round(base.epochs * (strongest + 1) / 2)
        return Cell(name, "control", 1, seed, replace(base, attack=dose(1, eps), epochs=epochs, eps_ramp=base.ramp))
    part = int(name.rpartition("/")[2])
    return Cell(name, "control", strongest, seed, replace(base, attack=dose(strongest, eps / part)))
