"""How clear a feature image is, judged by networks and images that the compared checkpoints never saw."""

from vizrobust.clarity.catalogue import METRICS, Metric
from vizrobust.clarity.controls import blurred, contrast_matched
from vizrobust.clarity.encoder import Judge, Opinion
from vizrobust.clarity.identification import Identified, identification
from vizrobust.clarity.judge import judge_for, judges_for
from vizrobust.clarity.metrics import forced_choice, recognised, transfer
from vizrobust.clarity.naturalness import kernel_distance, nearest_natural
from vizrobust.clarity.paths import PathSimilarity, path_similarity
from vizrobust.clarity.qualification import disqualified
from vizrobust.clarity.queries import Order, excitations, shared_orders
from vizrobust.clarity.seeds import seed_agreement
from vizrobust.clarity.spectrum import high_frequency_share, nyquist_ratio, spectrum_distance

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
