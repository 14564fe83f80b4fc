"""What a study would cost and what effect it could see, before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from vizrobust.attribution import passes as attribution_passes
from vizrobust.compute import Compute
from vizrobust.data import DataSet
from vizrobust.intervals import CONFIDENCE, POWER
from vizrobust.models import LOGITS, architecture
from vizrobust.runs import Row
from vizrobust.study.contrasts import FEWEST_SEEDS
from vizrobust.study.protocol import Plan, training_runs
from vizrobust.study.report import StudyReport
from vizrobust.study.verdicts import PRIMARY, contrast_results

# A pilot's spread is itself uncertain, so its upper limit at this confidence is planned with (Browne 1995).
SPREAD_CONFIDENCE = 0.8
PRIMARY_METRICS = 2


@dataclass(frozen=True)
class Cost:
    """One stage of a study: gradient passes of one image through the network, and bytes on disk."""

    stage: str
    passes: float
    size: int = 0


def costs(plan: Plan, data: DataSet, provided: int = 0, judges: int = 0, eps: float | None = None) -> list[Cost]:
    """The stages of a study of `provided` checkpoints, or of those that it trains, with `judges` judges.

    >>> from vizrobust.data import load
    >>> from vizrobust.study import TRAININGS, plan_for
    >>> [cost.stage for cost in costs(plan_for(TRAININGS["mnist5k"]), load("mnist5k"))]
    ['training', 'attacks', 'pictures', 'judges']
    """
    compared, training = provided, 0.0
    if not provided:
        for run in training_runs(plan, eps or plan.eps or data.usual_eps):
            compared += 1
            training += run.training.epochs * (run.training.attack_steps + 2) * len(data.train)
    attacks = compared * (1 + 10 + plan.pgd_steps + 2) * min(plan.images, len(data.test))
    each = len(plan.recipes) * len(data.classes) * plan.image_seeds
    pictures = each * (compared + 1)
    if plan.layer:
        drawn_units = 2 * len(plan.recipes) * plan.hidden * plan.hidden_seeds
        pictures += drawn_units * (compared + 1 + (compared if plan.matched else 0))
    # A judge sees each picture about as often as there are frames and controls, at a third of a gradient pass.
    seen = each * (compared + 1) * judges * (plan.frames + 6) / 3
    explained = min(plan.explain_images, len(data.test)) * sum(map(attribution_passes, plan.explain_methods))
    asked = {"attribution": explained, "effective features": min(plan.feature_images, len(data.test)) / 3}
    pixels = math.prod(data.shape)
    weights = 0
    if not provided:
        net = architecture(plan.training.arch, data.shape, len(data.classes))()
        weights = sum(value.numel() for value in net.state_dict().values())
    # Weights in full and in half precision, and the optimizer's state; a PNG of noise takes about a byte for each value.
    return [
        Cost("training", training, 0 if provided else 14 * weights * compared),
        Cost("attacks", float(attacks)),
        Cost("pictures", float(pictures * plan.recipes[0].steps), pictures * pixels),
        Cost("judges", seen),
        *(Cost(stage, (compared + 1) * number) for stage, number in asked.items() if number),
    ]


def seconds_per_pass(plan: Plan, data: DataSet, compute: Compute) -> float:
    """Seconds of one core for one image's gradient pass through the plan's network here, the least of three tries."""
    net = compute.place(architecture(plan.training.arch, data.shape, len(data.classes))())
    x = compute.images(torch.rand(plan.training.batch_size, *data.shape)).requires_grad_()
    y = torch.zeros(len(x), dtype=torch.long, device=compute.device)
    taken, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # waiting threads would count as work
    try:
        for _ in range(4):  # the first one warms up
            start = time.process_time()
            torch.autograd.grad(F.cross_entropy(net(x), y), [x, *net.parameters()])
            taken.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(taken[1:]) / len(x)


@dataclass(frozen=True)
class PlannedContrast:
    """What `seeds` training seeds can say of a contrast whose values over seeds deviate by `spread`.

    `half_width` is the expected half width of the 95 % interval, `detectable` the effect that is supported with 80 % power.
    Both are in units of the metric, or of the spread where no pilot told it (`metric` and `recipe` empty then).
    """

    contrast: str
    metric: str
    recipe: str
    seeds: int
    spread: float
    half_width: float | None
    detectable: float | None

    def row(self) -> Row:
        """The row of prereg.json and of the table."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@lru_cache(maxsize=256)
