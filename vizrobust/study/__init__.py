"""Comparing checkpoints: clarity of their pictures on the same units, paired differences and intervals."""

from vizrobust.study.calibrate import Plan, Stage, Table, calibrate, matched
from vizrobust.study.dimension import dimension_study
from vizrobust.study.paired import Difference, paired
from vizrobust.study.pictures import NATURAL, RANDOM, PictureScores, clarity_scores, score_pictures, scoring_jobs

__all__ = [
    "NATURAL",
    "RANDOM",
    "Difference",
    "PictureScores",
    "Plan",
    "Stage",
    "Table",
    "calibrate",
    "clarity_scores",
    "dimension_study",
    "matched",
    "paired",
    "score_pictures",
    "scoring_jobs",
]
