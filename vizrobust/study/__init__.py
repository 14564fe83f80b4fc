"""The study of attack steps: train a sweep over K, attack, render and score it, and answer with a report that can be verified."""

from vizrobust.study.networks import StudyCheckpoint, provided_checkpoints
from vizrobust.study.protocol import TRAININGS, Plan, TrainingRun, plan_for, quick, training_runs
from vizrobust.study.report import StudyReport
from vizrobust.study.report_checks import Check
from vizrobust.study.report_rows import report_of
from vizrobust.study.run import Stage, Study
from vizrobust.study.verify import verify

__all__ = [
    "TRAININGS",
    "Check",
    "Plan",
    "Stage",
    "Study",
    "StudyCheckpoint",
    "StudyReport",
    "TrainingRun",
    "plan_for",
    "provided_checkpoints",
    "quick",
    "report_of",
    "training_runs",
    "verify",
]
