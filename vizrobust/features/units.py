"""Which units to render: from a layer's name and a range of numbers to an objective and units."""

from __future__ import annotations

import torch

from vizrobust.compute import Compute
from vizrobust.features.objectives import Channel, Direction, Logit, Neuron, Objective, is_about_units, subject
from vizrobust.features.scoring import Scorer
from vizrobust.models import LOGITS, Checkpoint, Layer, borrowed, layer

FEW_UNITS = 20
FIRST_UNITS = 16


def objective_for(checkpoint: Checkpoint, name: str, neuron: tuple[int, int] | None = None) -> tuple[Objective, Layer]:
    """The objective that renders the units of a layer (class logits, channels, or neurons at (row, column)), and the layer."""
    chosen = layer(checkpoint.net(), checkpoint.about.input_shape, name)
    if not chosen.visualizable:
        shape = " x ".join(map(str, chosen.shape))
        raise ValueError(f"layer {name!r} (output {shape}) cannot be rendered: {chosen.reason}; choose another layer")
    if neuron is not None:
        if len(chosen.shape) != 3:
            raise ValueError(f"layer {name!r} has no positions, only {chosen.units} units; leave out --neuron")
        y, x = neuron
        if not (0 <= y < chosen.shape[1] and 0 <= x < chosen.shape[2]):
            raise ValueError(f"position {y},{x} is outside layer {name!r}, whose maps are {chosen.shape[1]} x {chosen.shape[2]}")
        return Neuron(layer=name, y=y, x=x), chosen
    return (Logit() if name == LOGITS else Channel(layer=name)), chosen


def accepts(checkpoint: Checkpoint, objective: Objective, shape: tuple[int, int, int]) -> None:
    """Try images of another size than the network's own; ``ValueError`` where it cannot take them as far as needed."""
    net = checkpoint.net()
    try:
        scorer = Scorer.of(net, objective, shape, Compute("cpu"))
        with borrowed(net), torch.no_grad():
            scorer.reading(net, torch.full((1, *shape), 0.5))
    except (RuntimeError, AssertionError) as error:  # torchvision's transformers assert their size
        size = " x ".join(map(str, shape[1:]))
        raise ValueError(
            f"{checkpoint.name} cannot take images of {size} as far as {subject(objective).layers[-1]!r}; leave out --size"
        ) from error


def units_of(checkpoint: Checkpoint, objective: Objective, text: str | None) -> tuple[tuple[int, ...], int]:
    """The units that `text` names (see `units_from`) for an objective, and how many there are to choose from."""
    about = subject(objective)
    if not is_about_units(objective):
        if text is not None:
            raise ValueError(f"{objective!r} asks for no unit besides its own; leave out --units")
        return (getattr(about, "unit", 0),), 1
    if isinstance(about, Direction):
        count, what = about.rows, about.vector
    else:
        name = about.layers[0]
        count, what = layer(checkpoint.net(), checkpoint.about.input_shape, name).units, f"layer {name} of {checkpoint.name}"
    return units_from(text, count, what), count


def units_from(text: str | None, count: int, what: str) -> tuple[int, ...]:
    """Unit numbers from ``all``, ``0:16``, ``3,7,11`` or a mix of the last two; None is all of at most 20, else the first 16.

    >>> units_from("0:3,7", 10, "layer conv1")
    (0, 1, 2, 7)
    """
    if text is None:
        return tuple(range(count if count <= FEW_UNITS else FIRST_UNITS))
    if text.strip().lower() == "all":
        return tuple(range(count))
    units: list[int] = []
    for part in text.split(","):
        first, colon, last = (piece.strip() for piece in part.partition(":"))
        try:
            units += range(int(first or 0), int(last or count)) if colon else [int(first)]
        except ValueError:
            raise ValueError(f"--units {text!r} is not all, a range such as 0:16, or a list such as 3,7,11") from None
    if not units:
        raise ValueError(f"--units {text!r} names no unit; {what} has units 0 to {count - 1}")
    for unit in units:
        if not 0 <= unit < count:
            raise ValueError(f"no unit {unit} in {what}, which has {count} (0 to {count - 1})")
    return tuple(dict.fromkeys(units))
