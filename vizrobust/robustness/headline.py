"""The accuracies that a checkpoint carries in its description: clean, after one step, after fifty."""

from __future__ import annotations

from typing import Any

from torch import nn

from vizrobust.attacks import FGSM, PGD, Linf
from vizrobust.compute import Compute
from vizrobust.data import DataSet, first
from vizrobust.robustness.accuracy import gather, share
from vizrobust.robustness.evaluate import evaluate

HEADLINE_IMAGES = 1000
HEADLINE_STEPS = 50


def headline(
    net: nn.Module, data: DataSet, compute: Compute, eps: float | None = None,
    images: int = HEADLINE_IMAGES, steps: int = HEADLINE_STEPS,
) -> dict[str, Any]:  # fmt: skip
    """Shares of the first test images that `net` gets right, as a `Description.metrics` holds them.

    ``clean``, ``fgsm`` (one step) and ``robust`` (PGD with so many `steps`, text in ``attack``), both in the L-inf
    ball of radius `eps` (None: the data set's), on ``n`` images; in float32 whatever the precision of `compute`.
    """
    ball = Linf(eps=data.eps if eps is None else eps)
    tested, strong = first(data.test, images), PGD(steps=steps, ball=ball)
    one_step, found = (gather(attack, list(evaluate(net, attack, tested, compute.in_fp32()))) for attack in (FGSM(ball), strong))
    return {
        "clean": share(found.clean),
        "fgsm": share(one_step.robust),
        "robust": share(found.robust),
        "attack": repr(strong),
        "n": len(tested),
    }
