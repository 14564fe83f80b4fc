"""Where downloaded data sets lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder of downloaded data: ``$VIZROBUST_DATA``, else ``~/.cache/vizrobust/data``."""
    return Path(os.environ.get("VIZROBUST_DATA") or Path.home() / ".cache" / "vizrobust" / "data").expanduser()


def absent(name: str, files: str) -> FileNotFoundError:
    """The error that says where `files` of a data set were looked for."""
    there = str(data_root() / files)
    return FileNotFoundError(
        f"{name} is not on this machine, or not whole; add --download, or put its files at {there!r} "
        "(VIZROBUST_DATA names another root)"
    )
