"""Training: the recipe, the loop, and runs that go on where they stopped."""

from vizrobust.training.examples import MIX_MODES, MultiAttack, attacks_of
from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.methods import METHODS, NFGSM, TRADES, Distillation, Free, GradAlign, Method
from vizrobust.training.recipe import BASELINE_ATTACKS, NAMES, TrainingRecipe, attacks_seen, is_recipe
from vizrobust.training.training_runs import METRICS_FILE, own_content, recorded_threads, store_half, train, trained_checkpoint

__all__ = [
    "BASELINE_ATTACKS",
    "METHODS",
    "METRICS_FILE",
    "MIX_MODES",
    "NAMES",
    "NFGSM",
    "TRADES",
    "Distillation",
    "Free",
    "GradAlign",
    "Method",
    "MultiAttack",
    "Progress",
    "Trainer",
    "TrainingRecipe",
    "attacks_of",
    "attacks_seen",
    "is_recipe",
    "own_content",
    "recorded_threads",
    "store_half",
    "train",
    "trained_checkpoint",
]
