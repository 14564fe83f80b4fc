"""What an attack climbs: one number per image from its logits and label, larger = more wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy: (N, classes), (N,) -> (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the label's (Carlini & Wagner 2017): (N, classes), (N,) -> (N,); above 0 = wrong.

    Unlike cross entropy it keeps its gradient on images that the network is very sure of.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    is_own = F.one_hot(y, logits.shape[1]).bool()
    return torch.where(is_own, -torch.inf, logits).amax(1) - own


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin}
