"""Where the work runs: device, precision, memory format, threads; the only importer of accelerate."""

from __future__ import annotations

import contextlib
import copy
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")

Net = TypeVar("Net", bound=nn.Module)


class Compute:
    """One process's device and precision. Networks and images that pass through it are channels-last.

    `device` is ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda`` or ``mps``; `precision` is ``fp32`` or
    ``bf16`` (autocast: weights and images stay float32). `threads` fixes torch's CPU threads, None leaves them.
    Raises ``ValueError`` for a device that this machine does not have.
    """

    def __init__(self, device: str = "auto", precision: str = "fp32", threads: int | None = None) -> None:
        if device not in DEVICES:
            raise ValueError(f"no device {device!r}; there are: {', '.join(DEVICES)}")
        if precision not in PRECISIONS:
            raise ValueError(f"no precision {precision!r}; there are: {', '.join(PRECISIONS)}")
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(device, True):
            raise ValueError(f"device {device!r} is not available here; use --device cpu")
        if threads is not None:
            torch.set_num_threads(threads)
        mixed = "bf16" if precision == "bf16" else "no"
        # Accelerate keeps one precision a process; a second Compute (tests, a notebook) starts it anew.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=device == "cpu" or not any(there.values()), mixed_precision=mixed)
        self.device = self.accelerator.device
        self.precision = precision

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def place(self, net: Net) -> Net:
        """The network on the device, its convolution weights channels-last."""
        return net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, x: Tensor) -> Tensor:
        """(N, C, H, W) on the device, channels-last."""
        return x.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision's context. Enter it once around a whole attack: weights are then cast once, not each step."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def full_precision(self) -> AbstractContextManager[object]:
        """Inside `autocast`, for what must stay float32: an image is not rounded before the network sees it."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def in_fp32(self) -> Compute:
        """The same device without autocast: evaluation stays in float32 whatever the training's precision."""
        other = copy.copy(self)
        other.precision = "fp32"
        return other

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)


def versions() -> dict[str, str]:
    """What a result depends on: the versions of python, torch, torchvision and vizrobust."""
    found = {name: version(name) for name in ("vizrobust", "torch", "torchvision")}
    return {"python": platform.python_version(), **found}


def full_batches(n: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Indices 0 … n-1 in batches of exactly `size`, each with how many of them count; the last is filled by repeats.

    Kernels depend on the batch size: at one recorded size an image's result is the same bit for bit, whoever its mates.

    >>> [(index.tolist(), count) for index, count in full_batches(5, 3)]
    [([0, 1, 2], 3), ([3, 4, 4], 2)]
    """
    for start in range(0, n, size):
        yield torch.arange(start, start + size).clamp(max=n - 1), min(size, n - start)
