"""A few images before and after an attack, with what the network says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.data import Split, Subset
from vizrobust.models import borrowed
from vizrobust.rng import Streams
from vizrobust.robustness.accuracy import Evaluation

SHOWN = 4


@dataclass(frozen=True)
class Examples:
    """k images: `x` and `adv` (k, C, H, W), `labels` (k,), the class probabilities of both (k, classes)."""

    x: Tensor
    adv: Tensor
    labels: Tensor
    clean_probs: Tensor
    adv_probs: Tensor


def examples(net: nn.Module, result: Evaluation, images: Split, compute: Compute, seed: int = 0, count: int = SHOWN) -> Examples:
    """The first images that an evaluation found broken, attacked again; the first correct ones where none is."""
    broken = (result.clean & ~result.robust).nonzero()[:, 0]
    chosen = broken if len(broken) else result.clean.nonzero()[:, 0]
    if not len(chosen):
        raise ValueError("the network classifies no image correctly, so there is no example to show")
    index = result.images[chosen[:count]]
    shown = Subset(images, index)
    x = compute.images(shown.take(torch.arange(len(index))))
    y = shown.labels.to(compute.device)
    compute.place(net)
    with borrowed(net):
        found = result.attack(net, x, y, Streams(seed, index.tolist(), "attack"))
        adv = found.x if found.best is None else found.best
        with torch.no_grad():
            clean_probs, adv_probs = net(x).softmax(1), net(adv).softmax(1)
    return Examples(x.cpu(), adv.cpu(), y.cpu(), clean_probs.cpu(), adv_probs.cpu())
