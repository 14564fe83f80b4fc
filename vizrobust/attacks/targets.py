"""The wrong class that a targeted attack goes towards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vizrobust.attacks.walk import class_count
from vizrobust.rng import Streams


def drawn_targets(net: nn.Module, x: Tensor, y: Tensor, streams: Streams, target: int | None = None) -> Tensor:
    """(N,): `target` for every image, or a wrong class for each, drawn uniformly from its own stream.

    Raises ``ValueError`` where the network has no class `target`.
    """
    classes = class_count(net, x)
    if target is not None:
        if target >= classes:
            raise ValueError(f"target class {target} does not exist: the network has classes 0 to {classes - 1}")
        return torch.full_like(y, target)
    return (y + 1 + streams.child("target").integers(classes - 1).to(y.device)) % classes
