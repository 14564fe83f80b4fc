"""Training methods: how one batch becomes weight steps."""

from vizrobust.spec import named
from vizrobust.training.methods.adversarial import Adversarial
from vizrobust.training.methods.distillation import Distillation
from vizrobust.training.methods.free import Free
from vizrobust.training.methods.gradalign import GradAlign
from vizrobust.training.methods.method import Method
from vizrobust.training.methods.n_fgsm import NFGSM
from vizrobust.training.methods.trades import TRADES

METHODS = named(TRADES, Free, NFGSM, GradAlign, Distillation)

__all__ = ["METHODS", "NFGSM", "TRADES", "Adversarial", "Distillation", "Free", "GradAlign", "Method"]
