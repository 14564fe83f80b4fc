"""A network is borrowed and given back as it was, also after an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed(net: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, gradients possible also below a caller's ``no_grad``; afterwards as it was.

    Every module gets its own training flag back. Nothing else needs to be given back: image gradients come from ``torch.autograd.grad``, which leaves every
    ``.grad`` alone, and hooks are removed where they are set.
    """
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.enable_grad():
            yield net
    finally:
        for module, training in flags:
            module.training = training
