"""What each ball says about its radius; what all balls share is in contracts/test_balls.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vizrobust.attacks import L2, Ball, Linf, radius
from vizrobust.rng import Streams


@pytest.fixture
def delta() -> torch.Tensor:
    """(6, 3, 5, 4): from far inside to far outside."""
    noise = torch.randn(6, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([1e-9, 0.01, 0.1, 0.3, 1.0, 100.0], dtype=torch.float64).reshape(-1, 1, 1, 1)


def test_norms_are_numpys(delta: torch.Tensor) -> None:
    flat = delta.flatten(1).numpy()
    np.testing.assert_allclose(Linf(0.3).norm(delta), np.linalg.norm(flat, np.inf, axis=1), rtol=1e-15)
    np.testing.assert_allclose(L2(0.3).norm(delta), np.linalg.norm(flat, 2, axis=1), rtol=1e-14)


def test_projections_are_the_formulas(delta: torch.Tensor) -> None:
    np.testing.assert_array_equal(Linf(0.3).project(delta), np.clip(delta.numpy(), -0.3, 0.3))
    length = np.linalg.norm(delta.flatten(1).numpy(), axis=1)
    shrink = np.where(length > 0.3, 0.3 / length, 1).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(L2(0.3).project(delta), delta.numpy() * shrink, rtol=1e-14)


def test_what_is_inside_stays_bit_for_bit() -> None:
    delta = torch.randn(5, 3, 7, 4) * 1e-3
    assert torch.equal(Linf(0.3).project(delta), delta)
    assert torch.equal(L2(0.3).project(delta), delta)
    zero = torch.zeros(2, 3, 7, 4)
    assert torch.equal(L2(0.3).project(zero), zero)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-22, 1e-13, 1.0, 1e30])
def test_a_vanishing_gradient_still_has_its_direction(size: float) -> None:
    # Cross entropy of a network that is sure of itself has gradients like these; not to move would mask them.
    grad = torch.tensor([3.0, -4.0, 0.0, 0.0]).reshape(1, 1, 2, 2) * size
    expected = torch.tensor([0.6, -0.8, 0.0, 0.0]).reshape(1, 1, 2, 2)
    tolerance = 0.2 if size < 1e-40 else 1e-6  # numbers that small have hardly any digits
    assert torch.allclose(L2(1.0).steepest(grad), expected, atol=tolerance)
    assert torch.equal(Linf(1.0).steepest(grad), expected.sign())


def test_linf_samples_are_uniform_in_every_pixel() -> None:
    sample = Linf(0.3).sample(torch.zeros(2000, 1, 2, 2), Streams(0, range(2000), "ball")).flatten(1)
    for pixel in sample.T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-0.3, 0.6).cdf).pvalue > 0.01
    assert (torch.corrcoef(sample.T) - torch.eye(4)).abs().max() < 4 / 2000**0.5


def test_l2_sample_directions_have_no_preferred_axis() -> None:
    sample = L2(2.0).sample(torch.zeros(4000, 1, 2, 2), Streams(0, range(4000), "ball")).flatten(1)
    assert (sample.mean(0).abs() < 4 * (4 / 6 / 4000) ** 0.5).all()
    covariance = torch.cov(sample.T)
    # E[x_i x_j] in a d-ball of radius r is r^2 / (d + 2) on the diagonal, 0 beside it.
    assert torch.allclose(covariance, 4 / 6 * torch.eye(4), atol=0.06)


@pytest.mark.parametrize("eps", [8, 255, 1.5, 2])
def test_an_l_inf_radius_in_grey_levels_is_caught(eps: float) -> None:
    with pytest.raises(ValueError, match=f"Linf: eps {eps:g} is above 1; images are in \\[0, 1\\], so write {eps:g}/255"):
        Linf(eps)


def test_an_l2_radius_may_exceed_one() -> None:
    assert L2(3).eps == 3.0


@pytest.mark.parametrize("ball", [Linf, L2])
def test_impossible_radii_are_refused(ball: type) -> None:
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must not be negative, got -0.1"):
        ball(-0.1)
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must be finite, got inf"):
        ball(float("inf"))
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must be a number, got nan"):
        ball(float("nan"))
    with pytest.raises(ValueError, match=f'{ball.__name__}: eps must be a number, got "8/255"'):
        ball("8/255")


@pytest.mark.parametrize("ball", [Linf(), L2()], ids=repr)
def test_a_radius_that_is_still_open_says_so(ball: Ball, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"has no eps: write \w+\(eps=8/255\), or fit the attack to a data set"):
        radius(ball)
    with pytest.raises(ValueError, match="has no eps"):
        ball.project(images[0])
    with pytest.raises(ValueError, match="has no eps"):
        ball.sample(images[0], Streams(0, range(5)))
