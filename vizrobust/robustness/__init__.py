"""How robust a network is: accuracy under attack with intervals, curves over attack steps, examples."""

from vizrobust.robustness.accuracy import Evaluation, evaluate, gather, share, wilson

__all__ = ["Evaluation", "evaluate", "gather", "share", "wilson"]
