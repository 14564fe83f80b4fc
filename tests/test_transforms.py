"""Each transform against the same thing done by hand in numpy or by scipy, on oblong images."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from vizrobust.features import Affine, Jitter, Pad
from vizrobust.features.transforms import transformed
from vizrobust.rng import Streams


class Fixed:
    """Streams that always draw these numbers; 0, .5 and 1 are the least, middle and greatest."""

    def __init__(self, *draws):
        self.draws = draws

    def uniform(self, count):
        return torch.tensor([self.draws[:count]])


def shifts(image, out, dy, dx):
    """Every (up or down, left or right) shift of the mirrored image that gives `out`."""
    padded = np.pad(image, ((0, 0), (dy, dy), (dx, dx)), mode="reflect")
    height, width = image.shape[1:]
    return [
        (top - dy, left - dx)
        for top in range(2 * dy + 1)
        for left in range(2 * dx + 1)
        if np.array_equal(padded[:, top : top + height, left : left + width], out)
    ]


@pytest.mark.parametrize(("height", "width", "dy", "dx"), [(32, 16, 2, 1), (64, 32, 4, 2), (28, 47, 2, 3)])
def test_jitter_is_a_mirrored_shift_and_reaches_every_one(height, width, dy, dx):
    image = torch.rand(1, 3, height, width)
    out = Jitter(size=1 / 16)(image.expand(300, -1, -1, -1), Streams(0, range(300)))
    found = [shifts(image[0].numpy(), one.numpy(), dy, dx) for one in out]
    assert all(len(each) == 1 for each in found)
    counts = dict.fromkeys({each[0] for each in found}, 0)
    for each in found:
        counts[each[0]] += 1
    assert set(counts) == {(y, x) for y in range(-dy, dy + 1) for x in range(-dx, dx + 1)}
    assert max(counts.values()) < 4 * 300 / len(counts)


def test_jitter_never_asks_for_more_than_a_mirror_has():
    image = torch.rand(3, 1, 4, 6)
    assert Jitter(size=1.0)(image, Streams(0, range(3))).shape == image.shape


def by_scipy(image, matrix, offset):
    """out(p) = in(M (p - centre) + centre + offset), p = (row, column), linear, mirrored at the edge."""
    centre = (np.array(image.shape[1:]) - 1) / 2
    return np.stack([
        ndimage.affine_transform(plane, matrix, centre - matrix @ centre + offset, order=1, mode="reflect")
        for plane in image.astype(np.float64)
    ])  # fmt: skip


def smooth(height, width):
    return torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((3, height, width)), (0, 1, 1))).float()


@pytest.mark.parametrize(("height", "width"), [(24, 18), (15, 31)])
@pytest.mark.parametrize(
    ("affine", "draws", "zoom", "degrees", "shift"),
    [
        (Affine(scale=0.25, rotate=0.0), (1.0, 0.5, 0.5, 0.5), 1 / 1.25, 0, (0, 0)),
        (Affine(scale=0.25, rotate=0.0), (0.0, 0.5, 0.5, 0.5), 1.25, 0, (0, 0)),
        (Affine(scale=0.0, rotate=0.0, shift=0.125), (0.5, 0.5, 1.0, 0.0), 1, 0, (-0.125, 0.125)),
        (Affine(scale=0.0, rotate=30.0), (0.5, 1.0, 0.5, 0.5), 1, 30, (0, 0)),
        (Affine(scale=0.2, rotate=20.0, shift=0.1), (1.0, 0.0, 0.0, 1.0), 1 / 1.2, -20, (0.1, -0.1)),
    ],
    ids=["in", "out", "shift", "rotate", "all"],
)
def test_affine_is_scipy_s(height, width, affine, draws, zoom, degrees, shift):
    image = smooth(height, width)
    out = affine(image[None], Fixed(*draws))[0].numpy()
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = by_scipy(image.numpy(), zoom * np.array([[cos, sin], [-sin, cos]]), np.array(shift) * (height, width))
    assert np.abs(out - expected).max() < 1e-4


def test_a_quarter_turn_of_a_square_is_rot90():
    image = torch.rand(1, 3, 17, 17)
    turned = Affine(scale=0.0, rotate=90.0)(image, Fixed(0.5, 1.0, 0.5, 0.5))
    assert torch.allclose(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5)


def test_affine_s_amplitudes_grow_with_the_image():
    for height, width in ((16, 32), (32, 64)):
        image = torch.rand(1, 1, height, width)
        moved = Affine(scale=0.0, rotate=0.0, shift=1 / 8)(image, Fixed(0.5, 0.5, 1.0, 1.0))
        dy, dx = height // 8, width // 8
        assert torch.allclose(moved[:, :, :-dy, :-dx], image[:, :, dy:, dx:], atol=1e-5)


def test_affine_draws_over_its_whole_range():
    line = torch.zeros(400, 1, 1, 101)
    line[:, 0, 0, 50] = 1.0
    out = Affine(scale=0.0, rotate=0.0, shift=0.2)(line, Streams(0, range(400)))[:, 0, 0]
    centre = (out * torch.arange(101)).sum(1) / out.sum(1) - 50
    assert -20.3 < centre.min() < -18
    assert 18 < centre.max() < 20.3
    assert abs(float(centre.mean())) < 2


def test_pad_grows_the_canvas_and_transformed_crops_it_back():
    image = torch.rand(2, 3, 16, 24)
    out = Pad(size=1 / 8, value=0.25)(image, Streams(0, range(2)))
    assert out.shape == (2, 3, 20, 30)
    assert torch.equal(out[:, :, 2:18, 3:27], image)
    assert (out[:, :, :2] == 0.25).all()
    assert (out[..., -3:] == 0.25).all()
    assert torch.equal(transformed(image, (Pad(size=1 / 8),), Streams(0, range(2))), image)


def test_behind_a_pad_a_jitter_shows_the_padding():
    image = torch.ones(40, 1, 16, 16)
    out = transformed(image, (Pad(size=1 / 4, value=0.0), Jitter(size=1 / 8)), Streams(0, range(40)))
    assert out.shape == image.shape
    assert (out == 0).any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Jitter(size=-0.1), "Jitter: size must be between 0 and 1, got -0.1"),
        (lambda: Pad(size=2), "Pad: size must be between 0 and 1, got 2"),
        (lambda: Pad(value=1.5), "Pad: value must be between 0 and 1, got 1.5"),
        (lambda: Affine(scale=-1), "Affine: scale must be between 0 and 1, got -1"),
        (lambda: Affine(shift=3), "Affine: shift must be between 0 and 1, got 3"),
        (lambda: Affine(rotate=200), "Affine: rotate must be between 0 and 180 degrees, got 200"),
    ],
)
def test_a_strength_out_of_range_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
