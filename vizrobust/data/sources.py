"""From a data reference (a name, npz:FILE, imagefolder:DIR) to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vizrobust.data import published
from vizrobust.data.dataset import DataSet
from vizrobust.data.files import imagefolder, npz, sizing, skip_broken
from vizrobust.data.published import CLASSES, SHAPE, digits, imagenette64, imagenette64_rest, mnist5k
from vizrobust.data.views import CHANNELS, held_out, recolored, shuffled_labels
from vizrobust.plugins import Catalogue, no_data_set
from vizrobust.spec import named

EMBEDDED: dict[str, Callable[[], DataSet]] = named(mnist5k, digits)

FETCHED: dict[str, Callable[[bool], DataSet]] = {
    "mnist": published.mnist,
    "mnist55k": published.mnist55k,
    "fashion-mnist": published.fashion_mnist,
    "cifar10": published.cifar10,
    "cifar100": published.cifar100,
    "svhn": published.svhn,
    "imagenette": published.imagenette,
    "imagenette64": imagenette64,
    "imagenette64-rest": imagenette64_rest,
}

OWN: dict[str, Callable[[str], DataSet]] = {"npz": npz, "imagefolder": imagefolder, "skip-broken": skip_broken}

# Before another reference: its training labels in a random order, its validation images to learn from.
VIEWS: dict[str, Callable[[DataSet], DataSet]] = {"shuffled": shuffled_labels, "held-out": held_out}

DATA: dict[str, Callable[..., DataSet]] = {
    **EMBEDDED,
    **FETCHED,
    "npz:FILE": npz,
    "imagefolder:DIR[@SIZE]": imagefolder,
    "skip-broken:imagefolder:DIR": skip_broken,
    "shuffled:REF": shuffled_labels,
    "held-out:REF": held_out,
}


# Sources of other packages and files: called with what stands behind the colon ("" for none) and `download`.
SOURCES: Catalogue[Callable[[str, bool], DataSet]] = Catalogue({}, "data")


def load(ref: str, download: bool = False, *, typed: bool = False) -> DataSet:
    """The data set that `ref` names, in any case: a name of the catalogue, ``npz:FILE`` or ``imagefolder:DIR[@SIZE]``,
    which with ``skip-broken:`` before it leaves broken files out.

    With ``@rgb`` behind it, grey images are read in three equal channels; with ``@grey``, colours as their luma.

    ``NAME`` or ``NAME:REST`` may also be an installed package's source, or ``my.py:NAME[:REST]`` that of a person's own
    file, if the reference was `typed` by a person.

    Published data sets are read from ``$VIZROBUST_DATA`` or ``~/.cache/vizrobust/data``, and fetched there only
    with `download`. Raises ``ValueError`` or ``FileNotFoundError`` with the next step.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.test), digits.classes[:3]
    ((1, 8, 8), 359, ('0', '1', '2'))
    """
    for suffix, channels in CHANNELS.items():
        if ref.lower().endswith(suffix) and not Path(ref.partition(":")[2] or ref).exists():
            return recolored(load(ref[: -len(suffix)], download, typed=typed), channels, ref)
    kind, colon, rest = ref.partition(":")
    if kind.lower() in VIEWS and rest:
        return VIEWS[kind.lower()](load(rest, download, typed=typed))
    if colon and kind.lower() in OWN:
        if not rest:
            raise ValueError(f"{ref!r} names no file or folder; write npz:FILE or imagefolder:DIR[@SIZE]")
        return OWN[kind.lower()](rest)
    if ref.partition("@")[0].lower() not in {**EMBEDDED, **FETCHED}:
        source, rest = _outside(ref, typed)
        if source is not None:
            return replace(source(rest, download), name=ref)
    name, size = _name(ref)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name == "imagenette":
        return published.imagenette(download, size)
    return FETCHED[name](download)


def _outside(ref: str, typed: bool) -> tuple[Callable[[str, bool], DataSet] | None, str]:
    """The source of another package or file that `ref` names, if any, and what it is to be called with."""
    ends = [place for place, letter in enumerate(ref) if letter == ":"]
    for end in (*ends, len(ref)):
        source = SOURCES.find(ref[:end], typed=typed)
        if source is not None:
            return source, ref[end + 1 :]
    return None, ""


def metadata_of(ref: str) -> tuple[tuple[int, int, int], tuple[str, ...]] | None:
    """Shape (C, H, W) and class names of a published data set, without loading it; None for any other reference.

    >>> metadata_of("mnist")[0], metadata_of("imagenette@96")[0], metadata_of("npz:mine.npz")
    ((1, 28, 28), (3, 96, 96), None)
    """
    name = ref.partition("@")[0].lower()
    if name == "imagenette":
        side = _name(ref)[1] or published.IMAGENETTE_SIZE
        return (3, side, side), tuple(published.IMAGENETTE.values())
    if name in ("imagenette64", "imagenette64-rest"):
        return SHAPE, CLASSES
    about = published.PUBLISHED.get(ref.lower())
    return (about.shape, about.classes) if about else None


def _name(ref: str) -> tuple[str, int | None]:
    """A name of the catalogue as it is written there, and the size after its @."""
    text = ref.partition("@")[0].lower()
    if text not in EMBEDDED and text not in FETCHED:
        raise ValueError(no_data_set(ref))
    if "@" in ref and text != "imagenette":
        raise ValueError(f"{ref!r}: only imagenette takes a size; write {text}")
    read = sizing(ref)[1]
    if read.fit or read.resize != read.size:
        raise ValueError(f"{ref!r}: imagenette takes a whole number of pixels, as in imagenette@96")
    return text, read.size
