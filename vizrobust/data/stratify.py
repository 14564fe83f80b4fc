"""Splits that hold the same share of every class, fixed by a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from vizrobust.rng import Streams

# The seed of every split made here. Changing it changes every published figure.
SPLIT_SEED = 27

VALIDATION_SHARE = 0.1
VALIDATION_IMAGES = 5_000


def stratified(labels: Tensor, shares: tuple[float, ...], streams: Streams) -> tuple[Tensor, ...]:
    """Disjoint index sets that hold `shares` (summing to 1) of every class, each in a random order of its own."""
    order = streams.permutation(len(labels))[0]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for kind in torch.unique(labels).tolist():
        of_kind = order[labels[order] == kind]
        ends = [round(sum(shares[: k + 1]) * len(of_kind)) for k in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part.append(of_kind[start:end])
    joined = [torch.cat(part) for part in parts]
    return tuple(index[streams.permutation(len(index))[0]] for index in joined)


def hold_out(labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Indices (training, validation) for a source without a validation split of its own.

    The second is a tenth of every class, at most 5,000 images in all; where the classes have fewer than ten images
    it is one image of the largest ones. The split depends on `labels` alone; `name` is for the error: ``ValueError``
    where no class has two images.
    """
    largest = int(torch.unique(labels, return_counts=True)[1].max())
    if largest < 2:
        raise ValueError(f"{name}: no class has two training images, so none can be set apart for validation; give more images")
    share = min(max(VALIDATION_SHARE, 1 / largest), VALIDATION_IMAGES / len(labels))
    train, val = stratified(labels, (1 - share, share), Streams(SPLIT_SEED, ["train"], "validation"))
    # A share of each class is rounded, so the sum can be a few images above the most that is wanted.
    return torch.cat((train, val[VALIDATION_IMAGES:])), val[:VALIDATION_IMAGES]
