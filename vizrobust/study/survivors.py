"""Who survives an attack, packed for a report: a letter for every four images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def packed(right: Sequence[bool] | torch.Tensor) -> str:
    """Who is right, as hexadecimal: eight images a byte, the first in the highest bit.

    >>> packed([True, False, False, False, False, False, False, True, True])
    '8180'
    >>> unpacked('8180', 9)
    [True, False, False, False, False, False, False, True, True]
    """
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(text: str, n: int) -> list[bool]:
    """The reverse of `packed` for n images."""
    return [bool(bit) for bit in np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:n]]
