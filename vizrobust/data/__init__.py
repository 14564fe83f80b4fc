"""Data sets by name: images in [0, 1], labels, and what a data set knows about itself."""

from vizrobust.data.dataset import ArraySplit, DataSet, FileSplit, Split, Subset, first, saturated_share
from vizrobust.data.references import DATA, load

__all__ = ["DATA", "ArraySplit", "DataSet", "FileSplit", "Split", "Subset", "first", "load", "saturated_share"]
