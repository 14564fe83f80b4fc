"""From a data reference (a name, npz:FILE, imagefolder:DIR) to a data set."""

from __future__ import annotations

from collections.abc import Callable

from vizrobust.data.dataset import DataSet
from vizrobust.data.embedded import digits, mnist5k
from vizrobust.spec import lookup, named

DATA: dict[str, Callable[..., DataSet]] = named(mnist5k, digits)


def load(ref: str, download: bool = False) -> DataSet:
    """The data set that `ref` names."""
    return lookup(DATA, ref, "data set")()
