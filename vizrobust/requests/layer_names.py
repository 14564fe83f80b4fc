"""Names of layers whose units are the features of a dictionary, ``LAYER:sae=FILE``, with the hash of the file in them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

MARK = ":sae="
HASH = re.compile(r"#([0-9a-f]{8})$")


class DictionaryLayer(NamedTuple):
    """The parts of a layer's name: the `layer` itself, the dictionary's `file` and the first digits of its sha256."""

    layer: str
    file: str = ""
    sha256: str = ""


def parts_of(name: str) -> DictionaryLayer:
    """A layer's name in its parts; `file` is empty for a layer as it is.

    >>> parts_of("conv2"), parts_of("conv2:sae=d.safetensors#0a1b2c3d")[1:]
    (DictionaryLayer(layer='conv2', file='', sha256=''), ('d.safetensors', '0a1b2c3d'))
    """
    layer, _, rest = name.partition(MARK)
    found = HASH.search(rest)
    return DictionaryLayer(layer, HASH.sub("", rest), found.group(1) if found else "")


def pinned(name: str) -> str:
    """The name with the hash of its dictionary's content, so that rows under this name never answer for another dictionary.

    >>> pinned("conv2")
    'conv2'
    """
    layer, file, sha256 = parts_of(name)
    if MARK not in name or sha256:
        return name
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {file!r}, the dictionary of layer {name!r}; vizrobust dictionary makes one")
    with path.open("rb") as opened:
        return f"{layer}{MARK}{file}#{hashlib.file_digest(opened, 'sha256').hexdigest()[:8]}"


def pinned_in(text: str) -> str:
    """The text of an objective with every layer's name in it `pinned`.

    >>> pinned_in('Channel(layer="conv2")')
    'Channel(layer="conv2")'
    """
    return re.sub(rf"(?<=[\"'])[^\"']*{MARK}[^\"']*(?=[\"'])", lambda found: pinned(found.group()), text)


def with_hashes(field: str, value: Any) -> Any:
    """The value of a request's field, with the layers' names in it `pinned`.

    >>> with_hashes("layers", ("conv1", "conv2")), with_hashes("units", "3,4")
    (('conv1', 'conv2'), '3,4')
    """
    if field == "objective" and isinstance(value, str):
        return pinned_in(value)
    if field in ("layer", "layers"):
        return pinned(value) if isinstance(value, str) else tuple(map(pinned, value)) if isinstance(value, tuple) else value
    return value
