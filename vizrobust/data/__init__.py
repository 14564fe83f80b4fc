"""Data sets by name: images in [0, 1], labels, and what a data set knows about itself."""

from vizrobust.data.dataset import ArraySplit, DataSet, FileSplit, Split, Subset, first, kept
from vizrobust.data.moments import saturated_share
from vizrobust.data.references import DATA, known, load
from vizrobust.data.shuffled import shuffled_labels
from vizrobust.data.stratify import stratified

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
