"""The processor, which chooses the kernels: its name, and the wish that they give a row the same bits anywhere in a batch."""

from __future__ import annotations

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

INTEL = "GenuineIntel"
# What of /proc/cpuinfo tells one kind of processor from another; virtual machines give many kinds one name.
FIELDS = {"vendor_id": "", "model name": "", "cpu family": "family ", "model": "model "}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """This machine's processor in words and numbers: maker, name, family and model where they are known.

    >>> processor() == processor() != ""
    True
    """
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:  # not Linux
        lines = []
    known = {key.strip(): value.strip() for key, _, value in lines}
    return (
        " ".join(f"{label}{known[field]}" for field, label in FIELDS.items() if field in known)
        or platform.processor()
        or platform.machine()
    )


def ask_for_repeatable(environment: MutableMapping[str, str] = os.environ, cpu: str | None = None) -> None:
    """Set ``MKL_CBWR=AUTO`` where the processor is not Intel's and the user has set nothing; MKL reads it at its first product.

    On AMD's processors MKL's own choice computes the last rows of a batch in another order than the first ones, so that
    an image's result hangs on its place; its mode for repeatable results does not (`tests/test_kernels.py`). Intel's own
    keep MKL's choice.

    >>> environment = {}
    >>> ask_for_repeatable(environment, "vendor_id : AuthenticAMD")
    >>> environment
    {'MKL_CBWR': 'AUTO'}
    """
    if INTEL not in (processor() if cpu is None else cpu):
        environment.setdefault("MKL_CBWR", "AUTO")
