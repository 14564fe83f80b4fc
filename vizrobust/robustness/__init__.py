"""How robust a network is: accuracy under attack with intervals, curves over attack steps, examples."""

from vizrobust.robustness.accuracy import CLEAN, Evaluation, Part, gather, share, wilson
from vizrobust.robustness.evaluate import BATCH_SIZE, evaluate
from vizrobust.robustness.examples import Examples, examples

__all__ = ["BATCH_SIZE", "CLEAN", "Evaluation", "Examples", "Part", "evaluate", "examples", "gather", "share", "wilson"]
