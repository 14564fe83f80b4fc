"""Training: the recipe, the loop, and runs that go on where they stopped."""

from vizrobust.training.arms import ARMS
from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.methods import METHODS, NFGSM, TRADES, Distillation, Free, GradAlign, Method
from vizrobust.training.mix import MIXES, Mix, members
from vizrobust.training.recipe import NAMES, Training, seen
from vizrobust.training.session import METRICS_FILE, recorded_threads, train, trained
from vizrobust.training.shipping import ship

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
    "ship",
    "train",
    "trained",
]
