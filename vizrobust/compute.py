"""The machine that a run uses: device, precision, threads, batches, and kernels whose results repeat."""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import platform
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from vizrobust.parallel import FOREVER, SINGLE, Launch, Processes, launched
from vizrobust.plugins import used
from vizrobust.requests import ParameterError

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
    an image's result depends on its position; its mode for repeatable results does not (`tests/test_kernels.py`). Intel's own
    keep MKL's choice.

    >>> environment = {}
    >>> ask_for_repeatable(environment, "vendor_id : AuthenticAMD")
    >>> environment
    {'MKL_CBWR': 'AUTO'}
    """
    if INTEL not in (processor() if cpu is None else cpu):
        environment.setdefault("MKL_CBWR", "AUTO")


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 itself; without that ``bf16`` is up to tens of times slower than ``fp32``.

    True where that is not known, as on systems without `cpuinfo`.
    """
    try:
        flags = cpuinfo.read_text()
    except OSError:
        return True
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.partition("Features")[2]


DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")

Net = TypeVar("Net", bound=nn.Module)


class Compute:
    """One process's device and precision. Networks and images that pass through it are channels-last.

    `device` is ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda`` or ``mps``; `precision` is ``fp32`` or
    ``bf16`` (autocast: weights and images stay float32). `threads` fixes torch's CPU threads, None leaves them.
    Where torchrun started several processes, `processes` are those, each on a GPU of its own or all on CPUs; what is
    computed with it is then shared among them, and all must ask for it (`alone` is for what only one does).
    Raises ``ValueError`` for a device that this machine does not have, or has not enough of.

    >>> compute = Compute("cpu")
    >>> compute.images(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    True
    """

    def __init__(self, device: str = "auto", precision: str = "fp32", threads: int | None = None) -> None:
        if device not in DEVICES:
            raise ValueError(f"no device {device!r}; there are: {', '.join(DEVICES)}")
        if precision not in PRECISIONS:
            raise ValueError(f"no precision {precision!r}; there are: {', '.join(PRECISIONS)}")
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(device, True):
            raise ParameterError("{device} %r is not available here; use {device} cpu", device)
        ask_for_repeatable()
        if threads is not None:
            torch.set_num_threads(threads)
        mixed = "bf16" if precision == "bf16" else "no"
        cpu = device == "cpu" or not any(there.values())
        launch = launched()
        if launch is not None:
            _fits(launch, "cpu" if cpu else "cuda" if there["cuda"] else "mps")
        # Accelerate keeps one precision a process; a second Compute (tests, a notebook) starts it anew. The connection
        # to the other processes is torch's, which Accelerate opens where there is none and otherwise takes up.
        AcceleratorState._reset_state(reset_partial_state=True)
        patience = [InitProcessGroupKwargs(timeout=FOREVER)] if launch else None
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=patience)
        if launch is not None:
            atexit.unregister(_disconnect)
            atexit.register(_disconnect)
        self.device = self.accelerator.device
        self.precision = precision
        self.processes = SINGLE if launch is None else Processes(launch.rank, launch.size, launch.local_rank)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def place(self, net: Net) -> Net:
        """The network on the device, its convolution weights channels-last unless it asks for contiguous images."""
        if getattr(net, "contiguous", False):
            return net.to(device=self.device)
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

    def alone(self) -> Compute:
        """The same device for work that this process does by itself, whatever the others do."""
        other = copy.copy(self)
        other.processes = SINGLE
        return other

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)


def _fits(launch: Launch, device: str) -> None:
    """Refuse devices that processes cannot share, and keep Accelerate from choosing the number of threads."""
    if device == "mps":
        raise ParameterError("%s processes cannot share MPS; use {device} cpu, or one process", launch.size)
    if device == "cuda" and launch.local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        needed = f"{launch.local_rank + 1} processes or more"
        raise ParameterError("%s on %s GPUs; start at most %s, or use {device} cpu", needed, count, count)
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


def _disconnect() -> None:
    """Close the connection to the other processes while Python still runs: gloo's threads may hold what it must free.

    Without it a program that ends right after an exchange is aborted now and then (pytorch/pytorch#190489). After an
    uncaught error the others may be in an exchange that closing would wait for; the process then just ends.
    """
    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):
        torch.distributed.destroy_process_group()


def versions() -> dict[str, str]:
    """What a result's last bits depend on: the versions of python, torch, torchvision and vizrobust, and the processor.

    The processor's name ends with the instructions that torch's kernels use of it. Other packages and files that this
    process took an attack or the like from follow, with their version or hash.

    >>> sorted(versions())
    ['processor', 'python', 'torch', 'torchvision', 'vizrobust']
    """
    found = {name: _installed(name) for name in ("vizrobust", "torch", "torchvision")}
    kernels = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
    return {"python": platform.python_version(), **found, "processor": kernels, **used()}


# A package's version is looked for in a file of hundreds of lines.
_installed = cache(version)


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One sentence for each thing that was recorded then and is another one now.

    >>> changes({"torch": "2.4.0"}, {"torch": "2.15.0", "processor": "arm"})
    ['torch was 2.4.0, is now 2.15.0']
    """
    return [f"{name} was {then[name]}, is now {now[name]}" for name in now if name in then and then[name] != now[name]]


def size_class(count: int, most: int) -> int:
    """The batch size for `count` images of at most `most` at a time: 1, 2, 3, 4, 6, 8, 12, 16, 24 …, or `most`.

    Kernels depend on the batch size in the last bits, so there are few sizes; the padding is at most half of the images.

    >>> [size_class(count, 100) for count in (1, 5, 10, 17, 64, 90)], size_class(17, 16), size_class(1000, 100)
    ([1, 6, 12, 24, 64, 96], 12, 100)
    """
    rounds = -(-count // most)
    if rounds > 1 and 2 * rounds * most <= 3 * count:
        return most
    wanted = -(-count // max(1, rounds))
    power = 1 << max(0, wanted - 1).bit_length()
    return min(most, 3 * power // 4 if power >= 4 and wanted <= 3 * power // 4 else power)


def full_batches(n: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Indices 0 … n-1 in batches of exactly `size`, each with how many of them count; the last is filled by repeats.

    Kernels depend on the batch size: at one recorded size an image's result is the same bit for bit, whatever the other images.

    >>> [(index.tolist(), count) for index, count in full_batches(5, 3)]
    [([0, 1, 2], 3), ([3, 4, 4], 2)]
    """
    for start in range(0, n, size):
        yield torch.arange(start, start + size).clamp(max=n - 1), min(size, n - start)
