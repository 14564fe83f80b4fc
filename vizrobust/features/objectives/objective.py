"""What an objective is, and how objectives add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from vizrobust.spec import number_text

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
