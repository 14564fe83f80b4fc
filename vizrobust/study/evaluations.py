"""The accuracies of each checkpoint of a study, and its verdicts per image in a compact form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.attacks import APGD, FGSM, PGD, UNFORESEEN, Attack, Linf, with_default_eps
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, head
from vizrobust.intervals import share, wilson
from vizrobust.models import Checkpoint
from vizrobust.robustness import PartialResult, RobustAccuracy, merge_results
from vizrobust.robustness.corruptions.corruption import SMALLEST
from vizrobust.robustness.evaluation_runs import evaluate_in_folder
from vizrobust.robustness.masking import AttackBudget, MaskingAttacks, NetworkUnderTest, diagnosis_of
from vizrobust.robustness.masking.findings import OVERFITTED, overfitting
from vizrobust.robustness.suites import corrupted
from vizrobust.runs import Row, RunFolder
from vizrobust.study.protocol import Plan
from vizrobust.training import attacks_seen


def packed_verdicts(right: Sequence[bool] | torch.Tensor) -> str:
    """Which images are classified correctly, as hexadecimal: eight images a byte, the first in the highest bit.

    >>> packed_verdicts([True, False, False, False, False, False, False, True, True])
    '8180'
    >>> unpacked_verdicts('8180', 9)
    [True, False, False, False, False, False, False, True, True]
    """
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked_verdicts(text: str, n: int) -> list[bool]:
    """The reverse of `packed_verdicts` for n images."""
    return [bool(bit) for bit in np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:n]]


@dataclass(frozen=True)
class Masked:
    """The verdict of the masking checks; `name` is ``""`` where they find no sign of masked gradients."""

    name: str
    why: str


class Accuracies:
    """The attacks on one checkpoint, in run folders that can be resumed."""

    def __init__(
        self,
        plan: Plan,
        eps: float,
        checkpoint: Checkpoint,
        data: DataSet,
        compute: Compute,
        attacks: RunFolder,
        corruptions: RunFolder,
    ) -> None:
        self.plan, self.eps, self.checkpoint, self.data, self.compute = plan, eps, checkpoint, data, compute
        self.attacks, self.corruptions = attacks, corruptions
        self.net: nn.Module = checkpoint.net()
        self.images = head(data.test, plan.images)
        facts = {"name": checkpoint.name, "weights_sha256": checkpoint.sha256}
        for run in (attacks, corruptions):
            run.remember("checkpoints", {checkpoint.id: facts})

    @property
    def ball(self) -> Linf:
        return Linf(eps=self.eps)

    @property
    def short(self) -> PGD:
        """PGD with the plan's few steps."""
        return PGD(steps=self.plan.short_steps, ball=self.ball)

    @property
    def strong(self) -> PGD:
        """PGD with the plan's steps and restarts."""
        return PGD(steps=self.plan.pgd_steps, ball=self.ball, restarts=self.plan.restarts)

    def rows(self) -> Iterator[Row]:
        """The `accuracy` rows of the report."""
        one_step = self._evaluated(FGSM(ball=self.ball))
        yield self._row("clean", "clean", one_step, one_step.correct)
        yield self._row("fgsm", "FGSM", one_step)
        yield self._row("pgd", f"PGD-{self.plan.short_steps}", self._evaluated(self.short))
        strong = self._evaluated(self.strong)
        yield self._row("pgd", _pgd_label(self.plan), strong)
        yield self._row("strongest", "strongest attack found", strong, self._strongest())
        images = head(self.data.test, self.plan.unforeseen_images)
        for name in self.plan.unforeseen if len(images) else ():
            attack = with_default_eps(UNFORESEEN[name](), self.data.shape)
            yield self._row("unforeseen", name, self._evaluated(attack, images))
        yield from self._corrupted()

    def masked(self) -> Masked:
        """The masking verdict: from the whole diagnosis on the first images, or from the gap of the training attack alone."""
        trained = attacks_seen(self.checkpoint.info.training)
        number = self.plan.masking_images
        if number:
            subject = NetworkUnderTest(self.net, head(self.data.test, number), self.ball, trained)
            # The attacks that the recorded studies were diagnosed with.
            queries, probes = self.plan.masking_queries, min(100, number)
            effort = AttackBudget(steps=self.plan.pgd_steps, queries=queries, probes=probes, decision_images=0)
            verdict = diagnosis_of(MaskingAttacks(subject, self.compute, effort, evaluate=self._parts(subject.images))).verdict
            return Masked(verdict.name if verdict.masked else "", verdict.sentence)
        attacks = [attack for attack in trained if isinstance(attack, FGSM | PGD)]
        if not attacks:
            return Masked("", "not adversarially trained by gradients")
        under_training = self._evaluated(_in(attacks[0], self.ball)).robust
        criterion = overfitting(under_training, self._evaluated(self.strong).robust, self._strongest())
        told = f"{attacks[0]} leaves {share(under_training):.1%}, the strongest attack found {share(self._strongest()):.1%}"
        return Masked(OVERFITTED if criterion.side == "above" else "", told)

    def _strongest(self) -> Tensor:
        """(n,) bool: which images survive every attack that was run on all images at the study's radius."""
        alive = self._evaluated(FGSM(ball=self.ball)).robust & self._evaluated(self.strong).robust
        alive &= self._evaluated(self.short).robust
        if self.plan.targets and bool(alive.any()):
            attack = APGD(steps=self.plan.pgd_steps, ball=self.ball, loss="dlr", targeted=True, targets=self.plan.targets)
            left = alive.nonzero()[:, 0].tolist()
            found = self._evaluated(attack, indices=left)
            alive = alive.clone()
            alive[found.indices] &= found.robust
        return alive

    def _evaluated(self, attack: Attack, images: Split | None = None, indices: Sequence[int] | None = None) -> RobustAccuracy:
        return merge_results(attack, self._parts(images or self.images)(attack, indices))

    def _parts(self, images: Split) -> Any:
        def parts(attack: Attack, indices: Sequence[int] | None = None) -> Iterator[PartialResult]:
            return evaluate_in_folder(self.attacks, self.checkpoint, attack, images, self.compute, net=self.net, indices=indices)

        return parts

    def _corrupted(self) -> Iterator[Row]:
        images = head(self.data.test, self.plan.corruption_images)
        if not len(images) or min(self.data.shape[1:]) < SMALLEST:
            return
        mine = [row for row in self.corruptions.rows() if row["checkpoint"] == self.checkpoint.id]
        done = {(row["corruption"], row["severity"]) for row in mine}
        for row in corrupted(self.net, images, self.compute, severities=(self.plan.severity,), done=done):
            mine.append({"checkpoint": self.checkpoint.id, **row})
            self.corruptions.add(mine[-1])
        for row in mine:
            if row["severity"]:
                kept = {key: row[key] for key in ("n", "accuracy", "ci_low", "ci_high")}
                yield {**self._about("corruption", row["corruption"], "", None, None), **kept}

    def _row(self, kind: str, label: str, found: RobustAccuracy, alive: Tensor | None = None) -> Row:
        alive = found.robust if alive is None else alive
        low, high = wilson(int(alive.sum()), len(alive))
        known = found.row()
        about = self._about(kind, label, known["attack"] if kind != "clean" else "", known["eps"], known["steps"])
        numbers = {"n": len(alive), "accuracy": share(alive), "ci_low": low, "ci_high": high}
        # Which images survive, so that `verify` can check them one by one; "strongest" is the worst over several attacks.
        return {**about, **numbers} | ({} if kind == "strongest" else {"right": packed_verdicts(alive)})

    def _about(self, kind: str, label: str, attack: str, eps: float | None, steps: int | None) -> Row:
        named = {"checkpoint": self.checkpoint.name, "kind": kind, "label": label, "attack": attack}
        return {**named, "eps": None if kind in ("clean", "corruption") else eps, "steps": steps if kind == "pgd" else None}


def _pgd_label(plan: Plan) -> str:
    return f"PGD-{plan.pgd_steps}" + (f", {plan.restarts} restarts" if plan.restarts > 1 else "")


def _in(attack: FGSM | PGD, ball: Linf) -> Attack:
    """The training attack at the radius of the evaluation."""
    return replace(attack, ball=ball, alpha=None) if isinstance(attack, PGD) else replace(attack, ball=ball)


def robust_accuracy(attack: Attack, checkpoint: Checkpoint, images: Split, compute: Compute, run: RunFolder) -> float:
    """Accuracy in [0, 1] under one attack; its rows are kept in a run folder."""
    return share(merge_results(attack, evaluate_in_folder(run, checkpoint, attack, images, compute)).robust)
