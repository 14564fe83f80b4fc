"""Each transform against the same thing done by hand in numpy or by scipy, on oblong images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import affine as torchvision_affine

from vizrobust.features.transforms import TRANSFORMS, Blur, Crops, Jitter, Pad, sampling, transformed
from vizrobust.features.transforms.geometry import Affine, Flip, Rotate, Scale, Shift
from vizrobust.features.transforms.sampling import windows
from vizrobust.rng import Streams
from vizrobust.spec import parse


class Fixed:
    """Streams that always draw these numbers; 0, .5 and 1 are the least, middle and greatest."""

    def __init__(self, *draws):
        self.draws = draws

    def uniform(self, count):
        drawn, self.draws = self.draws[:count], self.draws[count:]
        return torch.tensor([drawn])


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
        ndimage.affine_transform(plane, matrix, centre - matrix @ centre + offset, order=1, mode="mirror")
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


# Draws that are strong but leave a smooth picture's middle inside; and each as (matrix, offset) of out(p) = in(M p + o).
CHAIN = (Jitter(size=0.1), Scale(size=0.2), Rotate(degrees=40.0), Shift(size=0.1), Jitter(size=0.05))
DRAWS = (0.9, 0.1, 0.8, 0.5, 0.85, 0.2, 0.7, 0.05, 0.95)


def by_hand(height, width):
    """(matrix, offset) in (row, column) of each link of CHAIN at DRAWS."""
    eye = np.eye(2)
    dy, dx = round(0.1 * height), round(0.1 * width)
    yield eye, np.array([int(0.9 * (2 * dy + 1)) - dy, int(0.1 * (2 * dx + 1)) - dx])
    yield eye / (1 + 0.2 * 0.6), np.zeros(2)
    angle = np.radians(40 * 0.7)
    yield np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]), np.zeros(2)
    yield eye, np.array([0.1 * height * -0.6, 0.1 * width * 0.4])
    dy, dx = round(0.05 * height), round(0.05 * width)
    yield eye, np.array([int(0.05 * (2 * dy + 1)) - dy, int(0.95 * (2 * dx + 1)) - dx])


@pytest.mark.parametrize(("height", "width"), [(48, 62), (61, 45)])
def test_a_chain_is_its_links_one_after_the_other(height, width):
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((3, height, width)), (0, 4, 4))).float()
    out = transformed(image[None], CHAIN, Fixed(*DRAWS))[0].numpy()
    expected, matrix, offset = image.numpy(), np.eye(2), np.zeros(2)
    for step, shift in by_hand(height, width):
        expected = by_scipy(expected, step, shift)
        # p -> M p + o of the whole: the next link's map first.
        offset, matrix = matrix @ shift + offset, matrix @ step
    assert np.abs(out - by_scipy(image.numpy(), matrix, offset)).max() < 1e-4
    # Behind their edges the links mirror pictures that are already turned; the chain mirrors the image.
    middle = np.s_[:, height // 3 : -height // 3, width // 3 : -width // 3]
    assert np.abs(out - expected)[middle].max() < 0.02 * np.ptp(image.numpy())
    assert np.abs(out - image.numpy())[middle].max() > 0.1 * np.ptp(image.numpy())


@pytest.mark.parametrize(
    "transforms", [(Jitter(), Jitter()), CHAIN, (Pad(), *CHAIN), (*CHAIN, Crops()), (Crops(), *CHAIN)], ids=str
)
def test_a_run_is_sampled_once_at_most(transforms, monkeypatch):
    calls = []
    sample = F.grid_sample
    monkeypatch.setattr(sampling.F, "grid_sample", lambda *args, **options: calls.append(1) or sample(*args, **options))
    transformed(torch.rand(2, 3, 30, 24), transforms, Streams(0, range(2)))
    assert len(calls) == (0 if set(map(type, transforms)) == {Jitter} else 1)
    transformed(torch.rand(2, 3, 30, 24), (*transforms, Blur(), Scale()), Streams(0, range(2)))
    assert len(calls) == (1 if set(map(type, transforms)) == {Jitter} else 3)


@pytest.mark.parametrize("edge", ["reflect", "constant", "wrap"])
@pytest.mark.parametrize(("height", "width"), [(9, 14), (12, 7)])
def test_jitters_alone_move_pixels_exactly_and_else_to_rounding(height, width, edge):
    """Integer shifts add up; the resampling, which a rotation of 0 degrees forces, shows the same edge."""
    image = torch.rand(60, 2, height, width)
    jitters = (Pad(mode=edge, value=0.3), Jitter(size=0.2), Jitter(size=0.3))
    out = transformed(image, jitters, Streams(0, range(60)))
    numpy_mode = {"reflect": {"mode": "reflect"}, "wrap": {"mode": "wrap"}, "constant": {"constant_values": 0.3}}[edge]
    dy, dx = round(0.2 * height) + round(0.3 * height), round(0.2 * width) + round(0.3 * width)
    draws = Streams(0, range(60)).uniform(4).double().numpy()
    sizes = [round(share * side) for share in (0.2, 0.3) for side in (height, width)]
    shift = np.floor(draws * (2 * np.array(sizes) + 1)).astype(int)
    top, left = shift[:, 0] + shift[:, 2], shift[:, 1] + shift[:, 3]
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (dy, dy), (dx, dx)), **numpy_mode)
    expected = np.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(zip(top, left, strict=True))])
    assert np.array_equal(out.numpy(), expected)
    resampled = transformed(image, (*jitters, Rotate(degrees=1e-9)), Streams(0, range(60)))
    assert torch.allclose(resampled, out, atol=1e-5)


@pytest.mark.parametrize("edge", ["reflect", "constant", "wrap"])
def test_the_gradient_of_shifted_windows_is_that_of_padding_and_cutting(edge):
    image = torch.rand(12, 2, 7, 10, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(12, 2, 7, 10, dtype=torch.float64)
    corners = [(y, x) for y in (-3, 0, 1, 3) for x in (-4, -1, 4)]
    mode = "circular" if edge == "wrap" else edge
    padded = F.pad(image, (5, 5, 4, 4), mode=mode)
    plain = torch.stack([padded[i, :, 4 + y : 11 + y, 5 + x : 15 + x] for i, (y, x) in enumerate(corners)])
    out = windows(image, corners, (4, 5), edge, 0.0)
    assert torch.equal(out, plain)
    (expected,) = torch.autograd.grad((plain * weights).sum(), image)
    (grad,) = torch.autograd.grad((out * weights).sum(), image)
    assert torch.allclose(grad, expected, rtol=1e-12)


def test_jitters_that_reach_further_than_a_mirror_are_resampled():
    image = torch.rand(40, 1, 6, 9)
    out = transformed(image, (Jitter(size=0.8), Jitter(size=0.8)), Streams(0, range(40)))
    assert out.shape == image.shape
    far = np.pad(image.numpy(), ((0, 0), (0, 0), (10, 10), (14, 14)), mode="reflect")
    for i in range(40):
        windows = np.lib.stride_tricks.sliding_window_view(far[i, 0], (6, 9))
        assert np.abs(windows - out[i, 0].numpy()).max((2, 3)).min() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(20, 32), (31, 15)])
def test_scale_and_rotate_are_torchvision_s(height, width):
    image = smooth(height, width)
    out = transformed(image[None], (Pad(value=0.0), Scale(size=0.3), Rotate(degrees=50.0)), Fixed(0.9, 0.0, 0.8))[0]
    expected = torchvision_affine(
        image, angle=-50 * 0.6, translate=[0, 0], scale=1 + 0.3 * 0.8, shear=[0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    # torchvision leaves out the half of the outermost pixels that lies outside.
    assert ((out - expected).abs() < 1e-4).float().mean() > 0.9
    inside = np.s_[:, height // 4 : -height // 4, width // 4 : -width // 4]
    assert (out - expected)[inside].abs().max() < 1e-4


@pytest.mark.parametrize("turns", [1, -1])
def test_a_quarter_turn_of_an_oblong_image_is_rot90_of_its_middle(turns):
    image = torch.rand(1, 3, 18, 30)
    turned = transformed(image, (Pad(value=0.25), Rotate(degrees=90.0, choices=2)), Fixed(0.5, 0.0 if turns == 1 else 0.9))
    middle = torch.rot90(image[..., 6:24], turns, (2, 3))
    assert torch.allclose(turned[..., 6:24], middle, atol=1e-5)
    assert torch.allclose(turned[..., :5], torch.tensor(0.25), atol=1e-5)


def drawn(move, size=(24, 40), n=4000):
    """(n, 3, 3): the maps of n images."""
    return move.matrices(Streams(0, range(n)).uniform(move.draws).double().numpy(), size)


def spreads_evenly(values, low, high):
    assert values.min() >= low - 1e-9
    assert values.max() <= high + 1e-9
    counts = np.histogram(values, bins=8, range=(low, high))[0]
    assert np.abs(counts / len(values) - 1 / 8).max() < 0.025


def test_every_amplitude_is_kept_and_used_evenly():
    for size in ((24, 40), (48, 80)):
        spreads_evenly(1 / drawn(Scale(size=0.3), size)[:, 0, 0], 0.7, 1.3)
        maps = drawn(Rotate(degrees=25.0), size)
        spreads_evenly(np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])), -25, 25)
        maps = drawn(Shift(size=0.25), size)
        spreads_evenly(maps[:, 0, 2] / size[1], -0.25, 0.25)
        spreads_evenly(maps[:, 1, 2] / size[0], -0.25, 0.25)
        maps = drawn(Jitter(size=0.125), size)
        dy, dx = size[0] // 8, size[1] // 8
        assert set(maps[:, 1, 2]) == set(range(-dy, dy + 1))
        assert set(maps[:, 0, 2]) == set(range(-dx, dx + 1))


def test_lucid_s_choices():
    zooms, counts = np.unique((1 / drawn(Scale(choices=11))[:, 0, 0]).round(6), return_counts=True)
    assert np.allclose(zooms, np.arange(0.9, 1.11, 0.02))
    assert np.abs(counts / 4000 - 1 / 11).max() < 0.02
    maps = drawn(Rotate(choices=21, still_share=5 / 26))
    angles, counts = np.unique(np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])).round(6), return_counts=True)
    assert np.array_equal(angles, np.arange(-10, 11))
    assert abs(counts[10] / 4000 - 6 / 26) < 0.02
    assert np.abs(np.delete(counts, 10) / 4000 - 1 / 26).max() < 0.02


def test_a_flip_is_left_to_right_for_its_share_of_the_images():
    image = torch.rand(400, 1, 5, 8)
    out = Flip(share=0.25)(image, Streams(0, range(400)))
    flipped = ((out - image.flip(3)).abs().amax((1, 2, 3)) < 1e-5).float()
    assert (((out - image).abs().amax((1, 2, 3)) < 1e-5) | flipped.bool()).all()
    assert 0.19 < flipped.mean() < 0.31


def test_behind_a_pad_stands_its_value_without_end():
    image = torch.ones(40, 1, 16, 12)
    for moves in ((Jitter(size=1.0),), (Shift(size=1.0),), (Affine(shift=1.0),)):
        out = transformed(image, (Pad(value=0.25), *moves), Streams(0, range(40)))
        # Pixels between the picture and its frame are a mixture; all else is one of both.
        assert out.min() >= 0.25 - 1e-6
        assert out.max() <= 1 + 1e-6
        assert ((out - 0.25).abs() < 1e-5).float().mean() > 0.3
        assert (out > 0.99).float().mean() > 0.1


def test_a_pad_holds_for_what_stands_behind_it():
    image = torch.rand(30, 1, 16, 12)
    assert torch.equal(transformed(image, (Pad(),), Streams(0, range(30))), image)
    framed = transformed(image, (Jitter(size=0.5), Pad(value=0.0)), Streams(0, range(30)))
    assert (framed > 0).float().mean() > 0.99
    assert (transformed(image, (Pad(value=0.0), Blur(), Jitter(size=0.5)), Streams(0, range(30))) == 0).any()


def test_no_recipe_flips():
    from vizrobust.features import RECIPES

    assert "Flip" in TRANSFORMS
    assert not any("Flip" in repr(make()) for make in RECIPES.values())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Jitter(size=-0.1)", "size must be between 0 and 1, got -0.1"),
        ('Pad(mode="zeros")', "mode must be one of reflect, constant, wrap, got 'zeros'"),
        ("Scale(size=1)", "size must be at least 0 and less than 1, got 1"),
        ("Scale(choices=0)", "choices must be at least 1, got 0"),
        ("Rotate(degrees=-1)", "degrees must be between 0 and 180 degrees, got -1"),
        ("Rotate(still_share=2)", "still_share must be between 0 and 1, got 2"),
        ("Shift(size=2)", "size must be between 0 and 1, got 2"),
        ("Flip(share=2)", "share must be between 0 and 1, got 2"),
        ("Blur(sigma=-1)", "sigma must be between 0 and 1, got -1"),
        ("Noise(deviation=2)", "deviation must be between 0 and 1, got 2"),
        ("Crops(count=0)", "count must be at least 1, got 0"),
        ("Crops(low=0.3)", "low and high must be 0 < low <= high <= 1, got 0.3 and 0.25"),
        ("Crops(pixels=0)", "pixels must be at least 1, got 0"),
        ("Pad(value=1.5)", "value must be between 0 and 1, got 1.5"),
        ("Affine(scale=-1)", "scale must be between 0 and 1, got -1"),
        ("Affine(shift=3)", "shift must be between 0 and 1, got 3"),
        ("Affine(rotate=200)", "rotate must be between 0 and 180 degrees, got 200"),
    ],
)
def test_a_strength_out_of_range_is_refused(text, sentence):
    with pytest.raises(ValueError, match=f"{text.partition('(')[0]}: {sentence}"):
        parse(text, TRANSFORMS)
