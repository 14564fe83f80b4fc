"""Masked gradients: checks that look for them, and a verdict on whether a robust accuracy can be believed."""

from vizrobust.robustness.masking.accuracy_checks import DECIDING
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.check import AttackBudget, Check, NetworkUnderTest
from vizrobust.robustness.masking.diagnosis import CHECKS, Diagnosis, diagnose, diagnosis_of, images_to_decide
from vizrobust.robustness.masking.verdict import (
    GAP,
    HIDDEN,
    HIDING,
    NOT_ROBUST,
    OVERFITTED,
    SOUND,
    UNDECIDED,
    Criterion,
    Verdict,
    hiding,
    overfitting,
    unbounded,
    verdict_of,
)

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
    "Criterion",
    "Diagnosis",
    "MaskingAttacks",
    "NetworkUnderTest",
    "Verdict",
    "diagnose",
    "diagnosis_of",
    "hiding",
    "images_to_decide",
    "overfitting",
    "unbounded",
    "verdict_of",
]