def power(effect: float, seeds: int, tests: int = 1) -> float:
    """The probability that a t test over `seeds` values of deviation 1 around `effect` finds it, at .05 over `tests`.

    Bonferroni, the first step of Holm's correction; two-sided, of the right sign (noncentral t: Cohen 1988).

    >>> round(power(1.5, 5), 2)
    0.71
    """
    if seeds < 2:
        return 0.0
    critical = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / tests, seeds - 1)
    return float(stats.nct.sf(critical, seeds - 1, effect * math.sqrt(seeds)))


def detectable(seeds: int, tests: int = PRIMARY_METRICS, wanted: float = POWER) -> float | None:
    """The smallest effect, in deviations between seeds, that `power` finds with the `wanted` probability; None below 3 seeds.

    >>> detectable(2) is None, round(detectable(5), 2)
    (True, 2.05)
    """
    from scipy.optimize import brentq

    if seeds < FEWEST_SEEDS:
        return None
    return float(brentq(lambda effect: power(effect, seeds, tests) - wanted, 0.01, 60))


def spread_of(per_seed: Sequence[float]) -> float | None:
    """The deviation over training seeds to plan with: the upper 80 % limit of a pilot's; None below two seeds.

    >>> round(spread_of([1.0, 1.2, 1.1]), 3)
    0.212
    """
    n = len(per_seed)
    if n < 2:
        return None
    return float(np.std(per_seed, ddof=1) * math.sqrt((n - 1) / stats.chi2.ppf(1 - SPREAD_CONFIDENCE, n - 1)))


def planned(plan: Plan, pilot: StudyReport | None = None) -> list[PlannedContrast]:
    """What the plan's training seeds can say of H1 and H2, for each primary metric and recipe of a `pilot`.

    Without a pilot, in deviations between training seeds. Raises ``ValueError`` for a pilot of fewer than two seeds.
    """
    smallest, half = detectable(plan.seeds), None
    if plan.seeds >= FEWEST_SEEDS:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, plan.seeds - 1)) / math.sqrt(plan.seeds)
    if pilot is None:
        return [PlannedContrast(name, "", "", plan.seeds, 1.0, half, smallest) for name in ("H1", "H2")]
    found = []
    for result in contrast_results(pilot.series, describe=False):
        series = result.series
        mine = series.role == PRIMARY and series.judge is None and series.control is None and series.layer == LOGITS
        if mine and result.contrast.name in ("H1", "H2"):
            spread = spread_of(result.contrast.per_seed)
            if spread is not None:
                widths = (None if one is None else one * spread for one in (half, smallest))
                found.append(PlannedContrast(result.contrast.name, series.metric, series.recipe, plan.seeds, spread, *widths))
    if not found:
        raise ValueError("the pilot has no contrast over two or more training seeds; give the report of a study that has")
    return found


def achieved(report: StudyReport, wanted: Sequence[Row]) -> list[Row]:
    """The planned rows of a preregistration, each with the half width that the report's interval came out at."""
    found: dict[tuple[Any, ...], float] = {}
    for result in report.results:
        series, one = result.series, result.contrast
        if series.judge is None and series.control is None and series.layer == LOGITS and one.ci_low is not None:
            assert one.ci_high is not None
            found[one.name, series.metric, series.recipe] = (one.ci_high - one.ci_low) / 2
    return [{**row, "achieved": found.get((row["contrast"], row["metric"], row["recipe"]))} for row in wanted]
