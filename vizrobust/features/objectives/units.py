"""Objectives about one unit: a class logit, a channel, a neuron, a direction; larger = more excited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.features.objectives.objective import OneLayer, algebra
from vizrobust.models import LOGITS
from vizrobust.requests import ParameterError
from vizrobust.spec import spec


@algebra
@spec
@dataclass(frozen=True)
class Logit:
    """The class unit of the network's output, before softmax.

    Where `unit` is given, the objective is about that unit, whichever unit is rendered; so in `Channel` and `Neuron`.

    >>> Logit()({"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, torch.zeros(2, 1, 4, 3), torch.tensor([1, 0]))
    tensor([2., 3.])
    """

    unit: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return (LOGITS,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return of_unit(activations[LOGITS], _own(self.unit, unit), LOGITS)


@algebra
@spec
@dataclass(frozen=True)
class Channel(OneLayer):
    """The mean over all positions of one channel of a layer, or the unit itself where there are none (Olah et al. 2017).

    Activations (N, units, height, width) or (N, units) -> (N,).

    >>> Channel("a")({"a": torch.arange(8.0).reshape(1, 2, 2, 2)}, torch.zeros(1, 1, 4, 3), torch.tensor([1]))
    tensor([5.5000])
    """

    layer: str
    unit: int | None = None

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return of_unit(activations[self.layer], _own(self.unit, unit), self.layer).reshape(len(unit), -1).mean(1)


@algebra
@spec
@dataclass(frozen=True)
class Neuron(OneLayer):
    """One channel of a layer at row `y` and column `x`; None is the middle of the map (Olah et al. 2017).

    Activations (N, units, height, width) -> (N,). Raises ``ValueError`` for a layer without positions and for a position
    outside its map.

    >>> Neuron("a", y=0, x=1)({"a": torch.arange(8.0).reshape(1, 2, 2, 2)}, torch.zeros(1, 1, 4, 3), torch.tensor([1]))
    tensor([5.])
    """

    layer: str
    y: int | None = None
    x: int | None = None
    unit: int | None = None

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        maps = of_unit(activations[self.layer], _own(self.unit, unit), self.layer)
        if maps.dim() != 3:
            raise ParameterError("layer %r has no positions, only units; leave out {neuron}", self.layer)
        height, width = maps.shape[1:]
        y = height // 2 if self.y is None else self.y
        x = width // 2 if self.x is None else self.x
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"position {y},{x} is outside layer {self.layer!r}, whose maps are {height} x {width}")
        return maps[:, y, x]


@algebra
@spec
@dataclass(frozen=True)
class Direction(OneLayer):
    """Along a vector of a layer's channels, mean over positions: dot product times cosine^`power` (Carter et al. 2019).

    `vector` holds (channels,) numbers, or (units, channels) where the unit number picks the row: a ``.npy`` file, an
    array or tensor, or nested tuples, which is what arrays become. Raises ``ValueError`` for anything else.

    >>> import numpy as np
    >>> Direction("conv2", np.array([0.0, 1.0, 2.0]))
    Direction(layer="conv2", vector=(0.0, 1.0, 2.0))
    >>> Direction("a", (0.0, 2.0))({"a": torch.tensor([[3.0, 4.0]])}, torch.zeros(1, 1, 4, 3), torch.tensor([0]))
    tensor([8.])
    """

    layer: str
    vector: str | tuple[Any, ...] | np.ndarray[Any, Any] | Tensor
    power: float = 0.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"Direction: power must not be negative, got {self.power:g}")
        if isinstance(self.vector, str):
            return
        numbers = self.vector.detach().cpu().numpy() if isinstance(self.vector, Tensor) else self.vector
        # The numbers are kept once more as a tensor: to hash the tuple at every step would cost more than the product.
        rows = _rows(numbers, "the vector of Direction")
        object.__setattr__(self, "vector", _as_tuple(numbers))
        object.__setattr__(self, "_held", rows)

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return len(self._vectors)

    @property
    def unit(self) -> int | None:
        return 0 if self.rows == 1 else None

    @property
    def _vectors(self) -> Tensor:
        return _read_vectors(self.vector) if isinstance(self.vector, str) else self._held  # type: ignore[attr-defined]

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        maps = activations[self.layer]
        maps = maps.reshape(*maps.shape[:2], -1)
        rows = self._vectors.to(maps)
        if rows.shape[1] != maps.shape[1]:
            what = self.vector if isinstance(self.vector, str) else "the vector of Direction"
            raise ValueError(f"{what} holds vectors of {rows.shape[1]} numbers, layer {self.layer!r} has {maps.shape[1]} units")
        wanted = rows.expand(len(unit), -1) if len(rows) == 1 else rows[unit]
        dot = (maps * wanted[:, :, None]).sum(1)
        if self.power == 0:
            return dot.mean(1)
        cosine = dot / (maps.norm(dim=1) * wanted.norm(dim=1)[:, None]).clamp_min(1e-8)
        # A floor keeps the sign of the product and a gradient where the cosine is still negative.
        return (dot * cosine.clamp_min(0.1) ** self.power).mean(1)


def of_unit(activation: Tensor, unit: Tensor, layer: str) -> Tensor:
    """(N, units, ...) -> (N, ...): each image's own unit; ``ValueError`` where the layer has no such unit."""
    count = activation.shape[1]
    if unit.device.type == "cpu" and len(unit) and not 0 <= int(unit.min()) <= int(unit.max()) < count:
        wrong = int(unit.max()) if int(unit.max()) >= count else int(unit.min())
        raise ValueError(f"no unit {wrong} in layer {layer!r}, which has {count} (0 to {count - 1})")
    return activation[torch.arange(len(unit), device=activation.device), unit.to(activation.device)]


def _own(fixed: int | None, unit: Tensor) -> Tensor:
    return unit if fixed is None else torch.full_like(unit, fixed)


@lru_cache(maxsize=8)
def _read_vectors(path: str) -> Tensor:
    """(units, channels) from a .npy file; a single vector becomes one row."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path!r} (the vector of Direction)") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path!r} is not a .npy array of numbers ({error})") from error
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu":
        raise ValueError(f"{path!r} is not a .npy array of numbers")
    return _rows(loaded, repr(path))


def _rows(numbers: Any, what: str) -> Tensor:
    """(channels,) or (units, channels) numbers -> (units, channels) float32."""
    try:
        array = np.asarray(numbers, np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{what} must hold finite numbers, shaped (channels,) or (units, channels)") from None
    if array.ndim not in (1, 2) or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{what} must hold finite numbers, shaped (channels,) or (units, channels); it is {array.shape}")
    return torch.from_numpy(np.atleast_2d(array).astype(np.float32))


def _as_tuple(numbers: Any) -> tuple[Any, ...]:
    """Nested tuples of floats."""
    listed = np.asarray(numbers).tolist()
    return tuple(tuple(map(float, row)) if isinstance(row, list) else float(row) for row in listed)
