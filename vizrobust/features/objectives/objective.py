"""What an objective is, how objectives add up, and those about one unit: a class logit, a channel, a neuron, a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vizrobust.models import LOGITS
from vizrobust.requests import ParameterError
from vizrobust.spec import number_text, spec

T = TypeVar("T")


@runtime_checkable
class Objective(Protocol):
    """``objective(activations, image, unit)``: layer outputs by name, (N, C, H, W), (N,) int64 -> scores (N,).

    `layers` are the layers it reads; the network runs once, to the deepest of them. Activations are (N, units)
    or (N, units, height, width). Three more attributes are for those that need them: `group_size` (that many
    consecutive rows belong together, see `group_size_of`), `references` (images whose activations it compares with,
    under the name that `reference_key` gives) and `unit` (the unit it is about, whatever the row's).
    """

    @property
    def layers(self) -> tuple[str, ...]: ...
    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor: ...


class OneLayer:
    """What objectives with a field `layer` share: that layer is the one they read."""

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)


class LikeImage(OneLayer):
    """What objectives about the layer's activations of an `image` share."""

    image: str

    @property
    def references(self) -> tuple[str, ...]:
        return (self.image,)


class NoLayer:
    """What objectives about the image alone share: they read no layer."""

    @property
    def layers(self) -> tuple[str, ...]:
        return ()


def reference_key(layer: str, reference: str) -> str:
    """The name under which `activations` holds a layer's output (1, ...) for a reference image."""
    return f"{layer} of {reference}"


@dataclass(frozen=True)
class Sum:
    """Objectives with weights, added image by image; what arithmetic on objectives makes.

    >>> from vizrobust.features import Channel, TotalVariation
    >>> Channel("conv2") - 0.01 * TotalVariation()
    Channel(layer="conv2") - 0.01 * TotalVariation()
    """

    parts: tuple[tuple[float, Any], ...]

    def __post_init__(self) -> None:
        group_size_of(self)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for _, part in self.parts for layer in part.layers))

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(reference for _, part in self.parts for reference in references_of(part)))

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        (weight, first), *others = self.parts
        total = weight * first(activations, image, unit)
        for weight, part in others:
            total = total + weight * part(activations, image, unit)
        return total

    def __repr__(self) -> str:
        (weight, first), *others = self.parts
        text = _times(weight, first)
        for weight, part in others:
            text += f" - {_times(-weight, part)}" if weight < 0 else f" + {_times(weight, part)}"
        return text


def algebra(cls: type[T]) -> type[T]:
    """Class decorator: ``a + b``, ``a - b``, ``2 * a``, ``a / 2`` and ``-a`` make a new `Sum`; the operands stay as they are."""

    def add(self: Any, other: Any) -> Any:
        return _sum((*_parts(self), *_parts(other))) if isinstance(other, Objective) else NotImplemented

    def multiply(self: Any, number: Any) -> Any:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return NotImplemented
        return _sum(tuple((float(number) * weight, part) for weight, part in _parts(self)))

    operators: dict[str, Callable[..., Any]] = {
        "__add__": add,
        "__sub__": lambda self, other: add(self, multiply(other, -1)) if isinstance(other, Objective) else NotImplemented,
        "__mul__": multiply,
        "__rmul__": multiply,
        "__truediv__": lambda self, number: multiply(self, 1 / number),
        "__neg__": lambda self: multiply(self, -1),
    }
    for name, operator in operators.items():
        setattr(cls, name, operator)
    return cls


algebra(Sum)


def terms(objective: Objective) -> Iterator[Objective]:
    """The terms of a sum; any other objective is its own only term."""
    for _, part in _parts(objective):
        yield part


def group_size_of(objective: Objective) -> int:
    """How many consecutive images the objective couples; ``ValueError`` where two terms disagree."""
    there = {part: group_size for part in terms(objective) if (group_size := getattr(part, "group_size", 1)) > 1}
    if len(set(there.values())) > 1:
        raise ValueError(f"{' and '.join(map(repr, there))} group images differently; give them the same group_size")
    return next(iter(there.values()), 1)


def references_of(objective: Objective) -> tuple[str, ...]:
    """The images whose activations an objective compares with.

    >>> from vizrobust.features import Inversion
    >>> references_of(2 * Inversion("conv2", "mnist5k#3"))
    ('mnist5k#3',)
    """
    return tuple(getattr(objective, "references", ()))


def main_term(objective: Objective) -> Objective:
    """The term that a picture is named after: the first that is about the rendered unit, else the first that reads a layer.

    Raises ``ValueError`` where no term reads a layer.

    >>> from vizrobust.features import Channel, DeepDream
    >>> main_term(DeepDream("conv1") + Channel("conv2"))
    Channel(layer="conv2")
    """
    parts = [part for part in terms(objective) if part.layers]
    if not parts:
        raise ValueError(
            f"{objective!r} names no layer, so nothing in the network would be excited; add an objective that does, "
            'such as Channel(layer="...")'
        )
    return next((part for part in parts if needs_unit(part)), parts[0])


def negated(objective: Objective) -> Objective:
    """The objective for what a unit dislikes: terms about the network change sign; penalties and terms about groups stay."""

    def turns(part: Objective) -> bool:
        return bool(part.layers) and getattr(part, "group_size", 1) == 1

    return Sum(tuple((-weight if turns(part) else weight, part) for weight, part in _parts(objective)))


def needs_unit(objective: Objective) -> bool:
    """Whether the objective, or a term of it, depends on which unit is rendered.

    >>> from vizrobust.features import Channel, DeepDream
    >>> needs_unit(Channel("conv2")), needs_unit(Channel("conv2", unit=3)), needs_unit(DeepDream("conv2"))
    (True, False, False)
    """
    return any(getattr(part, "unit", 0) is None for part in terms(objective))


def _parts(objective: Any) -> tuple[tuple[float, Any], ...]:
    return objective.parts if isinstance(objective, Sum) else ((1.0, objective),)


def _sum(parts: tuple[tuple[float, Any], ...]) -> Any:
    """One objective taken once is itself, so that equal sums have equal texts."""
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Sum(parts)


def _times(weight: float, part: Any) -> str:
    return repr(part) if weight == 1 else f"-{part!r}" if weight == -1 else f"{number_text(weight)} * {part!r}"


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
