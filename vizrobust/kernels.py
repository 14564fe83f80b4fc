"""Ask Intel's matrix library for kernels that give each row of a product the same bits, wherever in the batch it stands."""

from __future__ import annotations

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

INTEL = "GenuineIntel"


def processor() -> str:
    """What this machine says of its processor, with the name of its maker."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()


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
