"""What an attack climbs: one number per image from its logits and label, larger = more wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# The differences of logits that DLR divides by; this keeps a difference of 0 from being one.
TINY = 1e-12


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy: (N, classes), (N,) -> (N,); a little below 0 where the network is too sure for its digits.

    With s = log(sum of the others' exp) - own logit, the log-odds of being wrong, cross entropy is log(1 + exp(s)). Below
    s = log(epsilon), -15.9 in float32, it rounds to 0 and the label's softmax to 1, so the gradient loses the label's
    own logit, and below s = -104 all of it. From there down it goes on as epsilon * (s - log(epsilon)): the direction of
    its own gradient, its slope at that point, and values that stay below all others and grow with s.

    >>> f"{ce(torch.tensor([[120.0, 0.0]]), torch.tensor([0])).item():.3g}"
    '-1.24e-05'
    """
    value = F.cross_entropy(logits, y, reduction="none")
    if logits.shape[1] < 2:
        return value
    if logits.dtype != torch.float64:
        logits = logits.float()
    smallest = torch.finfo(logits.dtype).eps
    log_odds = _others(logits, y).logsumexp(1) - _of(logits, y)
    return torch.where(log_odds < math.log(smallest), smallest * (log_odds - math.log(smallest)), value)


def standard_ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy as it is computed elsewhere: where the network is too sure for its digits it is 0, without a slope."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the label's (Carlini & Wagner 2017): (N, classes), (N,) -> (N,); above 0 = wrong.

    Unlike cross entropy it does not saturate on images that the network is very sure of.
    """
    return _others(logits, y).amax(1) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the difference of first and third logit (Croce & Hein 2020, eq. 6): (N, classes), (N,) -> (N,).

    Above 0 = wrong, and the same for logits multiplied by anything. With two classes there is no third logit, and the
    margin over itself would be constant: there it is the `margin`.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    first = logits.topk(3, dim=1).values
    return margin(logits, y) / (first[:, 0] - first[:, 2] + TINY)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """DLR towards a class (Croce & Hein 2020, eq. 7): (N, classes), labels (N,), target classes (N,) -> (N,).

    The target's logit minus the label's, over the first minus the mean of third and fourth. With fewer than four
    classes it is that difference alone: over the first minus the third it could be constant.
    """
    lead = _of(logits, target) - _of(logits, y)
    if logits.shape[1] < 4:
        return lead
    first = logits.topk(4, dim=1).values
    return lead / (first[:, 0] - (first[:, 2] + first[:, 3]) / 2 + TINY)


def _ce_targeted(logits: Tensor, _y: Tensor, target: Tensor) -> Tensor:
    return -ce(logits, target)


def _margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _of(logits, target) - _of(logits, y)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """How far the prediction went from the one on the clean image (Zhang et al. 2019, eq. 3): -> (N,), at least 0.

    The Kullback-Leibler divergence of the softmax of `logits` (N, classes) from the probabilities `clean` (N, classes).
    """
    return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)


def fallback(loss: str, classes: int, targeted: bool = False) -> str | None:
    """What an attack with this loss climbs instead on a network of so few classes, as a sentence; None where it can.

    >>> fallback("dlr", 3), fallback("dlr", 2)
    (None, 'dlr needs 3 classes and the network has 2, so the margin is used')
    >>> fallback("dlr", 3, targeted=True)
    'targeted dlr needs 4 classes and the network has 3, so the difference of two logits is used'
    """
    if loss != "dlr" or classes >= (4 if targeted else 3):
        return None
    name, needed, used = ("targeted dlr", 4, "difference of two logits") if targeted else ("dlr", 3, "margin")
    return f"{name} needs {needed} classes and the network has {classes}, so the {used} is used"


def _of(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}
# What other tools climb, to say what becomes of them; no attack of ours has a use for it.
PLAIN_LOSSES: dict[str, Loss] = {"standard_ce": standard_ce}
# Compared with the network's own probabilities (N, classes) on the clean image in place of the label.
SOFT_LOSSES: dict[str, Loss] = {"kl": kl}
# Towards a target class, by the same names: (logits, labels, target classes) -> (N,).
TARGETED_LOSSES: dict[str, TargetedLoss] = {"ce": _ce_targeted, "margin": _margin_targeted, "dlr": dlr_targeted}
