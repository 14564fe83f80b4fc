"""The losses that attacks raise: one number per image from its logits and label, larger = more wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Added to the difference of logits that DLR divides by, which may be 0.
TINY = 1e-12


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy: (N, classes), (N,) -> (N,); a little below 0 where the network is so confident that it rounds to 0.

    With s = log(sum of the others' exp) - own logit, the log-odds of being wrong, cross entropy is log(1 + exp(s)). Below
    s = log(epsilon), -15.9 in float32, it rounds to 0 and the label's softmax to 1, so the gradient loses the label's
    own logit, and below s = -104 all of it. Below that point this loss continues as epsilon * (s - log(epsilon)): the
    direction of its own gradient, its slope at that point, and values that stay below all others and grow with s.

    >>> f"{ce(torch.tensor([[120.0, 0.0]]), torch.tensor([0])).item():.3g}"
    '-1.24e-05'
    """
    logits = _wide(logits)
    value = F.cross_entropy(logits, y, reduction="none")
    if logits.shape[1] < 2:
        return value
    smallest = torch.finfo(logits.dtype).eps
    log_odds = _others(logits, y).logsumexp(1) - _of(logits, y)
    return torch.where(log_odds < math.log(smallest), smallest * (log_odds - math.log(smallest)), value)


def standard_ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy as other tools compute it: where the network is so confident that it rounds to 0, its gradient is 0."""
    return F.cross_entropy(_wide(logits), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the label's (Carlini & Wagner 2017): (N, classes), (N,) -> (N,); above 0 = wrong.

    Unlike cross entropy it does not saturate on images of which the network is very confident.

    >>> margin(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1]))
    tensor([2.])
    """
    logits = _wide(logits)
    return _others(logits, y).amax(1) - _of(logits, y)


# Where the log-odds are below this, probabilities are near the end of float32's range.
FAINT = -60.0


def pm(logits: Tensor, y: Tensor) -> Tensor:
    """The probability margin, 1 + the largest other probability - the label's (PMA, 2411.15210): (N, classes), (N,) -> (N,).

    From 0 to 2; above 1 = wrong. The 1 is added as the sum of
    the others' probabilities, so that small values keep their digits; where even those end, it goes on in proportion to
    the log-odds, as `ce` does.

    >>> pm(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 0]))
    tensor([1., 2.])
    """
    logits = _wide(logits)
    others = _others(logits, y)
    log_odds = others.logsumexp(1) - _of(logits, y)
    value = log_odds.sigmoid() + (others.amax(1) - logits.logsumexp(1)).exp()
    return torch.where(log_odds < FAINT, math.exp(FAINT) * (log_odds - FAINT), value)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the difference of first and third logit (Croce & Hein 2020, eq. 6): (N, classes), (N,) -> (N,).

    Above 0 = wrong, and the same for logits multiplied by any factor. With two classes there is no third logit, and the
    margin over itself would be constant: there it is the `margin`.

    >>> dlr(torch.tensor([[3.0, 1.0, 0.0], [30.0, 10.0, 0.0]]), torch.tensor([1, 1]))
    tensor([0.6667, 0.6667])
    """
    logits = _wide(logits)
    if logits.shape[1] < 3:
        return margin(logits, y)
    first = logits.topk(3, dim=1).values
    return margin(logits, y) / (first[:, 0] - first[:, 2] + TINY)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """DLR towards a class (Croce & Hein 2020, eq. 7): (N, classes), labels (N,), target classes (N,) -> (N,).

    The target's logit minus the label's, over the first minus the mean of third and fourth. With fewer than four
    classes it is that difference alone: over the first minus the third it could be constant.

    >>> dlr_targeted(torch.tensor([[4.0, 2.0, 1.0, 1.0]]), torch.tensor([0]), torch.tensor([1]))
    tensor([-0.6667])
    """
    logits = _wide(logits)
    lead = _of(logits, target) - _of(logits, y)
    if logits.shape[1] < 4:
        return lead
    first = logits.topk(4, dim=1).values
    return lead / (first[:, 0] - (first[:, 2] + first[:, 3]) / 2 + TINY)


def _ce_targeted(logits: Tensor, _y: Tensor, target: Tensor) -> Tensor:
    return -ce(logits, target)


def _pm_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    logits = _wide(logits)
    lead = _of(logits, target) - _of(logits, y)
    log_odds = _others(logits, y).logsumexp(1) - _of(logits, y)
    value = log_odds.sigmoid() + (_of(logits, target) - logits.logsumexp(1)).exp()
    return torch.where(lead < FAINT, math.exp(FAINT) * (lead - FAINT), value)


def _margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    logits = _wide(logits)
    return _of(logits, target) - _of(logits, y)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """How far the prediction moved from the one on the clean image (Zhang et al. 2019, eq. 3): -> (N,), at least 0.

    The Kullback-Leibler divergence of the softmax of `logits` (N, classes) from the clean prediction, whose
    `log_probabilities` (N, classes) `clean` holds: as probabilities it would have an undefined gradient where one is 0.

    >>> kl(torch.tensor([[0.0, 0.0]]), log_probabilities(torch.tensor([[1e4, 0.0]])))
    tensor([0.6931])
    """
    return F.kl_div(log_probabilities(logits), clean, reduction="none", log_target=True).sum(1)


def log_probabilities(logits: Tensor) -> Tensor:
    """(N, classes) -> (N, classes): the logarithms of the network's probabilities, in float32 at least."""
    return F.log_softmax(_wide(logits), 1)


def fallback(loss: str, classes: int, targeted: bool = False) -> str | None:
    """What an attack with this loss uses instead on a network of so few classes, as a sentence; None if it needs nothing else.

    >>> fallback("dlr", 3), fallback("dlr", 2)
    (None, 'dlr needs 3 classes and the network has 2, so the margin is used')
    >>> fallback("dlr", 3, targeted=True)
    'targeted dlr needs 4 classes and the network has 3, so the difference of two logits is used'
    """
    if loss != "dlr" or classes >= (4 if targeted else 3):
        return None
    name, needed, used = ("targeted dlr", 4, "difference of two logits") if targeted else ("dlr", 3, "margin")
    return f"{name} needs {needed} classes and the network has {classes}, so the {used} is used"


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least: eight bits of bfloat16 cannot resolve the difference of two large logits."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _of(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr, "pm": pm}
# What other tools use, to show where it fails; no attack here uses it by default.
PLAIN_LOSSES: dict[str, Loss] = {"standard_ce": standard_ce}
# Compared with the log-probabilities (N, classes) on the clean image in place of the label.
SOFT_LOSSES: dict[str, Loss] = {"kl": kl}
# Towards a target class, by the same names: (logits, labels, target classes) -> (N,).
TARGETED_LOSSES: dict[str, TargetedLoss] = {
    "ce": _ce_targeted,
    "margin": _margin_targeted,
    "dlr": dlr_targeted,
    "pm": _pm_targeted,
}
