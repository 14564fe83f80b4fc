"""Data sets by name: images in [0, 1], labels, and what a data set knows about itself."""

from vizrobust.data.dataset import (
    ArraySplit,
    DataSet,
    FileSplit,
    Split,
    Subset,
    first,
    kept,
    saturated_share,
    shuffled_labels,
    stratified,
)
from vizrobust.data.sources import DATA, known, load

__all__ = [
    "DATA",
    "ArraySplit",
    "DataSet",
    "FileSplit",
    "Split",
    "Subset",
    "first",
    "kept",
    "known",
    "load",
    "saturated_share",
    "shuffled_labels",
    "stratified",
]
