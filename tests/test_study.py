"""Comparing checkpoints: paired differences against scipy and by hand, and scores of planted pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.conftest import CLASSES, SHAPE
from tests.test_clarity import checkpoint
from vizrobust.clarity import NATURAL_IMAGES, RANDOM_NETWORK, Judge, score_pictures, score_run, scoring_jobs
from vizrobust.data import ArraySplit, DataSet
from vizrobust.features import Channel, Logit, RenderJob, plain, render_into
from vizrobust.intervals import paired
from vizrobust.runs import RunFolder


def test_paired_difference_is_the_t_interval_over_units():
    a, b = [0.1, 0.4, 0.3, None, 0.9], [0.5, 0.4, 0.8, 0.7, None]
    got = paired(a, b)
    deltas = np.array([0.4, 0.0, 0.5])
    half = stats.t.ppf(0.975, 2) * deltas.std(ddof=1) / np.sqrt(3)
    assert got.n == 3
    assert got.mean == pytest.approx(0.3)
    assert (got.low, got.high) == pytest.approx((0.3 - half, 0.3 + half))


def test_too_few_pairs_give_no_interval():
    assert str(paired([0.1], [0.2])) == "-"
    assert str(paired([None, None], [0.2, 0.1])) == "-"
    assert str(paired([0.0, 0.0], [0.5, 0.5])) == "+0.500 [+0.500, +0.500]"


def test_the_interval_of_a_difference_of_shares_ends_at_1():
    assert str(paired([0.0, 0.2, 0.0], [1.0, 0.3, 0.9])) == "+0.667 [-0.559, +1.892]"
    assert str(paired([0.0, 0.2, 0.0], [1.0, 0.3, 0.9], largest=1)) == "+0.667 [-0.559, +1.000]"


@pytest.fixture
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(70) % CLASSES
    split = ArraySplit(torch.rand(70, *SHAPE, generator=generator), labels)
    return DataSet("tiny", tuple("abcdefg"), SHAPE, split, split, split, 0.1)


def test_natural_pictures_of_the_right_class_beat_those_of_a_wrong_one(compute, data):
    """With the network itself as encoder, pictures that excite a unit must win over pictures that excite another."""
    one = checkpoint("one")
    judge = Judge("self", one.net(), tuple("abcdefg"), compute)
    x = data.test.take(torch.arange(70))
    with torch.no_grad():
        logits = one.net()(x)
    units = (0, 3, 5)
    right = {unit: x[logits[:, unit].topk(4).indices] for unit in units}
    wrong = {unit: right[units[(i + 1) % 3]] for i, unit in enumerate(units)}
    good = score_pictures([one], {"one": right}, {}, Logit(), units, judge, data, compute)
    bad = score_pictures([one], {"one": wrong}, {}, Logit(), units, judge, data, compute)
    for field in ("transfer", "forced_choice"):
        difference = paired(getattr(bad["one"], field), getattr(good["one"], field))
        assert difference.mean is not None
        assert difference.mean > 0
    assert good[NATURAL_IMAGES] == bad[NATURAL_IMAGES]
    assert all(0 <= value <= 1 for value in good["one"].recognised if value is not None)


def test_without_images_the_judge_says_the_same_of_the_pictures_and_nothing_else(compute, data):
    one = checkpoint("one")
    judge = Judge("self", one.net(), tuple("abcdefg"), compute)
    pictures = {"one": {unit: data.test.take(torch.arange(3) + unit) for unit in (0, 3, 5)}}
    asked = score_pictures([one], pictures, {}, Logit(), (0, 3, 5), judge, data, compute)["one"]
    found = score_pictures([one], pictures, {}, Logit(), (0, 3, 5), judge, None, compute)
    assert found.keys() == {"one"}
    assert (found["one"].transfer, found["one"].recognised) == (asked.transfer, asked.recognised)
    assert found["one"].forced_choice == (None,) * 3


def test_a_single_class_unit_has_nothing_to_be_told_from(compute, data):
    one = checkpoint("one")
    judge = Judge("self", one.net(), tuple("abcdefg"), compute)
    pictures = {"one": {2: data.test.take(torch.arange(2))}}
    scores = score_pictures([one], pictures, {}, Logit(), (2,), judge, data, compute)
    assert scores["one"].forced_choice == (None,)
    assert scores["one"].transfer[0] is not None


def test_hidden_units_are_scored_against_their_negated_pictures(compute, data, tmp_path):
    one, random = checkpoint("one"), checkpoint("one").untrained(RANDOM_NETWORK)
    request = RenderJob(plain(steps=3), Channel(layer="conv2"), (4, 9), seeds=(0, 1), batch_size=4)
    run = RunFolder(tmp_path / "run", "compare", request.identity("fp32"))
    jobs = scoring_jobs([one, random], request)
    assert sorted(job.sign for _, job in jobs) == [-1, -1, 1, 1]
    for who, job in jobs:
        list(render_into(run, who, job, compute))
    judge = Judge("judge", checkpoint("judge", "resnet_small", 3).net(), tuple("abcdefg"), compute)
    scores = score_run(run, [one], request, judge, data, compute, [random])
    assert set(scores) == {"one", RANDOM_NETWORK, f"{NATURAL_IMAGES}, one"}
    for found in scores.values():
        assert found.transfer == (None, None)
        assert all(value is not None and 0 <= value <= 1 for value in found.forced_choice)


def test_an_untrained_checkpoint_differs_and_claims_nothing():
    one = checkpoint("one", seed=3)
    random = one.untrained(RANDOM_NETWORK)
    assert random.sha256 != one.sha256
    assert random.sha256 == one.untrained("another").sha256
    assert random.info.training == ""
    assert random.info.metrics == {}
