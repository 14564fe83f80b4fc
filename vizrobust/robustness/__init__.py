"""How robust a network is: accuracy under attack with intervals, curves over attack steps, examples."""

from vizrobust.robustness.accuracy import Evaluation, evaluate, gather, share, wilson
from vizrobust.robustness.examples import Examples, examples

__all__ = ["Evaluation", "Examples", "evaluate", "examples", "gather", "share", "wilson"]
