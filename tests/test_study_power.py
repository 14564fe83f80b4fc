"""What a study costs and can see: the power against simulated studies, the plan without beginning, the achieved width."""

import numpy as np
import pytest

from tests.study_reports import full_report
from tests.test_cli import run
from vizrobust.data import load
from vizrobust.study import TRAININGS, StudyReport, plan_for
from vizrobust.study.contrasts import interval
from vizrobust.study.power import achieved, costs, detectable, planned, power, spread_of
from vizrobust.study.verdicts import holm_adjusted


@pytest.mark.parametrize(("seeds", "effect"), [(3, 4.0), (5, 1.5), (8, 1.0)])
def test_the_power_is_the_share_of_simulated_studies_that_find_the_effect(seeds, effect):
    rng, found = np.random.default_rng(seeds), [0, 0]
    repeats = 1500
    for _ in range(repeats):
        one = interval("H1", dict(enumerate(rng.normal(effect, 1, seeds))), [], 1.0)
        other = interval("H1", dict(enumerate(rng.normal(0, 1, seeds))), [], 1.0)
        found[0] += one.sign > 0 and one.p < 0.05
        corrected = holm_adjusted([one.p, other.p])[0]
        found[1] += one.sign > 0 and corrected < 0.05
    alone, of_two = (count / repeats for count in found)
    assert alone == pytest.approx(power(effect, seeds), abs=0.035)
    # Holm rejects at least what Bonferroni does.
    assert of_two >= power(effect, seeds, 2) - 0.035
    assert power(detectable(seeds), seeds, 2) == pytest.approx(0.8)


def test_a_pilot_s_spread_is_taken_at_its_upper_limit():
    rng = np.random.default_rng(0)
    above = np.mean([spread_of(rng.normal(0, 2, 4).tolist()) >= 2 for _ in range(2000)])
    assert above == pytest.approx(0.8, abs=0.03)
    assert spread_of([1.0]) is None


def test_a_pilot_gives_units_and_the_achieved_width_stands_beside(tmp_path):
    report = StudyReport(full_report(tmp_path, doses=(0, 1, 8), recipes=("plain",)))
    plan = plan_for(TRAININGS["mnist5k"], seeds=4)
    rows = planned(plan, report)
    assert {(row.contrast, row.metric) for row in rows} == {(h, m) for h in ("H1", "H2") for m in ("transfer", "forced_choice")}
    one = next(row for row in rows if (row.contrast, row.metric, row.recipe) == ("H1", "transfer", "plain"))
    result = next(
        r for r in report.results if (r.contrast.name, r.series.metric, r.series.recipe, r.series.judge, r.series.control)
        == ("H1", "transfer", "plain", None, None)
    )  # fmt: skip
    assert one.spread == pytest.approx(spread_of(result.contrast.per_seed))
    assert one.half_width == pytest.approx(3.1824 / 2 * one.spread, rel=1e-3)  # t of 3 degrees over the root of 4
    (beside, *_) = (row for row in achieved(report, [one.row()]))
    assert beside["achieved"] == pytest.approx((result.contrast.ci_high - result.contrast.ci_low) / 2)
    assert planned(plan)[0].metric == ""
    with pytest.raises(ValueError, match="two or more training seeds"):
        planned(plan, StudyReport(full_report(tmp_path, seeds=1, doses=(0, 1), recipes=("plain",))))


def test_more_networks_judges_and_pictures_cost_more():
    data, plan = load("mnist5k"), plan_for(TRAININGS["mnist5k"], seeds=2)
    few, more = costs(plan, data, judges=1), costs(plan_for(TRAININGS["mnist5k"], seeds=4, image_seeds=18), data, judges=2)
    assert all(a.passes < b.passes for a, b in zip(few, more, strict=True))
    assert costs(plan, data, provided=3)[0].passes == 0


def test_plan_says_what_a_study_would_cost_and_begins_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("study", "--data", "mnist5k", "--steps", "0,1,8", "--seeds", "3", "--plan")
    assert result.exit_code == 0, result.output
    for words in ("What it would cost", "core hours", "What it could see", "3 training seeds", "H2"):
        assert words in result.output, words
    assert list(tmp_path.iterdir()) == []
    assert run("study", "--data", "mnist5k", "--plan", "--pilot", "nowhere.json").exit_code in (1, 2)
