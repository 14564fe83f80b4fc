"""Data sets seen through others: labels in another order, classes of a network, other channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vizrobust.data.dataset import DataSet, Split, Subset
from vizrobust.data.imagenet import class_places
from vizrobust.rng import Streams

# ITU-R 601, as Pillow has it.
LUMA = (0.299, 0.587, 0.114)
# Behind a reference: read in so many channels.
CHANNELS = {"@rgb": 3, "@grey": 1}


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


# Fewest held-out images of a class from which a judge may learn, and the share of them that is kept to watch it.
FEWEST_HELD_OUT, WATCHED = 10, 10


def held_out(data: DataSet) -> DataSet:
    """The validation images of `data` as a training set, for judges of networks that were trained on its training images.

    Every tenth of them is the new validation split; the test images stay. Raises ``ValueError`` where a class has fewer than
    ten of them.

    >>> from vizrobust.data import load
    >>> found = held_out(load("mnist5k"))
    >>> found.name, len(found.train) + len(found.val) == len(load("mnist5k").val)
    ('held-out:mnist5k', True)
    """
    labels = data.val.labels
    for unit, name in enumerate(data.classes):
        if (count := int((labels == unit).sum())) < FEWEST_HELD_OUT:
            raise ValueError(
                f"{data.name} has {count} validation image{'s' if count != 1 else ''} of class {name!r}, a judge needs "
                f"{FEWEST_HELD_OUT} that the judged networks did not train on; give more, or other data of the same classes"
            )
    watched = torch.arange(len(labels)) % WATCHED == 0
    train, val = (Subset(data.val, torch.nonzero(part)[:, 0]) for part in (~watched, watched))
    return replace(data, name=f"held-out:{data.name}", train=train, val=val)


def with_classes(data: DataSet, classes: Sequence[str]) -> DataSet | None:
    """`data` with the labels of a network's `classes`, mapped by name; None where a class of the data has no such name.

    Names are compared without case, those of ImageNet with its WordNet ids too. Classes that are numbers from 0 stand for the
    places of the network's classes.

    >>> from vizrobust.data import load
    >>> with_classes(load("digits"), "9876543210").classes[0], with_classes(load("digits"), ("cat", "dog"))
    ('9', None)
    """
    if len(data.classes) > len(classes):
        return None
    found = class_places(classes, data.classes)
    if data.classes == tuple(map(str, range(len(data.classes)))) and () in found:
        found = [(number,) for number in range(len(data.classes))]
    if any(len(places) != 1 for places in found):
        return None
    place = torch.tensor([number for (number,) in found])
    return data.seen_through(lambda split: Relabelled(split, place[split.labels]), classes=tuple(classes))


@dataclass(frozen=True)
class Transformed:
    """Another split's images, each batch changed by a function (k, C, H, W) -> (k, C', H', W') in [0, 1]."""

    whole: Split
    change: Callable[[Tensor], Tensor]

    @property
    def labels(self) -> Tensor:
        return self.whole.labels

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, index: Tensor) -> Tensor:
        return self.change(self.whole.take(index))


def _grey_in_three(x: Tensor) -> Tensor:
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1).contiguous()


def _luma(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True).clamp(0, 1)


def recolored(data: DataSet, channels: int, name: str) -> DataSet:
    """`data` under another name with 3 channels (grey repeated) or 1 (luma, ITU-R 601)."""
    change = _grey_in_three if channels == 3 else _luma
    return data.seen_through(lambda split: Transformed(split, change), name=name, shape=(channels, *data.shape[1:]))
