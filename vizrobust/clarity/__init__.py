"""How clear a feature image is, judged by networks and images that the compared checkpoints never saw."""

from vizrobust.clarity.judges import Judge, JudgeOutput, excluded, judge_for, judges_for
from vizrobust.clarity.metrics import (
    METRICS,
    IdentificationScores,
    Metric,
    cross_seed_similarity,
    high_frequency_share,
    identification,
    judge_log_odds,
    judge_top1,
    kid,
    nearest_neighbour_distance,
    nyquist_ratio,
    spectrum_distance,
    two_afc,
)
from vizrobust.clarity.path_similarity import PathSimilarity, path_similarity
from vizrobust.clarity.picture_scores import (
    NATURAL_IMAGES,
    RANDOM_NETWORK,
    PictureScores,
    score_pictures,
    score_run,
    scoring_jobs,
)
from vizrobust.clarity.queries import QueryRanking, blurred, contrast_matched, excitations, shared_rankings

__all__ = [
    "METRICS",
    "NATURAL_IMAGES",
    "RANDOM_NETWORK",
    "IdentificationScores",
    "Judge",
    "JudgeOutput",
    "Metric",
    "PathSimilarity",
    "PictureScores",
    "QueryRanking",
    "blurred",
    "contrast_matched",
    "cross_seed_similarity",
    "excitations",
    "excluded",
    "high_frequency_share",
    "identification",
    "judge_for",
    "judge_log_odds",
    "judge_top1",
    "judges_for",
    "kid",
    "nearest_neighbour_distance",
    "nyquist_ratio",
    "path_similarity",
    "score_pictures",
    "score_run",
    "scoring_jobs",
    "shared_rankings",
    "spectrum_distance",
    "two_afc",
]
