"""Comparing checkpoints: clarity of their pictures on the same units, paired differences, and the study of attack steps."""

from vizrobust.study.calibrate import calibrate
from vizrobust.study.cells import Cell, cells
from vizrobust.study.compared import Compared, brought
from vizrobust.study.dimension import dimension_study
from vizrobust.study.fooling import fooled, wrong_negatives
from vizrobust.study.matching import Matching, draw_units, match_units
from vizrobust.study.outcome import conclude, report_of, write_report
from vizrobust.study.paired import Difference, paired
from vizrobust.study.pictures import NATURAL, RANDOM, PictureScores, clarity_scores, score_pictures, scoring_jobs
from vizrobust.study.plan import TRAININGS, Plan, plan_for, quick
from vizrobust.study.session import Stage, Study
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
    "fooled",
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
    "wrong_negatives",
]
