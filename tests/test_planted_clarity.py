"""Planted truth: pictures are digits with a known share of their phases; the study's pipeline must find that share again."""

import numpy as np
import pytest
import torch

from vizrobust.clarity import METRICS, judges_for, phases_scrambled
from vizrobust.clarity.natural_scale import recorded_scale
from vizrobust.compute import Compute
from vizrobust.data import head, load
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams
from vizrobust.study import TRAININGS, StudyReport, plan_for
from vizrobust.study.clarity_scores import PictureSet, primary_rows
from vizrobust.study.protocol import MASKED, RADIUS
from vizrobust.study.report import RANDOM_REFERENCE
from vizrobust.study.stimuli import QuerySet

SEEDS, IMAGES = 4, 4


@pytest.fixture(scope="module")
def asking():
    """The queries of a study of digits with its three built-in judges, and the digits that become pictures."""
    data, compute = load("mnist5k"), Compute("cpu")
    judges = judges_for("mnist5k", [], compute, classes=data.classes)
    plan = plan_for(TRAININGS["mnist5k"], query_images=300, exemplar_images=300)
    scales = {judge.name: recorded_scale(judge) for judge in judges}
    assert all(scales.values())
    questions = QuerySet(plan, data, judges, compute, scales)
    questions.agree_on([load_checkpoint("mnist-k0")])
    # The test images behind those on which the scales were measured.
    rest = torch.arange(500, len(data.test))
    return questions, data.test.take(rest), data.test.labels[rest], head(data.val, 10)


def rows_of(asking, name: str, coherence: float, seed: int) -> list[dict]:
    """Clarity rows of a network whose pictures of each class are digits with this share of their phases."""
    questions, images, labels, _ = asking
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    chosen = torch.stack([images[order[labels[order] == unit][:IMAGES]] for unit in range(10)])
    streams = Streams(seed, [f"{unit}/{k}" for unit in range(10) for k in range(IMAGES)], "planted")
    pictures = phases_scrambled(chosen.flatten(0, 1), coherence, streams).reshape(chosen.shape)
    found = primary_rows(PictureSet(tuple(range(10)), pictures), questions, questions.shared, None)
    return [{"checkpoint": name, "recipe": "planted", "layer": "logits", **row} for row in found]


def report_of(asking, planted: dict[tuple[str, int | None, float | None], float], spread: float = 0.02) -> StudyReport:
    """A report over training seeds: (group, K, eps) -> the mean share of phases, which varies by `spread` over seeds."""
    questions = asking[0]
    checkpoints, clarity = [], []
    for number, ((group, k, eps), coherence) in enumerate(planted.items()):
        for seed in range(SEEDS):
            name = f"{group}-s{seed}"
            shift = spread * float(np.random.default_rng([number, seed]).standard_normal())
            role = RADIUS if group.startswith("eps") else MASKED if group == "masked" else "dose"
            training = f'TrainingRecipe(arch="small_cnn", data="mnist5k", attack=PGD(steps={k or 1}))'
            about = {"name": name, "label": name, "role": role, "group": group, "k": k if role == "dose" else None, "seed": seed}
            checkpoints.append({**about, "eps": eps, "training": training if k or eps else "", "weights_sha256": name})
            clarity += rows_of(asking, name, min(1.0, max(0.0, coherence + shift)), 100 * number + seed)
    random = {(row["metric"], row["judge"]): row for row in rows_of(asking, "random", 0.0, 999)}
    natural = {(row["metric"], row["judge"]): row for row in rows_of(asking, "natural", 1.0, 998)}
    references = [
        {"reference": name, "recipe": None, "layer": "logits", "control": None, "metric": metric, "judge": judge,
         "value": float(np.mean(row["values"]))}
        for name, rows in (("natural", natural), (RANDOM_REFERENCE, random))
        for (metric, judge), row in rows.items()
    ]  # fmt: skip
    metrics = [{"name": one.name, "title": one.title, "role": one.role, "direction": one.direction, "chance": None}
               for one in METRICS.values()]  # fmt: skip
    judges = [{"name": judge.name, "family": judge.family, "disqualified": None} for judge in questions.judges]
    return StudyReport({"checkpoints": checkpoints, "clarity": clarity, "references": references, "judges": judges,
                        "metrics": metrics, "accuracy": []})  # fmt: skip


def result(report: StudyReport, metric: str, contrast: str):
    return next(
        one for one in report.results if (one.series.metric, one.contrast.name, one.series.judge) == (metric, contrast, None)
    )


def sweep(*coherences: float) -> dict:
    return {(f"k{k}", k, None): coherence for k, coherence in zip((0, 1, 2, 4), coherences, strict=True)}


def test_planted_shares_are_found_again_in_order_and_a_plateau_is_called_one(asking):
    planted = (0.45, 0.8, 0.8, 0.8)
    report = report_of(asking, sweep(*planted))
    series = result(report, "natural_equivalent", "H1").series
    found = [np.mean([series.values[k, seed] for seed in range(SEEDS)]) for k in (0, 1, 2, 4)]
    # The judges' curves differ on other digits by a little; the mean over three families is near the planted share.
    np.testing.assert_allclose(found, planted, atol=0.08)
    h1, h2 = (result(report, "natural_equivalent", name) for name in ("H1", "H2"))
    assert h1.verdict == "supported"
    assert h1.contrast.ci_low - 0.06 <= 0.35 <= h1.contrast.ci_high + 0.06
    assert h2.verdict != "supported"
    assert result(report, "transfer", "H1").verdict == "supported"
    assert result(report, "transfer", "H2").dose_response_shape in ("plateau", "no clear shape")
    assert "On the scale of natural images" in " ".join(report.verdict.sentences)


@pytest.mark.slow
def test_a_planted_slope_is_called_a_slope_over_steps_and_over_radii(asking):
    over_radius = {("eps1", None, 1 / 255): 0.5, ("eps4", None, 4 / 255): 0.65, ("eps8", None, 8 / 255): 0.75}
    report = report_of(asking, {**sweep(0.4, 0.5, 0.65, 0.8), **over_radius, ("masked", None, 0.5): 0.7})
    assert result(report, "natural_equivalent", "H5").verdict == "supported"
    assert result(report, "natural_equivalent", "H5").contrast.estimate == pytest.approx(0.3, abs=0.06)
    for metric in ("transfer", "natural_equivalent"):
        slope = result(report, metric, "H2")
        assert (slope.verdict, slope.dose_response_shape) == ("supported", "rising"), metric
        assert result(report, metric, "H4").verdict == "supported", metric
    natural = result(report, "natural_equivalent", "H2").contrast
    assert natural.estimate == pytest.approx(0.15, abs=0.04)
    assert result(report, "natural_equivalent", "H4").contrast.estimate == pytest.approx(0.25 / 3, abs=0.03)


@pytest.mark.slow
def test_where_nothing_is_planted_nothing_is_found(asking):
    report = report_of(asking, {**sweep(0.6, 0.6, 0.6, 0.6), ("masked", None, 0.5): 0.6})
    assert result(report, "natural_equivalent", "H5").verdict == "not supported"
    for metric in ("transfer", "natural_equivalent", "forced_choice"):
        for contrast in ("H1", "H2", "H5"):
            assert result(report, metric, contrast).verdict != "supported", (metric, contrast)
