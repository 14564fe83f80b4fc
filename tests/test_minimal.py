"""Each image's smallest radius: found by bisection as by trying every radius, with the runs that this takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import quantile_test
from torch import Tensor

from tests.conftest import on_network
from tests.test_fab import case, exact, linear_net
from vizrobust.attacks import CW, FAB, FGSM, L2, PGD, Attack, DeepFool, Linf
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.intervals import wilson
from vizrobust.robustness import RobustAccuracy
from vizrobust.robustness.smallest_eps import SmallestEps, even_radii, median, smallest_eps

N = 30
# Exact in float32.
SIXTY_FOURTHS = st.integers(0, 96)


class Thresholds:
    """Stands for an attack on images that break from a radius of their own on, with a norm a given share of the radius."""

    def __init__(self, limits: Sequence[float], share: float = 1.0) -> None:
        self.limits, self.share, self.asked = torch.tensor(limits, dtype=torch.float64), share, Counter[int]()
        self.radii: list[float] = []

    def __call__(self, attack: Attack, *, indices=None, stop="success", all_runs=False) -> RobustAccuracy:
        places = torch.arange(len(self.limits)) if indices is None else torch.tensor(indices)
        self.asked.update(places.tolist())
        self.radii.append(attack.ball.eps)
        limits = self.limits[places]
        broken = limits <= attack.ball.eps
        # A perturbation is never shorter than the image's limit, and its norm may be off by a rounding.
        norms = torch.maximum(limits, torch.tensor(attack.ball.eps * self.share * (1 + 1e-9)))
        return RobustAccuracy(
            attack, places, limits > 0, ("PGD",), ("PGD",), 1, torch.where(broken, 1, -1)[None], norms[None], 10, 4, 0.5
        )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    limits=st.lists(SIXTY_FOURTHS.map(lambda k: k / 64), min_size=1, max_size=12),
    radii=st.sets(st.integers(1, 64), min_size=1, max_size=20).map(lambda ks: sorted(k / 64 for k in ks)),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_bisection_finds_what_trying_every_radius_finds(limits: list[float], radii: list[float], share: float) -> None:
    attack = Thresholds(limits, share)
    found = smallest_eps(PGD(), attack, radii)
    for k, limit in enumerate(limits):
        successful = [radius for radius in radii if limit <= radius]
        if limit == 0:
            assert found.eps[k] == 0
        elif not successful:
            assert found.eps[k] == math.inf
            assert found.largest_unsuccessful_eps[k] == radii[-1]
        else:
            # What is reported is a perturbation's norm: within the smallest radius that breaks it, and not below the limit.
            assert limit * (1 - 1e-6) <= found.eps[k] <= min(successful)
            assert found.largest_unsuccessful_eps[k] <= limit
    for row in found.curve():
        assert row["accuracy"] == pytest.approx(sum(limit > row["eps"] for limit in limits) / len(limits))
    assert max(attack.asked.values()) <= math.ceil(math.log2(len(radii) + 1))
    assert len(set(attack.radii)) == len(attack.radii), "each radius is one evaluation for all who need it"
    assert found.attacks_per_image == pytest.approx(attack.asked.total() / len(limits))
    assert found.forward_passes == 10 * len(attack.radii)


def test_short_perturbations_save_runs() -> None:
    limits = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    long, short = Thresholds(limits), Thresholds(limits, share=0.0)
    assert (
        smallest_eps(PGD(), short, even_radii(1.0)).attacks_per_image
        < smallest_eps(PGD(), long, even_radii(1.0)).attacks_per_image
        == 6
    )


@pytest.fixture(scope="module")
def linear() -> tuple[torch.nn.Module, ArraySplit, Tensor]:
    """A linear network with 30 images, the labels of every seventh wrong, and the exact smallest Linf perturbations."""
    net = linear_net(3)
    x, y = case(net, N)
    truth = exact(Linf(), net, x, y)
    y[::7] = (y[::7] + 1) % 3
    truth[::7] = 0
    return net.float(), ArraySplit(x.float(), y), truth


@pytest.mark.parametrize("indices", [None, [3, 4, 7, 21]])
def test_with_a_fixed_radius_each_image_is_bracketed(linear, compute: Compute, indices: list[int] | None) -> None:
    net, images, truth = linear
    radii = even_radii(0.16, bisection_steps=4)
    found = smallest_eps(PGD(steps=15, random_start=False, loss="margin"), on_network(net, images, compute), radii, indices)
    places = list(range(N)) if indices is None else indices
    assert found.indices.tolist() == places
    truth = truth[places]
    # PGD need not find what is only just possible.
    assert (found.eps >= truth * (1 - 1e-6)).all()
    broken = found.eps.isfinite()
    assert (found.eps <= truth + 2 * radii[0])[broken].all()
    assert (truth > radii[-2])[~broken].all()
    assert (found.largest_unsuccessful_eps <= found.eps).all()
    assert ((found.eps == 0) == (truth == 0)).all()


def test_the_curve_is_that_of_evaluations_at_every_radius(linear, compute: Compute) -> None:
    net, images, _ = linear
    on = on_network(net, images, compute)
    found = smallest_eps(FGSM(), on, even_radii(0.16, bisection_steps=3))
    rows = found.curve()
    assert [row["eps"] for row in rows] == [0.0, *found.radii]
    for row in rows[1:]:
        one = on(FGSM(ball=Linf(row["eps"]))).row()
        assert (row["accuracy"], row["ci_low"], row["ci_high"]) == (one["accuracy"], one["ci_low"], one["ci_high"])


@pytest.mark.parametrize("attack", [FAB(steps=15, ball=Linf(0.01)), DeepFool(ball=Linf()), CW(steps=20, lr=0.1, search_steps=3)])
def test_attacks_that_look_for_the_smallest_run_once_and_without_limit(linear, compute: Compute, attack: Attack) -> None:
    net, images, truth = linear
    found = smallest_eps(attack, on_network(net, images, compute))
    assert (found.attacks_per_image, found.radii) == (1.0, ())
    assert found.attack.ball.eps is None
    assert ((found.eps == 0) == (truth == 0)).all()
    if isinstance(attack, FAB):
        assert (found.eps >= truth * (1 - 1e-6)).all()
        assert (found.eps <= truth * 1.02).all()
    assert [row["accuracy"] for row in found.curve()][-1] == 0
    assert found.curve([0.0])[0]["accuracy"] == pytest.approx(float((truth > 0).float().mean()))


def test_a_row_says_what_a_table_shows() -> None:
    eps = torch.tensor([0.0, 0.1, 0.2, torch.inf, torch.inf], dtype=torch.float64)
    row = SmallestEps(PGD(ball=L2()), torch.arange(5), eps, eps, (0.1, 0.2), 1.6, 50, 20, 1.0).row()
    expected = {"n": 5, "norm": "L2", "median": 0.2, "ci_low": 0.0, "ci_high": None, "clean": 0.8, "unbroken": 2, "runs": 1.6}
    assert row.items() >= expected.items()
    assert (row["forward_passes"], row["gradient_passes"]) == (10, 4)


def test_the_curve_counts_the_broken() -> None:
    eps = torch.tensor([0.0, 0.1, 0.2, torch.inf], dtype=torch.float64)
    rows = SmallestEps(FAB(), torch.arange(4), eps, eps, (), 1.0, 1, 1, 1.0).curve()
    assert [(row["eps"], row["accuracy"]) for row in rows] == [(0.0, 0.75), (0.1, 0.5), (0.2, 0.25)]
    assert (rows[1]["ci_low"], rows[1]["ci_high"]) == wilson(2, 4)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=80))
def test_the_medians_interval_is_scipys(values: list[float]) -> None:
    middle, low, high = median(torch.tensor(values, dtype=torch.float64))
    theirs = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert low == (theirs.low if math.isfinite(theirs.low) else 0)
    assert high == (theirs.high if math.isfinite(theirs.high) else math.inf)
    assert sorted(values)[(len(values) - 1) // 2] == middle


def test_the_medians_interval_covers_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = -torch.rand(2000, 41, generator=generator, dtype=torch.float64).log()
    inside = sum(low <= math.log(2) <= high for _, low, high in map(median, samples))
    assert inside / 2000 >= 0.945


def test_half_infinite_radii_make_an_infinite_median() -> None:
    assert median(torch.tensor([torch.inf] * 70 + [0.1] * 30)) == (math.inf, math.inf, math.inf)
    assert median(torch.tensor([torch.inf] * 52 + [0.1] * 48))[1:] == (pytest.approx(0.1), math.inf)


@pytest.mark.parametrize("radii", [(), (0.2, 0.1), (0.0, 0.1), (0.1, 0.1)])
def test_radii_that_do_not_rise_are_refused(radii: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="PGD is tried at several radii, rising from above 0"):
        smallest_eps(PGD(), Thresholds([0.1]), radii)
