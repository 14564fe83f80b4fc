"""Random streams: an item's numbers are its own, and they are random."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vizrobust.rng import Streams

MASK = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, one number at a time in Python's own integers (Steele, Lea & Flood 2014)."""
    out = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_bits_are_splitmix64(key: int) -> None:
    streams = Streams(0, ["x"])._with(torch.tensor([key]), 0)
    first, second = streams._bits(3)[0].tolist(), streams._bits(2)[0].tolist()
    assert [value & MASK for value in (*first, *second)] == splitmix64(key & MASK, 5)


def test_known_first_number() -> None:
    # The generator's published first output from state 1234567.
    streams = Streams(0, ["x"])._with(torch.tensor([1234567]), 0)
    assert int(streams._bits(1)[0, 0]) & MASK == 6457827717110365317


DRAWS = {
    "uniform": lambda s: s.uniform(3, 5),
    "normal": lambda s: s.normal(3, 5),
    "integers": lambda s: s.integers(1000, 7),
    "permutation": lambda s: s.permutation(11),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
class TestAnItemsNumbersAreItsOwn:
    def test_whatever_the_other_images_are(self, draw) -> None:
        items = [f"i{k}" for k in range(70)]
        together = draw(Streams(3, items, "noise"))
        for k in (0, 33, 69):
            assert torch.equal(draw(Streams(3, [items[k]], "noise"))[0], together[k])
        order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).tolist()
        assert torch.equal(draw(Streams(3, [items[k] for k in order], "noise")), together[order])

    def test_taken_and_repeated(self, draw) -> None:
        streams = Streams(3, range(9), "noise")
        streams.uniform(4)
        index = torch.tensor([7, 0, 0, 3, 8, 8, 8])
        part, kept = streams.take(index), streams.take(slice(2, 5))
        assert len(part) == 7
        whole = draw(streams)
        assert torch.equal(draw(part), whole[index])
        assert torch.equal(draw(kept), whole[2:5])

    def test_seed_item_and_purpose_all_count(self, draw) -> None:
        base = draw(Streams(0, ["a"], "noise"))
        others = [Streams(1, ["a"], "noise"), Streams(0, ["b"], "noise"), Streams(0, ["a"], "start")]
        others += [Streams(0, ["a"], "noise").child("x"), Streams(0, ["a"], "noise").child("y")]
        drawn = [base, *(draw(streams) for streams in others)]
        for k, one in enumerate(drawn):
            assert all(not torch.equal(one, other) for other in drawn[k + 1 :])

    def test_a_second_draw_goes_on(self, draw) -> None:
        streams = Streams(0, range(4), "noise")
        first, second = draw(streams), draw(streams)
        assert not torch.equal(first, second)
        again = Streams(0, range(4), "noise")
        assert torch.equal(draw(again), first)
        assert torch.equal(draw(again), second)

    def test_global_generators_are_left_alone(self, draw) -> None:
        torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        draw(Streams(0, range(4), "noise").child("other"))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert (np.random.get_state()[1] == numpy_state).all()
        assert random.getstate() == python_state
        torch.manual_seed(1)
        one = draw(Streams(0, range(4), "noise"))
        torch.manual_seed(2)
        assert torch.equal(draw(Streams(0, range(4), "noise")), one)


def test_an_item_is_named_by_its_text() -> None:
    assert torch.equal(Streams(0, [5]).uniform(3), Streams(0, ["5"]).uniform(3))


def test_a_child_starts_at_its_beginning() -> None:
    streams = Streams(0, range(3), "noise")
    early = streams.child("x").uniform(4)
    streams.uniform(100)
    assert torch.equal(streams.child("x").uniform(4), early)


@given(st.integers(0, 40), st.integers(1, 40))
def test_draws_do_not_overlap(first: int, second: int) -> None:
    streams = Streams(0, ["a"])
    a, b = streams.uniform(first)[0], streams.uniform(second)[0]
    assert a.shape == (first,)
    assert b.shape == (second,)
    assert not set(a.tolist()) & set(b.tolist())


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    streams = Streams(0, range(4))
    assert streams.uniform(*shape).shape == (4, *shape)
    assert streams.normal(*shape).shape == (4, *shape)
    assert streams.integers(9, *shape).shape == (4, *shape)
    assert streams.uniform(*shape).dtype == streams.normal(*shape).dtype == torch.float32
    assert streams.integers(9, *shape).dtype == streams.permutation(3).dtype == torch.int64


# Along one stream, and across many streams: both directions must look random. Seeds are fixed, so these cannot flicker.
WAYS = {
    "along": lambda draw: draw(Streams(0, ["a"], "test"), 40_000).flatten(),
    "across": lambda draw: draw(Streams(0, range(40_000), "test"), 1).flatten(),
    "children": lambda draw: draw(Streams(0, range(40_000), "test").child("x"), 1).flatten(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_uniform_numbers_are_uniform(way) -> None:
    u = way(lambda streams, n: streams.uniform(n)).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / len(u)) ** 0.5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / len(u) ** 0.5
    # Every one of the 24 bits is fair.
    bits = (u * 2**24).astype(np.int64)[:, None] >> np.arange(24) & 1
    assert (abs(bits.mean(0) - 0.5) < 4 * 0.5 / len(u) ** 0.5).all()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_normal_numbers_are_normal(way) -> None:
    z = way(lambda streams, n: streams.normal(n)).double().numpy()
    assert np.isfinite(z).all()
    assert stats.kstest(z, "norm").pvalue > 0.01
    n = len(z)
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(z)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(z)) < 4 * (24 / n) ** 0.5


def test_different_purposes_are_uncorrelated() -> None:
    u, v = Streams(0, ["a"], "x").uniform(40_000)[0], Streams(0, ["a"], "y").uniform(40_000)[0]
    assert abs(float(torch.corrcoef(torch.stack((u, v)))[0, 1])) < 4 / 200


def test_integers_fill_their_range_evenly() -> None:
    drawn = Streams(0, range(1000)).integers(7, 30).flatten()
    assert stats.chisquare(torch.bincount(drawn, minlength=7).numpy()).pvalue > 0.01
    assert set(drawn.tolist()) == set(range(7))
    assert Streams(0, range(50)).integers(1, 3).eq(0).all()
    # `high` may differ from stream to stream.
    high = torch.tensor([1, 2, 10])
    each = torch.stack([Streams(seed, range(3)).integers(high) for seed in range(200)])
    assert each.amax(0).tolist() == [0, 1, 9]
    assert each.amin(0).tolist() == [0, 0, 0]


def test_permutations_are_permutations_and_all_of_them_appear() -> None:
    long = Streams(0, range(3)).permutation(50)
    assert torch.equal(long.sort(1).values, torch.arange(50).expand(3, -1))
    short = Streams(0, range(6000)).permutation(3)
    counts = torch.unique(short, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    assert Streams(0, range(2)).permutation(0).shape == (2, 0)
