"""A network is borrowed and given back as it was, also after an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed(net: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, with gradients possible even below a caller's ``no_grad``.

    Afterwards every module has its own training flag again. Nothing else needs to be given back: image gradients
    come from ``torch.autograd.grad``, which leaves every ``.grad`` alone, and hooks are removed where they are set.
    """
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.enable_grad():
            yield net
    finally:
        for module, training in flags:
            module.training = training
