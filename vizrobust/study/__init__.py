"""Comparing checkpoints: clarity of their pictures on the same units, paired differences, and the study of attack steps."""

from vizrobust.clarity.picture_scores import NATURAL, RANDOM, PictureScores, clarity_scores, score_pictures, scoring_jobs
from vizrobust.experiments.input_dimension import dimension_study
from vizrobust.experiments.uar_calibration import calibrate
from vizrobust.intervals import Difference, paired
from vizrobust.study.networks import Compared, brought
from vizrobust.study.protocol import TRAININGS, Cell, Plan, cells, plan_for, quick
from vizrobust.study.report import conclude, report_of, write_report
from vizrobust.study.run import Stage, Study
from vizrobust.study.unit_matching import Matching, draw_units, match_units
from vizrobust.study.verify import Finding, read_report, verify

__all__ = [
    "NATURAL",
    "RANDOM",
    "TRAININGS",
    "Cell",
    "Compared",
    "Difference",
    "Finding",
    "Matching",
    "PictureScores",
    "Plan",
    "Stage",
    "Study",
    "brought",
    "calibrate",
    "cells",
    "clarity_scores",
    "conclude",
    "dimension_study",
    "draw_units",
    "match_units",
    "paired",
    "plan_for",
    "quick",
    "read_report",
    "report_of",
    "score_pictures",
    "scoring_jobs",
    "verify",
    "write_report",
]
