"""Pixels that stay where they may, a spectrum that is orthonormal and complete, shared structure, networks of coordinates."""

import numpy as np
import pytest
import torch

from vizrobust.attacks import L2, Linf
from vizrobust.data import saturated_share
from vizrobust.features import CPPN, MACO, PARAMETRIZATIONS, Fourier, Pixels, SharedLowFrequency, for_shape
from vizrobust.features.parametrizations import IMAGENET_COLORS, color_directions, hartley, mixing
from vizrobust.rng import Streams


def hartley_matrix(n):
    """cos + sin of every product of position and frequency, over sqrt(n) (Hartley 1942)."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (8, 3), (1, 5)])
def test_hartley_is_the_transform_of_the_book(height, width):
    x = np.random.default_rng(0).normal(size=(2, 3, height, width))
    (cy, sy), (cx, sx) = hartley_matrix(height), hartley_matrix(width)
    # cas(a + b) = cos a cos b - sin a sin b + sin a cos b + cos a sin b
    expected = cy @ x @ cx - sy @ x @ sx + sy @ x @ cx + cy @ x @ sx
    assert np.allclose(hartley(torch.from_numpy(x)), expected / np.sqrt(height * width), atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (8, 3)])
def test_hartley_is_orthonormal_and_its_own_inverse(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    assert torch.allclose(hartley(hartley(x)), x, atol=1e-12)
    dense = hartley(torch.eye(height * width, dtype=torch.float64).reshape(-1, height, width)).flatten(1)
    assert torch.allclose(dense @ dense.T, torch.eye(height * width, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5, 6), (1, 4, 8), (3, 4, 3)], ids=str)
def test_no_coefficient_of_fourier_is_redundant(shape):
    z = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(Fourier(), z).reshape(z.numel(), z.numel())
    singular = torch.linalg.svdvals(jacobian)
    assert singular.min() > 1e-3
    assert torch.linalg.matrix_rank(jacobian) == z.numel()


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_spectrum_falls_with_frequency_as_stated(decay):
    height, width = 30, 24
    z = Fourier().init((1, height, width), Streams(0, range(200)))
    planes = torch.logit(Fourier(decay=decay)(z).double())
    power = np.abs(np.fft.fft2(planes.numpy()[:, 0])) ** 2
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    rings = [(f >= low) & (f < low + 0.05) for low in (0.05, 0.15, 0.25, 0.35, 0.45)]
    flat = [(power.mean(0) * f ** (2 * decay))[ring].mean() for ring in rings]
    assert max(flat) / min(flat) < 1.15
    # 1/f ends at the lowest frequency: the constant term is not infinite.
    lowest = (1 / height) ** (2 * decay)
    assert 0.7 < power[:, 0, 0].mean() * lowest / np.mean(flat) < 1.4


@pytest.mark.parametrize("size", [28, 32, 33, 63, 64, 97, 128, 224])
def test_rgb_starts_near_grey_at_any_size(size):
    image = Fourier()(Fourier().init((3, size, size), Streams(0, range(6))))
    assert 0.001 < (image - 0.5).std() < 0.03
    assert (image.mean() - 0.5).abs() < 0.01
    assert saturated_share(image).max() == 0


def test_rgb_starts_as_near_to_grey_as_lucid_s_pictures_do():
    """Measured: .0027 at 64 px, .0030 at 128 px (Lucid .0028 there), .0031 at 224 px."""
    for size, deviation in ((64, 0.0027), (128, 0.0030), (224, 0.0031)):
        image = Fourier()(Fourier().init((3, size, size), Streams(0, range(4))))
        assert float((image - 0.5).std()) == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("size", [28, 45, 64])
def test_grey_starts_near_grey_too(size):
    image = Fourier()(Fourier().init((1, size, size), Streams(0, range(6))))
    assert 0.001 < (image - 0.5).std() < 0.03


def test_color_directions_reproduce_the_covariance():
    for channels in (1, 3, 4):
        factor = np.random.default_rng(channels).normal(size=(channels, channels)) * 0.3
        covariance = torch.from_numpy(factor @ factor.T)
        found = torch.tensor(color_directions(covariance), dtype=torch.float64).reshape(channels, channels)
        assert torch.allclose(found @ found.T, covariance, atol=3e-4)
        lengths = found.norm(dim=0)
        assert (lengths[:-1] >= lengths[1:]).all()
        assert (found.sum(0) >= -1e-3).all()


def test_grey_has_one_direction_of_its_own_deviation():
    assert color_directions(torch.tensor([[0.09]])) == (0.3,)


def test_imagenet_s_matrix_is_normalised_to_a_longest_column_of_1():
    found = mixing(IMAGENET_COLORS, 3)
    assert torch.isclose(found.norm(dim=0).max(), torch.tensor(1.0))
    raw = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    assert torch.allclose(found, raw / (0.26**2 + 2 * 0.27**2) ** 0.5)


def test_colors_are_those_given():
    """A first direction along red alone moves no other channel."""
    z = torch.zeros(1, 3, 4, 5)
    z[0, 0, 1, 2] = 1.0
    image = Fourier(colors=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))(z)[0]
    assert (image[0] - 0.5).abs().max() > 0.01
    assert (image[1:] == 0.5).all()


def test_imagenet_s_colours_are_luminance_red_blue_and_green_magenta():
    columns = [(0.26, 0.27, 0.27), (0.09, 0.0, -0.09), (0.02, -0.05, 0.03)]
    for which, expected in enumerate(columns):
        z = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
        z[0, which, 1, 2] = 1.0
        rgb = torch.logit(Fourier()(z)[0]).flatten(1)
        direction = rgb[:, rgb.abs().sum(0).argmax()]
        cosine = torch.cosine_similarity(direction, torch.tensor(expected, dtype=torch.float64), dim=0)
        assert cosine.abs() > 1 - 1e-6


def test_colors_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"colors needs 4 x 4 numbers for 4 channels, got 9"):
        Fourier(colors=IMAGENET_COLORS)(torch.zeros(1, 4, 5, 6))


def test_pixels_start_around_grey_and_are_clipped():
    z = Pixels().init((3, 20, 16), Streams(0, range(9)))
    assert abs(float(z.mean()) - 0.5) < 0.003
    assert 0.048 < z.std() < 0.052
    assert (Pixels(deviation=0.0).init((3, 5, 4), Streams(0, range(2))) == 0.5).all()
    wide = Pixels(deviation=3.0).init((3, 5, 4), Streams(0, range(2)))
    assert wide.min() == 0
    assert wide.max() == 1
    assert torch.equal(Pixels().constrain(torch.tensor([[[[-0.2, 0.4, 1.7]]]]), z), torch.tensor([[[[0.0, 0.4, 1.0]]]]))


@pytest.mark.parametrize("ball", [L2(eps=0.7), Linf(eps=0.1)], ids=repr)
def test_pixels_with_a_ball_stay_near_their_start(ball):
    param = Pixels(ball=ball)
    start = torch.rand(4, 3, 9, 7)
    for length in (0.001, 0.05, 5.0):
        moved = start + length * torch.randn(4, 3, 9, 7)
        found = param.constrain(moved, start)
        assert (ball.norm(found - start) <= ball.eps + 1e-6).all()
        assert found.min() >= 0
        assert found.max() <= 1
    inside = (start + 1e-4 * torch.randn_like(start)).clamp(0, 1)
    assert torch.allclose(param.constrain(inside, start), inside, atol=1e-7)


# From an image back to its numbers

OWN = (0.3, 0.1, 0.02, 0.28, -0.02, -0.05, 0.31, -0.07, 0.04)


@pytest.mark.parametrize("size", [(12, 10), (11, 10), (12, 9), (13, 7)], ids=str)
@pytest.mark.parametrize(
    "param",
    [
        Pixels(),
        Fourier(),
        Fourier(decay=0.5),
        Fourier(colors=OWN),
        SharedLowFrequency(group_size=1),
        SharedLowFrequency(inner=Fourier(colors=OWN), group_size=1),
    ],
    ids=repr,
)
def test_the_numbers_of_an_image_make_that_image(param, size):
    images = 0.02 + 0.96 * torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(param(param.invert(images)), images, atol=1e-6)
    assert torch.allclose(param(param.invert(images.float())), images.float(), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_images_and_those_of_four_channels_too(channels):
    images = 0.02 + 0.96 * torch.rand(2, channels, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(Fourier()(Fourier().invert(images)), images, atol=1e-6)


@pytest.mark.parametrize("make", [m for m in PARAMETRIZATIONS.values() if hasattr(m, "invert")], ids=lambda m: m.__name__)
@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 9, 13), (4, 7, 10)], ids=str)
def test_black_white_and_flat_images_are_a_start_too(make, shape):
    param = make()
    noise = torch.rand(4, *shape, generator=torch.Generator().manual_seed(3))
    for images in (noise, (noise > 0.5).float(), torch.full_like(noise, 0.5), torch.zeros_like(noise)):
        z = param.invert(images)
        assert z.shape == param.init(shape, Streams(0, range(4))).shape
        assert z.dtype == torch.float32
        assert param.invert(images.double()).dtype == torch.float64
        z.requires_grad_()
        (grad,) = torch.autograd.grad(param(z).square().sum(), z)
        assert torch.isfinite(param(z)).all()
        assert torch.isfinite(grad).all()


def test_fourier_brings_pixels_to_where_the_sigmoid_has_a_gradient():
    images = torch.tensor([0.0, 0.01, 0.5, 0.995, 1.0, 0.3]).reshape(1, 1, 2, 3)
    expected = torch.tensor([0.02, 0.02, 0.5, 0.98, 0.98, 0.3]).reshape(1, 1, 2, 3)
    assert torch.allclose(Fourier()(Fourier().invert(images)), expected, atol=1e-5)


# What the faces of a unit share


def coefficients(image):
    planes = np.linalg.inv(mixing(None, 3).double().numpy()) @ torch.logit(image.double()).flatten(2).numpy()
    return np.fft.fft2(planes.reshape(image.shape))


@pytest.mark.parametrize(("height", "width"), [(16, 12), (15, 20)])
def test_large_structure_is_shared_within_a_group_and_nowhere_else(height, width):
    param = SharedLowFrequency(group_size=3, cutoff=2.5)
    z = param.init((3, height, width), Streams(0, range(6))).double() * 30
    found = coefficients(param(z))
    ky, kx = np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width)
    low = np.hypot(ky[:, None], kx) <= 2.5
    for a in range(6):
        for b in range(a):
            same = np.isclose(found[a], found[b], atol=1e-5).all(0)
            assert same[low].all() == (a // 3 == b // 3)
            assert not same[~low].any()
    own = coefficients(Fourier()(z))
    assert np.allclose(found[..., ~low], own[..., ~low], atol=1e-5)
    assert np.allclose(found[:3][..., low], own[:3].mean(0)[..., low], atol=1e-5)


@pytest.mark.parametrize("inner", [Fourier(), MACO()], ids=repr)
def test_shared_images_start_as_varied_as_others(inner):
    alone = inner(inner.init((1, 16, 16), Streams(0, range(200)))).std()
    together = SharedLowFrequency(inner=inner)
    assert together(together.init((1, 16, 16), Streams(0, range(200)))).std() == pytest.approx(float(alone), rel=0.1)


def test_no_cycles_share_the_mean_alone_and_one_face_shares_nothing():
    z = Fourier().init((3, 9, 8), Streams(0, range(4))).double() * 30
    found, own = coefficients(SharedLowFrequency(cutoff=0.0)(z)), coefficients(Fourier()(z))
    assert np.allclose(found[..., 0, 0], own[..., 0, 0].mean(0))
    assert np.allclose(found.reshape(4, 3, -1)[..., 1:], own.reshape(4, 3, -1)[..., 1:])
    assert torch.equal(SharedLowFrequency(group_size=1)(z), Fourier()(z))


def test_shared_refuses_what_is_no_group():
    with pytest.raises(ValueError, match="SharedLowFrequency: 5 images do not divide into groups of 4"):
        SharedLowFrequency()(torch.zeros(5, 3, 8, 8))
    with pytest.raises(ValueError, match="SharedLowFrequency: group_size must be at least 1, got 0"):
        SharedLowFrequency(group_size=0)
    with pytest.raises(ValueError, match="SharedLowFrequency: cutoff must not be negative, got -1"):
        SharedLowFrequency(cutoff=-1)


# Networks of coordinates


def test_a_cppn_is_the_network_of_its_definition():
    height, width, units = 5, 8, 3
    param = CPPN(width=units, depth=2, colors=OWN).for_shape((3, height, width))
    z = param.init((3, height, width), Streams(0, range(2))).double() * 2
    image = param(z).numpy()
    matrix = mixing(OWN, 3).double().numpy()
    for which in range(2):
        numbers = iter(z[which].tolist())

        def taken(count, numbers=numbers):
            return np.array([next(numbers) for _ in range(count)])

        layers = [
            (taken(o), taken(o * i).reshape(o, i) / np.sqrt(i)) for i, o in ((2, units), (2 * units, units), (2 * units, 3))
        ]
        assert next(numbers, None) is None
        for y in range(height):
            for x in range(width):
                values = np.array([(2 * x + 1 - width) / width, (2 * y + 1 - height) / width]) * np.sqrt(3)
                for bias, weight in layers[:-1]:
                    arc = np.arctan(weight @ values + bias)
                    values = np.concatenate((arc / 0.67, (arc**2 - 0.45) / 0.40))
                planes = layers[-1][1] @ values + layers[-1][0]
                assert np.allclose(image[which, :, y, x], 1 / (1 + np.exp(-matrix @ planes)), atol=1e-6)


def test_a_cppn_s_picture_is_the_same_at_any_size():
    z = CPPN().init((3, 10, 8), Streams(0, range(3))).double()
    small, large = (CPPN().for_shape((3, *size))(z) for size in ((10, 8), (30, 24)))
    # The middle of every nine pixels lies where the one pixel did.
    assert torch.allclose(large[:, :, 1::3, 1::3], small, atol=1e-6)


def test_a_cppn_s_units_keep_mean_0_and_deviation_1_through_the_layers():
    arc = torch.atan(torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for values in (arc / 0.67, (arc**2 - 0.45) / 0.40):
        assert abs(float(values.mean())) < 0.02
        assert float(values.std()) == pytest.approx(1, abs=0.03)
    image = CPPN().for_shape((3, 32, 32))(CPPN().init((3, 32, 32), Streams(0, range(20))))
    assert 0.002 < image.std() < 0.05
    assert saturated_share(image).max() == 0


def test_a_cppn_must_know_its_images_size():
    z = CPPN().init((3, 8, 6), Streams(0, range(2)))
    with pytest.raises(ValueError, match=r"CPPN: the weights do not tell the images' size; use CPPN\(...\).sized"):
        CPPN()(z)
    with pytest.raises(ValueError, match="CPPN: width and depth must be at least 1, got 0 and 8"):
        CPPN(width=0)
    with pytest.raises(ValueError, match=r"CPPN: shape must be \(channels, height, width\), got \(3, 0, 5\)"):
        CPPN(shape=(3, 0, 5))
    assert for_shape(CPPN(width=5), (3, 8, 6)) == CPPN(width=5, shape=(3, 8, 6))
    assert for_shape(Fourier(), (3, 8, 6)) == Fourier()
