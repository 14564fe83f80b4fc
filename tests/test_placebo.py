"""The null simulation: where nothing varies, the study's own procedure must support next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.placebo import null_simulation
from vizrobust.intervals import wilson
from vizrobust.study.contrasts import from_table
from vizrobust.study.verdicts import MetricSeries, contrast_results

DOSES = (0, 1, 2, 4, 8, 16)
METRICS, JUDGES = ("transfer", "forced_choice"), ("standard", "robust", "heavy")


def runs(count: int, seed: int) -> dict[str, list[float]]:
    """Values of `count` runs that differ in nothing but the seed: both metrics see the same run."""
    generator = np.random.default_rng(seed)
    own = generator.normal(0, 0.5, count)
    return {name: (own + generator.normal(0, 0.3, count)).tolist() for name in METRICS}


def within(found: int, of: int, most: float = 0.05) -> bool:
    return wilson(found, of)[0] <= most


def test_runs_of_one_k_support_nothing() -> None:
    """Not even H3, although in these runs accuracy goes with the metrics."""
    some = runs(40, 1)
    found = null_simulation(some, DOSES, seeds=5, relabellings=200, accuracy=some["transfer"])
    assert set(found.supported) == {"H1", "H2", "H3"}
    assert not found.replaced
    assert found.passed
    assert all(found.rate(contrast) <= 0.08 for contrast in found.supported)


def test_a_few_runs_are_drawn_again() -> None:
    found = null_simulation(runs(6, 3), DOSES, seeds=3, relabellings=150)
    assert (found.runs, found.replaced, found.relabellings) == (6, True, 150)
    assert found.passed


def test_the_same_arguments_give_the_same_counts() -> None:
    some = runs(20, 4)
    assert null_simulation(some, (0, 1, 4), 4, 50) == null_simulation(some, (0, 1, 4), 4, 50)


def test_a_null_simulation_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interval over far too narrow a spread, as one over units would be, the simulation must not pass."""
    from vizrobust.study import contrasts

    monkeypatch.setattr(contrasts, "stdtrit", lambda *_: 0.5)
    monkeypatch.setattr(contrasts, "stdtr", lambda *_: 0.0)
    found = null_simulation(runs(40, 1), DOSES, seeds=5, relabellings=100)
    assert not found.passed
    assert found.rate("H2") > 0.2


@pytest.mark.parametrize("values", [{"a": [1.0, 2.0]}, {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0, 4.0]}])
def test_too_few_or_uneven_runs_are_refused(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="three or more runs"):
        null_simulation(values)


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_the_whole_procedure_is_wrong_at_most_one_time_in_twenty(seeds: int) -> None:
    """Fresh studies without any effect, seeds alike, judges that share their runs: references far enough to matter."""
    generator = np.random.default_rng(seeds)
    wrong = {"H1": 0, "H2": 0}
    repetitions = 250
    for _ in range(repetitions):
        run = generator.normal(0, 0.5, (seeds, 6)) + generator.normal(0, 0.5, (seeds, 1))
        series = [
            MetricSeries(metric, "primary", 1, "plain", judge, "logits",
                   from_table(run + generator.normal(0, 0.2, run.shape), DOSES), 1.0, 0.0)
            for metric in METRICS
            for judge in JUDGES
        ]  # fmt: skip
        found = {
            t.contrast.name
            for t in contrast_results(series, describe=False)
            if t.series.judge is None and t.verdict == "supported"
        }
        for contrast in found:
            wrong[contrast] += 1
    assert all(within(count, repetitions) for count in wrong.values()), wrong


def test_an_effect_is_found_by_the_same_procedure() -> None:
    """A test that never supports anything would pass the simulation too."""
    generator = np.random.default_rng(9)
    hits = 0
    for _ in range(60):
        table = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0]) + generator.normal(0, 0.5, (5, 6))
        found = contrast_results(
            [MetricSeries("m", "primary", 1, "plain", None, "logits", from_table(table, DOSES), 1.0, 0.0)], describe=False
        )
        hits += {t.contrast.name for t in found if t.verdict == "supported"} == {"H1", "H2"}
    assert hits / 60 > 0.8


def test_many_metrics_do_not_make_it_likelier() -> None:
    """Eight metrics that have nothing to do with each other: without Holm's correction one in six would pass."""
    generator = np.random.default_rng(11)
    found = null_simulation({f"metric {i}": generator.normal(0, 0.5, 40).tolist() for i in range(8)}, DOSES, seeds=5)
    assert found.relabellings == 200
    assert found.passed
