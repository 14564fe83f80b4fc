"""Masked gradients: checks that look for them, and the diagnosis of whether a robust accuracy can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vizrobust.attacks import epsilon
from vizrobust.intervals import share
from vizrobust.rng import seeded
from vizrobust.robustness.masking.accuracy_checks import ACCURACY_CHECKS, DECIDING, NOTHING, claims_of, criteria
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.behaviour_checks import ATTACK_RUN_CHECKS, NETWORK_CHECKS
from vizrobust.robustness.masking.findings import (
    GAP,
    HIDDEN,
    HIDING,
    NOT_ROBUST,
    OVERFITTED,
    SOUND,
    UNDECIDED,
    AttackBudget,
    Check,
    NetworkUnderTest,
    Verdict,
    confidence_of,
    hiding,
    more_images,
    overfitting,
    unbounded,
    undefined_verdict,
    verdict_of,
)
from vizrobust.robustness.masking.gradient_checks import GRADIENT_CHECKS

# The first ones decide the verdict; the rest is evidence.
CHECKS: dict[str, Callable[[MaskingAttacks], Check]] = {
    **DECIDING,
    **ACCURACY_CHECKS,
    **ATTACK_RUN_CHECKS,
    **NETWORK_CHECKS,
    **GRADIENT_CHECKS,
}

# Signs that make the numbers themselves doubtful, whatever the verdict.
WARNINGS = {
    "randomised": "its answers are random, so attack it with EOT before you believe a number",
    "attacked another network": "it gives other answers while gradients are computed, so the numbers are not its own",
    "values not finite": "its outputs or gradients are not finite at some points, so attacks do not reach everything",
    "statistics of the batch": "it mixes the images of a batch, so the numbers depend on the batch",
}


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on one network, at one eps, with the checks behind it."""

    verdict: Verdict
    eps: float
    checks: tuple[Check, ...]

    def row(self) -> dict[str, Any]:
        """The fields of a `masking` row that do not depend on where the network came from."""
        return {
            "verdict": self.verdict.name,
            "sentence": self.verdict.sentence,
            "images_needed": self.verdict.images,
            "eps": self.eps,
            "checks": [check.row() for check in self.checks],
        }


def diagnose(
    attacks: MaskingAttacks,
    checks: Mapping[str, Callable[[MaskingAttacks], Check]] = CHECKS,
    extended: Mapping[str, MaskingAttacks] = NOTHING,
) -> Iterator[Check]:
    """Run the checks one after the other and yield each; attacks are shared among them and with `diagnosis_of`.

    The checks of `extended` look at more images, with the attacks that stand there.

    Raises ``ValueError`` where the network classifies no image correctly.

    >>> import torch
    >>> from vizrobust.attacks import Linf
    >>> from vizrobust.compute import Compute
    >>> from vizrobust.data import ArraySplit
    >>> from vizrobust.robustness.masking.findings import AttackBudget, NetworkUnderTest
    >>> images = ArraySplit(torch.tensor([0.9, 0.1, 0.6, 0.5]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    >>> network = NetworkUnderTest(torch.nn.Flatten(), images, Linf(eps=0.1))
    >>> attacks = MaskingAttacks(network, Compute("cpu"), AttackBudget(steps=3, restarts=1, queries=5, noise_samples=2))
    >>> checks = tuple(diagnose(attacks, {"softmax_output": CHECKS["softmax_output"]}))
    >>> checks[0].flagged, diagnosis_of(attacks, checks).verdict.name
    (False, 'undecided')
    """
    for name, check in checks.items():
        # A network that is random draws from torch's global generators; its diagnosis is to repeat all the same.
        with seeded(attacks.seed, attacks.compute.device):
            yield check(extended.get(name, attacks))


def diagnosis_of(
    attacks: MaskingAttacks, checks: tuple[Check, ...] = (), extended: Mapping[str, MaskingAttacks] = NOTHING
) -> Diagnosis:
    """The verdict, with the checks that were done; those of `extended` were done on more images."""
    with seeded(attacks.seed, attacks.compute.device):
        verdict = verdict_of(list(criteria(attacks, extended).values()), attacks.survives["all"], _caveat(attacks, checks))
        if not verdict.masked and _undefined(attacks):
            verdict = undefined_verdict(int(attacks.undefined.sum()), attacks.n, _caveat(attacks, checks))
    return Diagnosis(verdict, epsilon(attacks.ball), checks)


@dataclass(frozen=True)
class Extension:
    """What an undecided verdict needs: so many `images` for the `checks` that are still open."""

    images: int
    checks: tuple[str, ...]


def extension_of(attacks: MaskingAttacks, extended: Mapping[str, MaskingAttacks] = NOTHING) -> Extension | None:
    """What would settle a verdict that these images leave undecided; None where it is settled.

    Only the checks that are open need more images. Each look that is allowed for must have its share of the 5 % error
    (`confidence_of`): with 95 % at each of three looks, the error of a verdict could be 15 %.
    """
    with seeded(attacks.seed, attacks.compute.device):
        measured = criteria(attacks, extended)
        wanted = more_images(list(measured.values()))
        if wanted is None or _undefined(attacks):
            return None
    return Extension(wanted, tuple(name for name, criterion in measured.items() if criterion.side == "open"))


def _undefined(attacks: MaskingAttacks) -> bool:
    """Whether outputs are not finite on more images than gradients may hide: no number of images settles that."""
    attacks.survives["all"]  # all attacks have been run then
    return share(attacks.undefined) > HIDING


def _caveat(attacks: MaskingAttacks, checks: tuple[Check, ...]) -> str:
    """What a reader of the one sentence must know besides."""
    flagged = [check.name for check in checks if check.flagged]
    told = [sentence for name, sentence in WARNINGS.items() if name in flagged]
    if attacks.network.trained == ():
        told.append("it was not adversarially trained")
    deciding = [check.name for check in checks[: len(DECIDING)]]
    signs = [name for name in flagged if name not in deciding]
    if signs:
        told.append(f"signs to look at: {', '.join(signs)}")
    return "; ".join(told)


__all__ = [
    "CHECKS",
    "DECIDING",
    "GAP",
    "HIDDEN",
    "HIDING",
    "NOT_ROBUST",
    "OVERFITTED",
    "SOUND",
    "UNDECIDED",
    "AttackBudget",
    "Check",
    "Diagnosis",
    "Extension",
    "MaskingAttacks",
    "NetworkUnderTest",
    "Verdict",
    "claims_of",
    "confidence_of",
    "diagnose",
    "diagnosis_of",
    "extension_of",
    "hiding",
    "overfitting",
    "unbounded",
    "verdict_of",
]
