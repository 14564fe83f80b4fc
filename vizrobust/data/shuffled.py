"""A data set whose training labels mean nothing: a network trained on it has nothing to show about its classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vizrobust.data.dataset import DataSet, Split
from vizrobust.rng import Streams


@dataclass(frozen=True)
class Relabelled:
    """Another split's images under other `labels` (n,) int64."""

    whole: Split
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Tensor:
        return self.whole.take(index)


def shuffled_labels(data: DataSet, seed: int = 0) -> DataSet:
    """`data` with its training labels in a random order: the same images, the same share of every class.

    Validation and test labels stay true, so that accuracy on them is chance and the queries of the clarity metrics
    are the same. The name tells it apart from the real data.

    >>> from vizrobust.data import load
    >>> null = shuffled_labels(load("digits"), seed=0)
    >>> null.name, bool((null.train.labels.sort().values == load("digits").train.labels.sort().values).all())
    ('shuffled:digits', True)
    """
    order = Streams(seed, [data.name], "shuffled labels").permutation(len(data.train))[0]
    labels = data.train.labels[order]
    if torch.equal(labels, data.train.labels):
        raise ValueError(f"{data.name}: its training labels are the same in any order; give images of two or more classes")
    return replace(data, name=f"shuffled:{data.name}", train=Relabelled(data.train, labels))
