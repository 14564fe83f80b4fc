"""One random stream per image, so that an image never depends on the rest of its batch, its shard or a resume."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014): a counter-based generator, the same bits on every device.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


class Streams:
    """Random numbers for N items, each from a stream of its own, named by (seed, item, purpose).

    The n-th draw of a stream is a pure function of its name and n, so streams can be copied, cut and taken up
    again at no cost, and the global generators of torch and numpy are never touched.

    >>> two = Streams(0, ["a", "b"], "noise").uniform(3)
    >>> bool((Streams(0, ["b"], "noise").uniform(3)[0] == two[1]).all())
    True
    """

    def __init__(self, seed: int, items: Iterable[object], purpose: str = "") -> None:
        names = [f"{seed}\x1f{item}\x1f{purpose}".encode() for item in items]
        digests = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
        self.keys = torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
        self.drawn = 0

    @classmethod
    def of(cls, keys: Tensor, place: Tensor) -> Streams:
        """Streams with these `keys` (N,) int64, each at the beginning of the stretch that `place` (N,) names."""
        new = object.__new__(cls)
        new.keys, new.drawn = _mix(keys ^ _mix((place + 1) * _GOLDEN)), 0
        return new

    def __len__(self) -> int:
        return len(self.keys)

    def _with(self, keys: Tensor, drawn: int) -> Streams:
        new = object.__new__(Streams)
        new.keys, new.drawn = keys, drawn
        return new

    def take(self, index: Tensor | slice) -> Streams:
        """The streams at `index`, at the point where they are now."""
        return self._with(self.keys[index], self.drawn)

    def child(self, purpose: str) -> Streams:
        """New streams, independent of these, that start at their beginning."""
        salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little", signed=True)
        return self._with(_mix(self.keys ^ salt), 0)

    def _bits(self, count: int) -> Tensor:
        """(N, count) int64, all 64 bits random."""
        counters = torch.arange(self.drawn + 1, self.drawn + count + 1, dtype=torch.int64)
        self.drawn += count
        return _mix(self.keys[:, None] + counters * _GOLDEN)

    def uniform(self, *shape: int) -> Tensor:
        """(N, *shape) float32, uniform in [0, 1)."""
        count = math.prod(shape)
        bits = self._bits((count + 1) // 2)
        halves = torch.stack((bits & 0xFFFFFF, (bits >> 40) & 0xFFFFFF), dim=-1).flatten(1)[:, :count]
        return (halves.to(torch.float32) * 2.0**-24).reshape(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape) float32, standard normal (Box and Muller 1958, in float64 so that every lane rounds alike)."""
        count = math.prod(shape)
        bits = self._bits(count)
        radius = ((bits & 0xFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-32
        angle = ((bits >> 32) & 0xFFFFFFFF).to(torch.float64) * 2.0**-32
        values = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
        return values.to(torch.float32).reshape(len(self), *shape)

    def permutation(self, n: int) -> Tensor:
        """(N, n) int64: a random order of 0 … n-1 for each stream."""
        return self._bits(n).argsort(dim=1, stable=True)

    def integers(self, high: Tensor | int, *shape: int) -> Tensor:
        """(N, *shape) int64, uniform in 0 … high-1 (`high` may be per stream, shaped to broadcast)."""
        return (self.uniform(*shape).to(torch.float64) * high).floor().to(torch.int64)


class _NumpyGlobal:
    """Numpy's global generator, which a network's own code may draw from."""

    def get_state(self) -> Any:
        return np.random.get_state()

    def set_state(self, state: Any) -> None:
        np.random.set_state(state)

    def manual_seed(self, seed: int) -> None:
        np.random.seed(seed % 2**32)


class _PythonGlobal:
    """The generator of the module ``random``."""

    def get_state(self) -> Any:
        return random.getstate()

    def set_state(self, state: Any) -> None:
        random.setstate(state)

    def manual_seed(self, seed: int) -> None:
        random.seed(seed)


def generator_states(device: torch.device) -> list[Any]:
    """The states of the global generators that a network on this device may draw from: torch's, numpy's and Python's."""
    return [generator.get_state() for generator in _global_generators(device)]


def set_generator_states(states: list[Any], device: torch.device) -> None:
    """Put the global generators back into states that `generator_states` returned."""
    for generator, state in zip(_global_generators(device), states, strict=True):
        generator.set_state(state)


def same_states(one: Any, other: Any) -> bool:
    """Whether two states that `generator_states` returned are the same.

    >>> before = generator_states(torch.device("cpu"))
    >>> same_states(before, generator_states(torch.device("cpu")))
    True
    """
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, list | tuple) and len(one) < SHORT:
        return all(same_states(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


SHORT = 10  # longer tuples hold numbers alone


def _global_generators(device: torch.device) -> list[Any]:
    generators: list[Any] = [torch.default_generator, _NumpyGlobal(), _PythonGlobal()]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index])
    return generators


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever draws from global generators inside, they are as they were afterwards."""
    states = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(states, device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """For code that draws from global generators (dropout, random sizes): seeded inside, afterwards as they were."""
    with undisturbed(device):
        for generator in _global_generators(device):
            generator.manual_seed(seed)
        yield


def _mix(z: Tensor) -> Tensor:
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX2
    return z ^ ((z >> 31) & ((1 << 33) - 1))
