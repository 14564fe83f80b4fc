"""The null simulation: runs that differ in their seed alone, relabelled as a sweep, must not support anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.intervals import wilson
from vizrobust.rng import Streams
from vizrobust.study.contrasts import RunValues
from vizrobust.study.verdicts import PRIMARY, SUPPORTED, MetricSeries, contrast_results

STEPS = (0, 1, 2, 4, 8, 16)
RELABELLINGS = 200
# How often a true null may be called supported (docs/measuring-clarity.md, "Null simulation").
MOST = 0.05


@dataclass(frozen=True)
class NullSimulation:
    """How often `relabellings` of runs of one K support a contrast for at least one primary metric.

    `supported` counts by contrast; `replaced` says whether runs were drawn more than once to fill a sweep.
    """

    relabellings: int
    runs: int
    replaced: bool
    supported: Mapping[str, int]

    def rate(self, contrast: str) -> float:
        return self.supported[contrast] / self.relabellings

    def interval(self, contrast: str) -> tuple[float, float]:
        """The Wilson interval of the rate, 95 %."""
        return wilson(self.supported[contrast], self.relabellings)

    @property
    def passed(self) -> bool:
        """Whether no contrast is supported more than 5 % of the time, within sampling error."""
        return all(self.interval(contrast)[0] <= MOST for contrast in self.supported)


def null_simulation(
    runs: Mapping[str, Sequence[float]],
    steps: Sequence[int] = STEPS,
    seeds: int = 5,
    relabellings: int = RELABELLINGS,
    seed: int = 0,
    accuracy: Sequence[float] | None = None,
    smallest_effect: Mapping[str, float] | None = None,
) -> NullSimulation:
    """Relabel training runs of one K as sweeps over `steps` and `seeds`, and put each sweep through the study's verdict.

    `runs` maps each primary metric (larger = clearer) to its values, one for each run. A run keeps its values of all
    metrics when it gets another label. Its `accuracy` gets a label of its own, because clarity and accuracy of runs of
    one K may well correlate, and the simulation must not. `smallest_effect` maps metrics to smallest differences of
    interest. A sweep takes steps x seeds runs, drawn without replacement where there are enough, else with it. Raises
    ``ValueError`` for fewer than three runs.

    >>> found = null_simulation({"transfer": [0.3, 0.1, 0.5, 0.2, 0.4, 0.7]}, steps=(0, 1, 4), seeds=3, relabellings=20)
    >>> found.runs, found.replaced, found.passed
    (6, True, True)
    """
    counts = {len(values) for values in [*runs.values(), *([] if accuracy is None else [accuracy])]}
    if len(counts) != 1 or min(counts) < 3:
        raise ValueError(f"a null simulation needs the same three or more runs for each metric, got {sorted(counts)}")
    (count,) = counts
    places = [(k, run) for k in steps for run in range(seeds)]
    replaced = count < len(places)
    streams = Streams(seed, range(relabellings), "placebo")
    drawn = _drawn(streams, count, len(places))
    contrasts = ("H1", "H2") if accuracy is None else ("H1", "H2", "H3")
    supported = dict.fromkeys(contrasts, 0)
    for labels, other in zip(drawn, _drawn(streams.child("accuracy"), count, len(places)), strict=True):
        sweep = [
            _series(name, _relabelled(values, labels, places), (smallest_effect or {}).get(name)) for name, values in runs.items()
        ]
        found = contrast_results(sweep, None if accuracy is None else _relabelled(accuracy, other, places), describe=False)
        for contrast in {trend.contrast.name for trend in found if trend.verdict == SUPPORTED}:
            supported[contrast] += 1
    return NullSimulation(relabellings, count, replaced, supported)


def _drawn(streams: Streams, count: int, places: int) -> Tensor:
    """(relabellings, places): which of `count` runs takes each place."""
    return streams.integers(count, places) if count < places else streams.permutation(count)[:, :places]


def _relabelled(values: Sequence[float], labels: Tensor, places: Sequence[tuple[int, int]]) -> RunValues:
    taken = torch.tensor(values, dtype=torch.float64)[labels].tolist()
    return dict(zip(places, taken, strict=True))


def _series(metric: str, values: RunValues, smallest_effect: float | None) -> MetricSeries:
    # The smallest effect is a tenth of the distance between the references.
    natural, random = (None, None) if smallest_effect is None else (10 * smallest_effect, 0.0)
    return MetricSeries(metric, PRIMARY, 1, "placebo", None, "logits", values, natural, random)
