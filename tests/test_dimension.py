"""The study of the input dimension: resized data sets against numpy, and a run that is not made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_net
from tests.test_training import tiny
from vizrobust.compute import Compute
from vizrobust.data import DataSet, head, load
from vizrobust.experiments.input_dimension import dimension_study, fit_growth, gradient_norms, growth, resized
from vizrobust.models import load_checkpoint
from vizrobust.runs import Row
from vizrobust.training import TrainingRecipe

RECIPE = TrainingRecipe(arch="small_cnn", data="tiny", epochs=1, batch_size=10, lr=1e-3)


def rows(data: DataSet, compute: Compute, folder: Path, recipe: TrainingRecipe = RECIPE, **options) -> list[Row]:
    options = {"sides": (4, 8), **options}
    return [news for news in dimension_study(recipe, data, compute=compute, folder=folder, **options) if isinstance(news, dict)]


def test_resizing_takes_means_over_areas() -> None:
    data = tiny()  # 8 x 12 pixels
    small = resized(data, 4)
    assert (small.shape, small.name, small.eps) == ((3, 4, 6), "tiny at 6 x 4 px", data.eps)
    index = torch.tensor([3, 0])
    x = data.test.take(index).numpy()
    assert small.test.take(index).numpy() == pytest.approx(x.reshape(2, 3, 4, 2, 6, 2).mean((3, 5)), abs=1e-6)
    assert torch.equal(small.test.labels, data.test.labels)
    large = resized(data, 16)
    assert np.array_equal(large.val.take(index).numpy(), x.repeat(2, 2).repeat(2, 3))
    assert torch.equal(resized(data, 8).train.take(index), data.train.take(index))
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        resized(data, 0)


def test_one_row_for_each_side_and_seed_and_none_twice(compute: Compute, tmp_path: Path, monkeypatch) -> None:
    data, folder = tiny(), tmp_path / "run"
    first_rows = rows(data, compute, folder, images=7)
    assert [(row["side"], row["seed"], row["d"], row["n"]) for row in first_rows] == [(4, 0, 72, 7), (8, 0, 288, 7)]
    # A row says of its network what is measured by hand on the checkpoint in the folder of its size and seed.
    net = load_checkpoint(str(folder / "4px-s0")).net()
    by_hand = gradient_norms(net, resized(data, 4).test, compute, "ce").l1[:7].mean()
    assert first_rows[0]["l1_ce"] == pytest.approx(float(by_hand), rel=1e-5)
    assert first_rows[0]["l2_margin"] < first_rows[0]["l1_margin"]
    fresh = load_checkpoint(str(folder / "8px-s0")).random_net(0)
    by_hand = gradient_norms(fresh, data.test, compute, "ce").l1[:7].mean()
    assert first_rows[1]["l1_ce_untrained"] == pytest.approx(float(by_hand), rel=1e-5)

    more = rows(data, compute, folder, images=7, sides=(4, 6, 8), seeds=(0, 1), recipe=replace(RECIPE, seed=5))
    assert [row for row in more if row in first_rows] == first_rows
    assert len(more) == 6
    assert len({row["l1_margin"] for row in more}) == 6
    monkeypatch.setattr("vizrobust.experiments.input_dimension.train", None)  # nothing is left to train
    assert rows(data, compute, folder, images=7, sides=(4, 6, 8), seeds=(0, 1)) == more
    with pytest.raises(ValueError, match="holds another run: images was 7"):
        rows(data, compute, folder, images=5)


def test_growth_is_the_fit_through_all_rows() -> None:
    made = [{"d": d, "l1_margin": d**0.5 * 2, "l1_ce": d**0.3, "l1_ce_untrained": d**0.1} for d in (49, 196, 784)]
    assert growth(made).slope == pytest.approx(0.5)
    assert growth(made, "ce").slope == pytest.approx(0.3)
    assert growth(made, "ce", trained=False).slope == pytest.approx(0.1)


def test_fresh_weights_grow_as_the_lecture_says(compute: Compute) -> None:
    """The argument of §27.4, on the digits: sqrt(d), as long as nothing is trained and borders are a small part."""
    data, found = load("digits"), []
    for side in (14, 28, 56):
        at = resized(data, side)
        for seed in range(3):
            norms = gradient_norms(make_net("small_cnn", at.shape, 10, seed), head(at.test, 50), compute)
            found.append((side * side, float(norms.l1.mean())))
    slope = fit_growth(*zip(*found, strict=True)).slope  # type: ignore[arg-type]
    assert 0.45 < slope < 0.6
