"""What a feature image excites: a score per image from activations, larger = more excited."""

from vizrobust.features.objectives.images import (
    AbsoluteDeviation,
    Alignment,
    Caricature,
    DeepDream,
    Diversity,
    Inversion,
    SquaredDeviation,
    Style,
    TotalVariation,
)
from vizrobust.features.objectives.objective import (
    Objective,
    Sum,
    group_size_of,
    main_term,
    needs_unit,
    negated,
    reference_key,
    references_of,
    terms,
)
from vizrobust.features.objectives.units import Channel, Direction, Logit, Neuron
from vizrobust.plugins import Catalogue
from vizrobust.spec import named, parse

OBJECTIVES = Catalogue(named(
    Logit, Channel, Neuron, Direction, DeepDream, Inversion, Caricature, Style, Diversity, Alignment,
    TotalVariation, AbsoluteDeviation, SquaredDeviation,
), "objectives")  # fmt: skip


def parse_objective(text: str, *, typed: bool = False) -> Objective:
    """An objective from its text; ``ValueError`` for anything else.

    Its parts may be an installed package's, or ``my.py:Mine(...)`` where a person `typed` the text.

    >>> parse_objective("channel(layer='conv2') - 0.01 * totalvariation")
    Channel(layer="conv2") - 0.01 * TotalVariation()
    """
    found = parse(text, OBJECTIVES, "objective", typed=typed)
    if not isinstance(found, Objective):
        raise ValueError(f'{text!r} is {found!r}, not an objective; write it like Channel(layer="conv2")')
    return found


__all__ = [
    "OBJECTIVES",
    "AbsoluteDeviation",
    "Alignment",
    "Caricature",
    "Channel",
    "DeepDream",
    "Direction",
    "Diversity",
    "Inversion",
    "Logit",
    "Neuron",
    "Objective",
    "SquaredDeviation",
    "Style",
    "Sum",
    "TotalVariation",
    "group_size_of",
    "main_term",
    "needs_unit",
    "negated",
    "parse_objective",
    "reference_key",
    "references_of",
    "terms",
]
