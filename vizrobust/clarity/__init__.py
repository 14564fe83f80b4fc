"""How clear a feature image is, judged by networks and images that the compared checkpoints never saw."""

from vizrobust.clarity.judges import Judge, Opinion, disqualified, judge_for, judges_for
from vizrobust.clarity.metrics import (
    METRICS,
    Identified,
    Metric,
    forced_choice,
    high_frequency_share,
    identification,
    kernel_distance,
    nearest_natural,
    nyquist_ratio,
    recognised,
    seed_agreement,
    spectrum_distance,
    transfer,
)
from vizrobust.clarity.path_similarity import PathSimilarity, path_similarity
from vizrobust.clarity.queries import Order, blurred, contrast_matched, excitations, shared_orders

__all__ = [
    "METRICS",
    "Identified",
    "Judge",
    "Metric",
    "Opinion",
    "Order",
    "PathSimilarity",
    "blurred",
    "contrast_matched",
    "disqualified",
    "excitations",
    "forced_choice",
    "high_frequency_share",
    "identification",
    "judge_for",
    "judges_for",
    "kernel_distance",
    "nearest_natural",
    "nyquist_ratio",
    "path_similarity",
    "recognised",
    "seed_agreement",
    "shared_orders",
    "spectrum_distance",
    "transfer",
]
