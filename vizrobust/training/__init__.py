"""Training: the recipe, the loop, and runs that go on where they stopped."""

from vizrobust.training.half_precision import store_half
from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.methods import METHODS, NFGSM, TRADES, Distillation, Free, GradAlign, Method
from vizrobust.training.multi_attack import MIXES, Mix, members
from vizrobust.training.recipe import ARMS, NAMES, Training, seen
from vizrobust.training.training_runs import METRICS_FILE, recorded_threads, train, trained

__all__ = [
    "ARMS",
    "METHODS",
    "METRICS_FILE",
    "MIXES",
    "NAMES",
    "NFGSM",
    "TRADES",
    "Distillation",
    "Free",
    "GradAlign",
    "Method",
    "Mix",
    "Progress",
    "Trainer",
    "Training",
    "members",
    "recorded_threads",
    "seen",
    "store_half",
    "train",
    "trained",
]
