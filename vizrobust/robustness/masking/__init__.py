"""Masked gradients: checks that look for them, and a verdict on whether a robust accuracy can be believed."""

from vizrobust.robustness.masking.accuracy_checks import DECIDING, claims_of
from vizrobust.robustness.masking.attacks import MaskingAttacks
from vizrobust.robustness.masking.diagnosis import CHECKS, Diagnosis, Extension, diagnose, diagnosis_of, extension_of
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
    Criterion,
    NetworkUnderTest,
    Verdict,
    confidence_of,
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
