"""Pixels that stay where they may, and a spectrum that is orthonormal, complete and falls as 1/f."""

import numpy as np
import pytest
import torch

from vizrobust.attacks import L2, Linf
from vizrobust.data import saturated_share
from vizrobust.features import Fourier, Pixels
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
