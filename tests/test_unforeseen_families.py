"""The later unforeseen attacks against slower, plainer versions of what they do: pixel, glitch, kaleidoscope, wood."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import make_net
from vizrobust.attacks import Glitch, Kaleidoscope, Pixel, Wood
from vizrobust.attacks.unforeseen.patterns import bright, scattered
from vizrobust.attacks.unforeseen.unforeseen_attack import between
from vizrobust.rng import Streams

SHAPES = [(3, 29, 38), (1, 28, 28), (3, 70, 61)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(n: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def streams(n: int) -> Streams:
    return Streams(0, range(n), "attack")


@every_shape
class TestPixel:
    def test_blocks_are_mixed_with_their_upper_left_pixel(self, shape: tuple[int, int, int]) -> None:
        x = images(2, shape)
        attack = Pixel(eps=3.0)
        v = attack.init(x, streams(2))
        found, x, z = attack.apply(x, v).numpy(), x.numpy(), v["z"].numpy()
        block = 6 if shape[1] == 70 else 4
        assert z.shape == (2, shape[0], math.ceil(shape[1] / block), math.ceil(shape[2] / block))
        for k, c, i, j in np.ndindex(2, *shape):
            share = z[k, c, i // block, j // block]
            corner = x[k, c, i // block * block, j // block * block]
            assert abs(found[k, c, i, j] - ((1 - share) * x[k, c, i, j] + share * corner)) < 1e-12

    def test_shares_stay_in_their_ball(self, shape: tuple[int, int, int]) -> None:
        x, net = images(2, shape), make_net(shape=shape).double()
        (walk,) = Pixel(eps=2.5, steps=6).runs(net, x)
        state = walk.start(net, x, torch.arange(2), streams(2))
        for _ in range(7):
            z = state["params.z"]
            assert (z.flatten(1).norm(dim=1) <= 2.5 + 1e-9).all()
            assert z.min() >= 0
            assert z.max() <= 1
            walk.step(net, state)


@every_shape
def test_glitch_slides_bands_of_rows_aside(shape: tuple[int, int, int]) -> None:
    x = images(2, shape)
    attack = Glitch(eps=0.3)
    z = attack.init(x, streams(2))["z"]
    found = attack.apply(x, {"z": z}).numpy()
    rows = round(between(x, 2, 4))
    width = shape[2]
    assert z.abs().max() <= 0.3
    for k, c, i in np.ndindex(2, *shape[:2]):
        row = x[k, c, i].numpy()
        # The row and its mirror image to both sides, the border's pixel not repeated.
        longer = np.concatenate((row[:0:-1], row, row[-2::-1]))
        place = np.arange(width) + float(z[k, c, i // rows]) * width / 2
        assert np.abs(found[k, c, i] - np.interp(place, np.arange(len(longer)) - (width - 1), longer)).max() < 1e-9


@every_shape
def test_wood_darkens_along_bent_rings(shape: tuple[int, int, int]) -> None:
    x = images(1, shape)
    attack = Wood(eps=0.2)
    v = attack.init(x, streams(1))
    assert v["z"].abs().max() <= 0.2
    bent = attack.apply(x, v)
    straight = attack.apply(x, {"z": torch.zeros_like(v["z"])})
    assert (bent - straight).abs().max() > 0.1
    rings = round(between(x, 5, 4))
    for i, j in np.ndindex(*shape[1:]):
        y, u = (2 * i + 1) / shape[1] - 1, (2 * j + 1) / shape[2] - 1
        sine = abs(math.sin(math.pi * rings * math.hypot(y, u)))
        # The tip of a groove is rounded.
        assert torch.allclose(straight[0, :, i, j], x[0, :, i, j] * sine**0.125, atol=0.002 if sine > 0.01 else 0.5)
    assert (straight <= x).all()


class TestKaleidoscope:
    @every_shape
    def test_shapes_have_colours_within_eps_of_bright_ones_and_dim_rims(self, shape: tuple[int, int, int]) -> None:
        x = images(2, shape)
        attack = Kaleidoscope(eps=0.2)
        v = attack.init(x, streams(2))
        found = attack.apply(x, v)
        count = round(between(x, 5, 40))
        through = between(x, 0.2, 0.1)
        assert v["colours"].shape == (2, shape[0], count)
        shifts = v["z"][:, : count * shape[0]].reshape(2, shape[0], count)
        rims = v["z"][:, count * shape[0] :].reshape(2, *shape[1:])
        assert shifts.abs().max() <= 0.2
        assert rims.min() >= 0
        assert rims.max() <= 0.2
        seen = set()
        for k, i, j in np.ndindex(2, *shape[1:]):
            top, pixel = int(v["top"][k, i, j]), found[k, :, i, j]
            if v["rim"][k, i, j]:
                expected = rims[k, i, j].expand(shape[0])
            elif top:
                expected = (through * x[k, :, i, j] + v["colours"][k, :, top - 1] + shifts[k, :, top - 1]).clamp(0, 1)
                seen.add((k, top))
            else:
                expected = x[k, :, i, j]
            assert torch.allclose(pixel, expected)
        assert len(seen) > count, "most shapes are seen"

    def test_rims_cannot_be_darker_than_black(self) -> None:
        attack = Kaleidoscope(eps=0.2)
        v = attack.init(images(1, (3, 28, 28)), streams(1))
        back = attack.project({**v, "z": torch.full_like(v["z"], -3.0)})
        assert (back[:, :15] == -0.2).all()
        assert (back[:, 15:] == 0).all()

    def test_colours_are_those_of_hsv(self) -> None:
        found = bright(streams(4), 6, 3)
        for k, shape in np.ndindex(4, 6):
            _, saturation, value = colorsys.rgb_to_hsv(*found[k, :, shape].tolist())
            assert 0.7 - 1e-6 <= saturation <= 1
            assert 0.8 - 1e-6 <= value <= 1
        hue, saturation, value = streams(4).uniform(3, 6).unbind(1)
        expected = colorsys.hsv_to_rgb(float(hue[2, 5]), 0.7 + 0.3 * float(saturation[2, 5]), 0.8 + 0.2 * float(value[2, 5]))
        assert found[2, :, 5].tolist() == pytest.approx(expected, abs=1e-5)
        assert bright(streams(4), 6, 1).min() >= 0.8

    def test_shapes_have_the_areas_of_circles_triangles_and_squares(self) -> None:
        top, rim = scattered(streams(60), 1, 20.0, 120, 120)
        whole = [k for k in range(60) if not (rim | (top > 0))[k, [0, -1]].any() and not (rim | (top > 0))[k][:, [0, -1]].any()]
        areas = (top > 0).sum((1, 2))[whole]
        expected = torch.tensor([math.pi * 100, 3 * math.sqrt(3) * 100, 400.0])
        nearest = (areas[:, None] / expected - 1).abs().min(1)
        assert (nearest.values < 0.06).all()
        assert nearest.indices.unique().numel() == 3
        # A rim goes round about, two pixels wide.
        around = rim.sum((1, 2))[whole]
        assert (around > 1.7 * 62).all()
        assert (around < 3.2 * 104).all()
