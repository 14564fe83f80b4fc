"""Masked gradients: checks that look for them, and a verdict on whether a robust accuracy can be believed."""

from vizrobust.robustness.masking.accuracy_checks import DECIDING
from vizrobust.robustness.masking.attacks import Context
from vizrobust.robustness.masking.check import Check, Effort, Subject
from vizrobust.robustness.masking.diagnosis import CHECKS, Diagnosis, diagnose, judged
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
    conclude,
    hiding,
    overfitting,
    unbounded,
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
    "Check",
    "Context",
    "Criterion",
    "Diagnosis",
    "Effort",
    "Subject",
    "Verdict",
    "conclude",
    "diagnose",
    "hiding",
    "judged",
    "overfitting",
    "unbounded",
]
