"""Which units of a network are the counterparts of the drawn ones, and what a study says of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from vizrobust.study.networks import StudyCheckpoint
from vizrobust.study.protocol import BASELINE, SWEEP
from vizrobust.study.stimuli import matched_units, reference_of


def test_a_shuffled_layer_is_seen_through() -> None:
    """Units in another order, each on another scale: the drawn ones are found again, in the order in which they were drawn."""
    generator = torch.Generator().manual_seed(0)
    reference, order = torch.randn(12, 80, generator=generator), torch.randperm(12, generator=generator)
    shuffled = reference[order] * torch.rand(12, 1, generator=generator).add(0.1)
    found = matched_units("k0-s0", shuffled, reference, (1, 4, 9))
    assert found is not None
    assert found.units == (1, 4, 9)
    assert [int(order[partner]) for partner in found.matches] == [1, 4, 9]
    assert found.correlations == pytest.approx([1, 1, 1])
    assert found.quality == pytest.approx(1)
    assert found.chance < 0.4
    assert found.row("k8-s0", "conv2") | {"chance": 0} == {
        "checkpoint": "k8-s0", "reference": "k0-s0", "layer": "conv2", "units": [1, 4, 9], "partners": list(found.matches),
        "correlations": [1, 1, 1], "drawn": 1, "quality": 1, "chance": 0,
    }  # fmt: skip


def test_in_a_smaller_layer_some_have_no_counterpart() -> None:
    reference = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    found = matched_units("k0-s0", reference[[5, 2]], reference, (2, 3))
    assert found is not None
    assert (found.units, found.matches) == ((2,), (1,))
    assert matched_units("k0-s0", reference[[5, 2]], reference, (0, 1)) is None


def test_the_reference_has_the_same_seed_and_the_fewest_steps() -> None:
    def one(role: str, k: int | None, seed: int) -> StudyCheckpoint:
        checkpoint = cast(Any, SimpleNamespace(name=f"{role}{k}-s{seed}"))
        return StudyCheckpoint(checkpoint, f"k{k}", role, k, seed, "")

    compared = [one(SWEEP, 4, 0), one(SWEEP, 1, 0), one(SWEEP, 0, 1), one(BASELINE, None, 0), one(BASELINE, None, 2)]
    found = [reference_of(each, compared) for each in compared]
    assert [each and each.checkpoint.name for each in found] == ["dose1-s0", "dose1-s0", "dose0-s1", "dose1-s0", None]
