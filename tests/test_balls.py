"""What each ball says about its radius; what all balls share is in contracts/test_balls.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vizrobust.attacks import BIM, FGSM, L1, L2, PGD, Ball, Linf, epsilon
from vizrobust.attacks.threat_models import nearest_in_l1
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
    np.testing.assert_allclose(L1(0.3).norm(delta), np.linalg.norm(flat, 1, axis=1), rtol=1e-14)


def test_projections_are_the_formulas(delta: torch.Tensor) -> None:
    np.testing.assert_array_equal(Linf(0.3).project(delta), np.clip(delta.numpy(), -0.3, 0.3))
    length = np.linalg.norm(delta.flatten(1).numpy(), axis=1)
    shrink = np.where(length > 0.3, 0.3 / length, 1).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(L2(0.3).project(delta), delta.numpy() * shrink, rtol=1e-14)


def test_what_is_inside_stays_bit_for_bit() -> None:
    delta = torch.randn(5, 3, 7, 4) * 1e-3
    assert torch.equal(Linf(0.3).project(delta), delta)
    assert torch.equal(L2(0.3).project(delta), delta)
    assert torch.equal(L1(1.0).project(delta), delta)
    zero = torch.zeros(2, 3, 7, 4)
    assert torch.equal(L2(0.3).project(zero), zero)
    assert torch.equal(L1(0.3).project(zero), zero)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-22, 1e-13, 1.0, 1e30])
def test_a_vanishing_gradient_still_has_its_direction(size: float) -> None:
    # Cross entropy of a network that is sure of itself has gradients like these; not to move would mask them.
    grad = torch.tensor([3.0, -4.0, 0.0, 0.0]).reshape(1, 1, 2, 2) * size
    expected = torch.tensor([0.6, -0.8, 0.0, 0.0]).reshape(1, 1, 2, 2)
    tolerance = 0.2 if size < 1e-40 else 1e-6  # numbers that small have hardly any digits
    assert torch.allclose(L2(1.0).steepest_direction(grad), expected, atol=tolerance)
    assert torch.equal(Linf(1.0).steepest_direction(grad), expected.sign())


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
    assert L1(12).eps == 12.0


@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_impossible_radii_are_refused(ball: type) -> None:
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must not be negative, got -0.1"):
        ball(-0.1)
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must be finite, got inf"):
        ball(float("inf"))
    with pytest.raises(ValueError, match=f"{ball.__name__}: eps must be a number, got nan"):
        ball(float("nan"))
    with pytest.raises(ValueError, match=f'{ball.__name__}: eps must be a number, got "8/255"'):
        ball("8/255")


@pytest.mark.parametrize("ball", [Linf(), L2(), L1()], ids=repr)
def test_a_radius_that_is_still_open_says_so(ball: Ball, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"has no eps: write \w+\(eps=8/255\), or give the attack eps=8/255"):
        epsilon(ball)
    with pytest.raises(ValueError, match="has no eps"):
        ball.project(images[0])
    with pytest.raises(ValueError, match="has no eps"):
        ball.sample(images[0], Streams(0, range(5)))


def by_bisection(x: np.ndarray, adv: np.ndarray, eps: float) -> np.ndarray:
    """The nearest image in the L1 ball and in [0, 1]: the shift of the dual problem, found by halving an interval."""
    way = adv - x
    room = np.where(way > 0, 1 - x, x)
    low, high = 0.0, np.abs(way).max()

    def moved(shift: float) -> np.ndarray:
        return np.clip(np.abs(way) - shift, 0, room)

    if moved(0).sum() > eps:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if moved(middle).sum() > eps else (low, middle)
        return x + np.sign(way) * moved(high)
    return x + np.sign(way) * moved(0)


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 9.0, 40.0])
def test_the_l1_projection_of_an_image_is_the_dual_problems_solution(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(6, 3, 5, 4, generator=generator, dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    for size in (0.01, 0.3, 1.0, 10.0):
        noise = size * torch.randn(6, 3, 5, 4, generator=generator, dtype=torch.float64)
        found = L1(eps).project_image(x, x + noise)
        expected = [by_bisection(a, b, eps) for a, b in zip(x.numpy(), (x + noise).numpy(), strict=True)]
        np.testing.assert_allclose(found, np.stack(expected), atol=1e-12)
        one_by_one = nearest_in_l1(x, x + noise, torch.tensor([eps, 0.1, eps, 1.0, eps, 0.0], dtype=torch.float64))
        assert torch.allclose(one_by_one[::2], found[::2], atol=1e-12)
        assert (L1(1).norm(one_by_one - x)[1::2] <= torch.tensor([0.1, 1.0, 0.0]) + 1e-7).all()


@pytest.mark.parametrize(("shape", "eps"), [((1, 28, 28), 10.0), ((3, 32, 32), 12.0), ((3, 160, 160), 255.1)])
def test_in_float32_a_whole_image_stays_in_the_l1_ball_to_a_millionth(shape: tuple[int, int, int], eps: float) -> None:
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    far = x + torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    for inside in (L1(eps).project_image(x, far) - x, L1(eps).project(far - x)):
        exact = inside.double().abs().flatten(1).sum(1)
        assert (exact <= eps).all()
        assert (exact >= eps * (1 - 1e-5)).all()
        assert torch.equal(L1(eps).norm(inside), exact.float())
        assert (L1(eps).norm(inside).double() <= eps + 1e-6).all()
    near = L1(eps).project_image(x, far)
    assert torch.equal(L1(eps).project_image(x, near), near)
    # Where all values are alike they are all rounded the same way, which adds up.
    for grey in (0.3, 0.7, 0.77):
        flat = torch.full((1, *shape), grey)
        assert ((L1(eps).project_image(flat, flat + 0.2) - flat).double().abs().sum() <= eps).all()


def test_l1_moves_the_hundredth_of_the_values_that_counts_most_and_can_move() -> None:
    grad = torch.randn(5, 3, 20, 10, generator=torch.Generator().manual_seed(0))
    order = grad.abs().flatten(1).argsort(dim=1, descending=True)
    steepest_direction = L1(1.0).steepest_direction(grad).flatten(1)
    for k in range(5):
        assert set(steepest_direction[k].nonzero()[:, 0].tolist()) == set(order[k, :6].tolist())
        assert torch.allclose(steepest_direction[k, order[k, :6]], grad.flatten(1)[k, order[k, :6]].sign() / 6)
    # White pixels cannot become lighter: the next ones take their place.
    at = torch.full_like(grad, 0.5).flatten(1)
    at.scatter_(1, order[:, :4], (grad.flatten(1).gather(1, order[:, :4]) > 0).float())
    elsewhere = L1(1.0).steepest_direction(grad, at.reshape(grad.shape)).flatten(1)
    for k in range(5):
        assert set(elsewhere[k].nonzero()[:, 0].tolist()) == set(order[k, 4:10].tolist())
    assert torch.equal(Linf(1.0).steepest_direction(grad, at.reshape(grad.shape)), grad.sign())
    assert torch.equal(L2(1.0).steepest_direction(grad, at.reshape(grad.shape)), L2(1.0).steepest_direction(grad))


def test_l1_samples_are_sparse_as_the_ball_is() -> None:
    sample = L1(2.0).sample(torch.zeros(4000, 1, 2, 2), Streams(0, range(4000), "ball")).flatten(1)
    # E[x_i^2] = 2 r^2 / ((d + 1)(d + 2)) and E|x_i| = r / (d + 1) in the d-ball of radius r.
    assert torch.allclose(torch.cov(sample.T), 8 / 30 * torch.eye(4), atol=0.05)
    assert torch.allclose(sample.abs().mean(0), torch.full((4,), 2 / 5), atol=0.02)


@pytest.mark.parametrize("attack", [FGSM(L1(4.0)), BIM(ball=L1(4.0)), PGD(steps=10, ball=L1(4.0))], ids=repr)
def test_gradient_attacks_climb_within_the_l1_ball(attack, net, images) -> None:
    x, y = images
    found = attack(net, x, y, streams=Streams(0, range(5)))
    for image in (found.x, found.best):
        assert ((image.double() - x.double()).abs().flatten(1).sum(1) <= 4 + 1e-6).all()
        assert image.min() >= 0
        assert image.max() <= 1
    assert (found.loss[-1] > found.loss[0]).all()
