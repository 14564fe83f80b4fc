"""What a feature image excites: a score per image from activations, larger = more excited."""

from vizrobust.features.objectives.images import (
    AbsoluteDeviation,
    Alignment,
    Caricature,
    Diversity,
    Energy,
    Inversion,
    SquaredDeviation,
    Style,
    TotalVariation,
)
from vizrobust.features.objectives.objective import (
    Objective,
    Sum,
    each,
    faces_of,
    is_about_units,
    of,
    opposite,
    references_of,
    subject,
)
from vizrobust.features.objectives.units import Channel, Direction, Logit, Neuron
from vizrobust.spec import named, parse

OBJECTIVES = named(
    Logit, Channel, Neuron, Direction, Energy, Inversion, Caricature, Style, Diversity, Alignment,
    TotalVariation, AbsoluteDeviation, SquaredDeviation,
)  # fmt: skip


def parse_objective(text: str) -> Objective:
    """An objective from its text.

    >>> parse_objective("channel(layer='conv2') - 0.01 * totalvariation")
    Channel(layer="conv2") - 0.01 * TotalVariation()
    """
    found = parse(text, OBJECTIVES, "objective")
    if not isinstance(found, Objective):
        raise ValueError(f'{text!r} is {found!r}, not an objective; write it like Channel(layer="conv2")')
    return found


__all__ = [
    "OBJECTIVES",
    "AbsoluteDeviation",
    "Alignment",
    "Caricature",
    "Channel",
    "Direction",
    "Diversity",
    "Energy",
    "Inversion",
    "Logit",
    "Neuron",
    "Objective",
    "SquaredDeviation",
    "Style",
    "Sum",
    "TotalVariation",
    "each",
    "faces_of",
    "is_about_units",
    "of",
    "opposite",
    "parse_objective",
    "references_of",
    "subject",
]
