"""Training: the recipe, the loop, and runs that go on where they stopped."""

from vizrobust.training.loop import Progress, Trainer
from vizrobust.training.recipe import NAMES, Training
from vizrobust.training.session import recorded_threads, train, trained

__all__ = ["NAMES", "Progress", "Trainer", "Training", "recorded_threads", "train", "trained"]
