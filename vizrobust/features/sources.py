"""The files and data sets that a picture is made from besides the network: which they are, and their hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from vizrobust.data import load
from vizrobust.features.exemplar_session import Source
from vizrobust.features.pictures import reference_sha256
from vizrobust.runs import file_sha256


def sources(*specs: Any) -> tuple[tuple[str, str], ...]:
    """What objectives and recipes read, each as (name, sha256): reference images, direction vectors, spectra.

    Raises what reading them raises where one is not there.

    >>> from vizrobust.features import Channel, Inversion
    >>> [name for name, _ in sources(Channel("conv2") + Inversion("conv1", "mnist5k#3"))]
    ['mnist5k#3']
    """
    found = dict.fromkeys(pair for one in specs for pair in _named(one))
    return tuple((name, HASHES[field](name)) for field, name in found)


def _named(x: Any) -> Iterator[tuple[str, str]]:
    """(field, text) for every field of a spec, or of one inside it, that names a file or data set."""
    if isinstance(x, tuple):
        for item in x:
            yield from _named(item)
    elif is_dataclass(x):
        for field in fields(x):
            value = getattr(x, field.name)
            if field.name in HASHES and isinstance(value, str):
                yield field.name, value
            else:
                yield from _named(value)


def _vector_sha256(path: str) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r} (the vector of Direction)")
    return file_sha256(path)


def _spectrum_sha256(source: str) -> str:
    """Of a .npy file, or the fingerprint of a data set's training images."""
    if not source.lower().endswith(".npy"):
        return str(Source(load(source), "train").identity["sha256"])
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {source!r} (the spectrum of Magnitude)")
    return file_sha256(path)


# By the name of the field, which is the same in every spec that has one.
HASHES: Mapping[str, Callable[[str], str]] = {
    "image": reference_sha256,
    "vector": _vector_sha256,
    "spectrum": _spectrum_sha256,
}
