"""Data sets by name: images in [0, 1], labels, and what a data set knows about itself."""

from vizrobust.data.dataset import (
    ArraySplit,
    DataSet,
    FileSplit,
    Split,
    Subset,
    check_images,
    head,
    in_memory,
    saturated_share,
    stratified,
)
from vizrobust.data.sources import DATA, content_of, load, metadata_of, shuffled_labels, with_classes

__all__ = [
    "DATA",
    "ArraySplit",
    "DataSet",
    "FileSplit",
    "Split",
    "Subset",
    "check_images",
    "content_of",
    "head",
    "in_memory",
    "load",
    "metadata_of",
    "saturated_share",
    "shuffled_labels",
    "stratified",
    "with_classes",
]
