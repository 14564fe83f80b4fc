"""When a judge may not judge: it knows its classes too little, or finds an untrained network clearer than nature."""

from __future__ import annotations

from collections.abc import Mapping

from vizrobust.clarity.catalogue import METRICS

# A judge must identify natural exemplars at least this many times as often as chance
# (docs/measuring-clarity.md, "Judges and their eligibility").
TIMES_CHANCE = 2


def disqualified(
    natural_identification: float, units: int, natural: Mapping[str, float | None], random: Mapping[str, float | None]
) -> str | None:
    """Why a judge is disqualified, as a sentence, or None.

    `natural_identification` is the mean top-1 share of `identification` with natural exemplars in place of pictures,
    among `units` units (chance 1/units); below twice chance, or undefined, the judge cannot tell them apart. `natural`
    and `random` are, by name of metric, this judge's means for the natural reference and for pictures of the randomly
    initialised network under one recipe: the judge is out where a metric finds the random network clearer, by that
    metric's direction. Only primary metrics have a say (a random network's spectrum may well be the more natural one),
    where both sides have a value; equal means are no reason. Ask once for each recipe. Raises ``ValueError`` for
    fewer than two units.

    >>> disqualified(0.87, 10, {"transfer": 4.0}, {"transfer": -1.0}) is None
    True
    >>> disqualified(0.15, 10, {}, {})
    'it identifies 15.0 % of natural exemplars among 10 units, less than twice chance (20.0 %)'
    >>> disqualified(0.9, 10, {"transfer": 1.0}, {"transfer": 2.5})
    'it ranks the random network above natural images by transfer to a judge (log-odds): 2.5 against 1'
    """
    if units < 2:
        raise ValueError(f"identification among {units} units has no chance level; it needs at least two")
    needed = TIMES_CHANCE / units
    if not natural_identification >= needed:
        share = f"{100 * natural_identification:.1f} % of natural exemplars among {units} units"
        return f"it identifies {share}, less than twice chance ({100 * needed:.1f} %)"
    for name, of_natural in natural.items():
        of_random = random.get(name)
        if of_natural is None or of_random is None:
            continue
        metric = METRICS[name]
        if metric.role == "primary" and metric.direction * of_random > metric.direction * of_natural:
            title = metric.title[0].lower() + metric.title[1:]
            return f"it ranks the random network above natural images by {title}: {of_random:.3g} against {of_natural:.3g}"
    return None
