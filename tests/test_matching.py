"""Hidden units: the draw, and the assignment against every permutation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from vizrobust.study.stimuli import draw_units, match_units


def test_the_draw_is_recorded_by_its_arguments_alone() -> None:
    drawn = draw_units(200, 50, seed=1)
    assert drawn == draw_units(200, 50, seed=1)
    assert len(set(drawn)) == 50
    assert list(drawn) == sorted(drawn)
    assert 0 <= drawn[0] <= drawn[-1] < 200
    assert drawn != draw_units(200, 50, seed=2)
    assert drawn != draw_units(200, 50, seed=1, layer="conv2")
    assert draw_units(7, 50, seed=1) == tuple(range(7))


def test_every_unit_is_drawn_equally_often() -> None:
    counts = np.zeros(12)
    for seed in range(800):
        counts[list(draw_units(12, 3, seed))] += 1
    # Binomial(800, 1/4): four deviations are 49.
    assert np.abs(counts - 200).max() < 49


@pytest.mark.parametrize(("total", "count"), [(0, 3), (5, 0)])
def test_a_draw_of_nothing_is_refused(total: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        draw_units(total, count, 0)


def test_a_permutation_of_units_is_found_whatever_their_scale() -> None:
    a = torch.randn(9, 60, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    noise = 0.1 * torch.randn(9, 60, generator=torch.Generator().manual_seed(2))
    found = match_units(a, (a[order] + noise) * torch.arange(1, 10)[:, None] - 3)
    assert [int(order[b]) for _, b in found.pairs] == list(range(9))
    assert found.quality > 0.98
    assert found.chance < 0.5


def test_the_assignment_beats_every_other() -> None:
    units = 5
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(units, 8, generator=generator), torch.randn(units, 8, generator=generator)
    table = np.corrcoef(a.numpy(), b.numpy())[:units, units:]
    best = max(sum(table[i, j] for i, j in enumerate(order)) for order in permutations(range(units)))
    found = match_units(a, b)
    assert sum(found.correlations) == pytest.approx(best, abs=1e-6)
    assert found.correlations == pytest.approx([table[i, j] for i, j in found.pairs], abs=1e-6)


def test_units_that_have_nothing_to_do_with_each_other_match_at_chance() -> None:
    """The best of many pairs correlates well by chance: that is what `chance` is for."""
    generator = torch.Generator().manual_seed(5)
    found = match_units(torch.randn(40, 30, generator=generator), torch.randn(40, 30, generator=generator))
    assert found.quality > 0.25
    assert found.quality == pytest.approx(found.chance, abs=0.06)


def test_dead_units_correlate_with_nothing() -> None:
    a = torch.randn(3, 20, generator=torch.Generator().manual_seed(6))
    b = a.clone()
    b[1] = 0.1
    found = match_units(a, b)
    assert found.pairs == ((0, 0), (1, 1), (2, 2))
    assert found.correlations == pytest.approx((1, 0, 1), abs=1e-6)


def test_with_fewer_units_some_have_no_partner() -> None:
    a = torch.randn(4, 20, generator=torch.Generator().manual_seed(7))
    assert match_units(a, a[[2, 0]]).pairs == ((0, 1), (2, 0))


@pytest.mark.parametrize("shapes", [((3, 5), (3, 6)), ((3, 2), (3, 2)), ((3, 4, 5), (3, 4, 5)), ((0, 5), (3, 5))])
def test_activations_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="matching needs"):
        match_units(*(torch.randn(shape) for shape in shapes))
