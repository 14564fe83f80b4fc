"""What a feature image excites: a score per image from activations, larger = more excited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vizrobust.models import LOGITS
from vizrobust.spec import named, parse, spec


class Objective(Protocol):
    """``objective(activations, image, unit)``: layer outputs by name, (N, C, H, W), (N,) int64 -> scores (N,).

    `layers` are the layers it reads; the network runs once, to the deepest of them.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...
    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor: ...


@spec
@dataclass(frozen=True)
class Logit:
    """The class unit of the network's output, before softmax.

    >>> Logit()({"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, torch.zeros(2, 1, 4, 3), torch.tensor([1, 0]))
    tensor([2., 3.])
    """

    @property
    def layers(self) -> tuple[str, ...]:
        return (LOGITS,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return _of_unit(activations[LOGITS], unit)


@spec
@dataclass(frozen=True)
class Channel:
    """The mean over all positions of one channel of a layer (of the unit itself, where a layer has no positions)."""

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return _of_unit(activations[self.layer], unit).reshape(len(unit), -1).mean(1)


@spec
@dataclass(frozen=True)
class Neuron:
    """One channel of a layer at row `y`, column `x`; None is the middle of the map."""

    layer: str
    y: int | None = None
    x: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        maps = _of_unit(activations[self.layer], unit)
        if maps.dim() != 3:
            raise ValueError(f"layer {self.layer!r} has no positions, only units; leave out --neuron")
        height, width = maps.shape[1:]
        y = height // 2 if self.y is None else self.y
        x = width // 2 if self.x is None else self.x
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"position {y},{x} is outside layer {self.layer!r}, whose maps are {height} x {width}")
        return maps[:, y, x]


@spec
@dataclass(frozen=True)
class Direction:
    """Along a vector of a layer's channels, mean over positions: dot product times cosine^`power` (Carter et al. 2019).

    `vector` is a ``.npy`` file of shape (channels,), or (units, channels) where the unit number picks the row.
    """

    layer: str
    vector: str
    power: float = 0.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"Direction: power must not be negative, got {self.power:g}")

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        maps = activations[self.layer]
        maps = maps.reshape(*maps.shape[:2], -1)
        rows = _vectors(self.vector).to(maps)
        if rows.shape[1] != maps.shape[1]:
            raise ValueError(
                f"{self.vector} holds vectors of {rows.shape[1]} numbers, layer {self.layer!r} has {maps.shape[1]} units"
            )
        wanted = rows.expand(len(unit), -1) if len(rows) == 1 else rows[unit]
        dot = (maps * wanted[:, :, None]).sum(1)
        if self.power == 0:
            return dot.mean(1)
        cosine = dot / (maps.norm(dim=1) * wanted.norm(dim=1)[:, None]).clamp_min(1e-8)
        # A floor keeps the sign of the product and a gradient where the cosine is still negative.
        return (dot * cosine.clamp_min(0.1) ** self.power).mean(1)


def _of_unit(activation: Tensor, unit: Tensor) -> Tensor:
    """(N, units, ...) -> (N, ...): each image's own unit."""
    return activation[torch.arange(len(unit), device=activation.device), unit.to(activation.device)]


@lru_cache(maxsize=8)
def _vectors(path: str) -> Tensor:
    """(units, channels) from a .npy file; a single vector becomes one row."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path!r} (the vector of Direction)") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path!r} is not a .npy array of numbers ({error})") from error
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiu":
        raise ValueError(f"{path!r} is not a .npy array of numbers")
    if loaded.ndim not in (1, 2) or not np.isfinite(loaded).all():
        raise ValueError(f"{path!r} must hold finite numbers, shaped (channels,) or (units, channels); it is {loaded.shape}")
    return torch.from_numpy(np.atleast_2d(loaded).astype(np.float32))


OBJECTIVES = named(Logit, Channel, Neuron, Direction)


def parse_objective(text: str) -> Objective:
    """An objective from its text.

    >>> parse_objective("channel(layer='conv2')")
    Channel(layer="conv2")
    """
    return parse(text, OBJECTIVES, "objective")
