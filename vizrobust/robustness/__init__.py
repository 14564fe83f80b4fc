"""How robust a network is: accuracy under attack with intervals, curves over attack steps, examples."""

from vizrobust.robustness.accuracy import CLEAN, Evaluation, Part, gather
from vizrobust.robustness.evaluation import BATCH_SIZE, evaluate
from vizrobust.robustness.evaluation_runs import Examples, examples, headline
from vizrobust.robustness.unforeseen import (
    Calibration,
    calibration_for,
    foreseen_ratio,
    mean_accuracy,
    mean_uar,
    read_calibrations,
    uar,
)

__all__ = [
    "BATCH_SIZE",
    "CLEAN",
    "Calibration",
    "Evaluation",
    "Examples",
    "Part",
    "calibration_for",
    "evaluate",
    "examples",
    "foreseen_ratio",
    "gather",
    "headline",
    "mean_accuracy",
    "mean_uar",
    "read_calibrations",
    "uar",
]
