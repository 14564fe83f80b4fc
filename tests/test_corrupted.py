"""Accuracy under corruptions counted by hand, and the mean corruption error computed on paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, make_net
from tests.contracts.test_corruptions import pictures
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.intervals import wilson
from vizrobust.rng import Streams
from vizrobust.robustness.corruptions import CORRUPTIONS
from vizrobust.robustness.suites import corrupted, mean_corruption_error

SHAPE = (3, 30, 33)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make_net(shape=SHAPE)


@pytest.fixture(scope="module")
def split(net: nn.Module) -> ArraySplit:
    """23 images, most of them labelled as the network sees them."""
    x = pictures((23, *SHAPE))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % CLASSES
    return ArraySplit(x, y)


def test_accuracies_are_those_of_corrupting_each_image_alone(net: nn.Module, split: ArraySplit, compute: Compute) -> None:
    rows = list(corrupted(net, split, compute, ("fog", "shot_noise"), (2, 5), seed=3, batch_size=10))
    cells = [("clean", 0), ("fog", 2), ("fog", 5), ("shot_noise", 2), ("shot_noise", 5)]
    assert [(row["corruption"], row["severity"]) for row in rows] == cells
    for row, (name, severity) in zip(rows, cells, strict=True):
        hits = 0
        for k in range(23):
            x = split.pixels[k : k + 1]
            if severity:
                x = CORRUPTIONS[name](x, severity, Streams(3, [k], "corruption"))
            with torch.no_grad():
                hits += int(net(x).argmax(1) == split.labels[k])
        assert (row["n"], row["accuracy"]) == (23, hits / 23)
        assert (row["ci_low"], row["ci_high"]) == wilson(hits, 23)
        assert row["seconds"] >= 0
    assert rows[0]["accuracy"] == 18 / 23
    assert len({row["accuracy"] for row in rows}) > 1


def test_what_is_done_is_left_out(net: nn.Module, split: ArraySplit, compute: Compute) -> None:
    rows = list(corrupted(net, split, compute, ("fog",), (1, 2), done={("clean", 0), ("fog", 1)}))
    assert [(row["corruption"], row["severity"]) for row in rows] == [("fog", 2)]


def test_the_network_is_given_back(split: ArraySplit, compute: Compute) -> None:
    net = make_net("resnet_small", shape=SHAPE).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    list(corrupted(net, split, compute, ("contrast",), (1,), batch_size=8))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_random_numbers_are_the_same_for_every_network_and_severity(split: ArraySplit, compute: Compute) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return torch.zeros(len(x), CLASSES)

    one, two = Looks(), Looks()
    for net in (one, two):
        list(corrupted(net, split, compute, ("gaussian_noise",), (1, 3), batch_size=23, done={("clean", 0)}))
    assert all(torch.equal(a, b) for a, b in zip(one.seen, two.seen, strict=True))
    weak, strong = (seen - split.pixels for seen in one.seen)
    inside = (one.seen[1] > 0) & (one.seen[1] < 1)
    assert torch.corrcoef(torch.stack([weak[inside], strong[inside]]))[0, 1] > 0.99


def test_what_keeps_a_number_from_being_the_published_one_is_noted(compute: Compute) -> None:
    images = ArraySplit(pictures((3, 1, 28, 28)), torch.tensor([0, 1, 2]))
    net = make_net(shape=(1, 28, 28))
    notes = {row["corruption"]: row["note"] for row in corrupted(net, images, compute, ("frost", "saturate", "fog"), (1,))}
    assert notes == {"clean": "", "frost": "frost: own texture", "saturate": "one channel has no colour to saturate", "fog": ""}


def test_mistakes_are_said_before_anything_is_computed(net: nn.Module, split: ArraySplit, compute: Compute) -> None:
    with pytest.raises(ValueError, match="no corruption 'fogg'; did you mean fog"):
        corrupted(net, split, compute, ("fogg",))
    with pytest.raises(ValueError, match="no severity 6; there are: 1, 2, 3, 4, 5"):
        corrupted(net, split, compute, ("fog",), (6,))
    nothing = ArraySplit(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no images to corrupt"):
        corrupted(net, nothing, compute)


def rows_of(clean: float, **accuracies: tuple[float, ...]) -> list[dict]:
    found = [{"corruption": "clean", "severity": 0, "accuracy": clean}]
    for name, values in accuracies.items():
        found += [{"corruption": name, "severity": k, "accuracy": value} for k, value in enumerate(values, start=1)]
    return found


class TestMeanCorruptionError:
    def test_by_hand(self) -> None:
        rows = rows_of(0.9, fog=(0.8, 0.6), snow=(0.7, 0.5), saturate=(0, 0))
        base = rows_of(0.8, fog=(0.6, 0.4), snow=(0.6, 0.2), saturate=(0, 0))
        found = mean_corruption_error(rows, base)
        assert found.by_type == pytest.approx({"snow": 0.4, "fog": 0.3})
        assert (found.mean, found.clean) == pytest.approx((0.35, 0.1))
        # fog .6/1.0, snow .8/1.2; less the clean errors: fog (.6 - .2)/(1.0 - .4), snow (.8 - .2)/(1.2 - .4).
        assert found.mce == pytest.approx((0.6 / 1.0 + 0.8 / 1.2) / 2)
        assert found.relative_mce == pytest.approx((0.4 / 0.6 + 0.6 / 0.8) / 2)
        assert found.note == "2 of 15 types; severities 1, 2 alone"

    def test_a_ratio_of_sums_is_not_a_mean_of_ratios(self) -> None:
        found = mean_corruption_error(rows_of(1, fog=(0.9, 0.1)), rows_of(1, fog=(0.5, 0.5)))
        assert found.mce == pytest.approx(1.0)
        uneven = mean_corruption_error(rows_of(1, fog=(0.9, 0.1)), rows_of(1, fog=(0.9, 0.8)))
        assert uneven.mce == pytest.approx(1.0 / 0.3)

    def test_without_a_baseline_the_plain_mean_is_left(self) -> None:
        found = mean_corruption_error(rows_of(0.9, fog=(0.8,) * 5, frost=(0.6,) * 5))
        assert found.mean == pytest.approx(0.3)
        assert (found.mce, found.relative_mce) == (None, None)
        assert found.note == "frost: own texture; 2 of 15 types"

    def test_a_baseline_that_loses_nothing_is_no_yardstick(self) -> None:
        found = mean_corruption_error(rows_of(0.9, fog=(0.8,)), rows_of(0.9, fog=(0.9,)))
        assert found.mce == pytest.approx(2)
        assert found.relative_mce is None
        assert "the baseline loses nothing under some type" in found.note

    def test_rows_that_do_not_fit_are_refused(self) -> None:
        rows = rows_of(0.9, fog=(0.8, 0.7))
        with pytest.raises(ValueError, match="the rows hold no 'clean' accuracy"):
            mean_corruption_error(rows[1:])
        with pytest.raises(ValueError, match="none of the common corruptions"):
            mean_corruption_error(rows_of(0.9, saturate=(0.5,)))
        with pytest.raises(ValueError, match=r"fog has severities \[1, 2\] where others have \[1, 2, 3\]"):
            mean_corruption_error(rows_of(0.9, fog=(0.8, 0.7), snow=(0.8, 0.7, 0.6)))
        with pytest.raises(ValueError, match="the baseline has no fog 2; evaluate it on the same corruptions"):
            mean_corruption_error(rows, rows_of(0.9, fog=(0.8,)))
