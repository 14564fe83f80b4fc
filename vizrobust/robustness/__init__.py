"""How robust a network is: accuracy under attack with intervals, curves over attack steps, examples."""

from vizrobust.robustness.accuracy import CLEAN, PartialResult, RobustAccuracy, merge_results
from vizrobust.robustness.evaluation import BATCH_SIZE, evaluate
from vizrobust.robustness.evaluation_runs import Examples, examples, reference_accuracies
from vizrobust.robustness.suites import (
    Calibration,
    calibration_for,
    mean_uar,
    read_calibrations,
    uar,
    unforeseen_ratio,
)

__all__ = [
    "BATCH_SIZE",
    "CLEAN",
    "Calibration",
    "Examples",
    "PartialResult",
    "RobustAccuracy",
    "calibration_for",
    "evaluate",
    "examples",
    "mean_uar",
    "merge_results",
    "read_calibrations",
    "reference_accuracies",
    "uar",
    "unforeseen_ratio",
]
