"""How clear a feature image is, judged by networks and images that the compared checkpoints never saw."""

from vizrobust.clarity.judge import Judge, Opinion, judge_for
from vizrobust.clarity.metrics import forced_choice, recognised, transfer
from vizrobust.clarity.queries import Order, excitations, shared_orders

METRICS = {metric.__name__: metric for metric in (transfer, recognised, forced_choice)}

__all__ = [
    "METRICS",
    "Judge",
    "Opinion",
    "Order",
    "excitations",
    "forced_choice",
    "judge_for",
    "recognised",
    "shared_orders",
    "transfer",
]
