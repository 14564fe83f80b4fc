"""Augmentations: in range, each image from its own stream, and as strong as they say."""

from __future__ import annotations

import pytest
import torch

from vizrobust.rng import Streams
from vizrobust.training import examples
from vizrobust.training.examples import AUGMENTATIONS


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_is_augmented_alone_and_stays_in_range(name):
    x = torch.rand(6, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    whole = AUGMENTATIONS[name](x, Streams(0, range(6), "a"))
    mixed = AUGMENTATIONS[name](x[order], Streams(0, order.tolist(), "a"))
    assert whole.shape == ((6, 3, 12, 9) if name.startswith("window") else x.shape)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(mixed, whole[order])
    assert (whole.shape == x.shape and torch.equal(whole, x)) == (name == "none")


def test_windows_are_pieces_of_the_image_from_everywhere():
    """Each is found in its image, as it is or mirrored, and over many images every place and both hands occur."""
    x = torch.rand(300, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    seen = examples.window_flip(x, Streams(0, range(300), "a"))
    pieces = x.unfold(2, 6, 1).unfold(3, 9, 1)  # (300, 2, 3, 4, 6, 9)
    found = set()
    for image, window in zip(pieces, seen, strict=True):
        places = [
            (i, j, flipped) for i in range(3) for j in range(4) for flipped in (False, True)
            if torch.equal(image[:, i, j], window.flip(2) if flipped else window)
        ]  # fmt: skip
        assert len(places) == 1
        found.update(places)
    assert len(found) == 3 * 4 * 2


def test_heavy_lifts_the_ground_and_adds_noise_to_the_stated_degree():
    black = torch.zeros(400, 1, 16, 12)
    seen = examples.heavy(black, Streams(0, range(400), "a"))
    ground = seen.flatten(1).median(dim=1).values
    assert 0.15 < ground.mean() < 0.35
    assert ground.max() <= examples.LIGHTEST_GROUND + 0.1
    # On a mid-grey ground nothing is clipped, so the deviation is the noise's own.
    deviations = seen[ground > 0.4].flatten(1).std(dim=1)
    assert deviations.max() < examples.STRONGEST_NOISE * 1.25
    assert deviations.mean() > examples.STRONGEST_NOISE * 0.25


def test_heavy_keeps_at_least_the_lowest_contrast(monkeypatch):
    monkeypatch.setattr(examples, "STRONGEST_NOISE", 0.0)
    monkeypatch.setattr(examples, "WIDEST_BLUR", 0.01)
    halves = torch.zeros(200, 1, 16, 12)
    halves[:, :, 8:] = 1
    seen = examples.heavy(halves, Streams(0, range(200), "a"))
    spans = seen.amax((1, 2, 3)) - seen.amin((1, 2, 3))
    assert spans.min() >= examples.LOWEST_CONTRAST * (1 - examples.LIGHTEST_GROUND) - 1e-5
    assert spans.max() <= 1
    assert (spans < 0.6).any()
