"""The shortest way to a plane within [0, 1], against solvers for linear and convex programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from vizrobust.attacks import L1, L2, Ball, Linf
from vizrobust.attacks.boundary_attacks import to_boundary
from vizrobust.attacks.threat_models import dual_norm

SHAPE = (2, 3, 4)
balls = pytest.mark.parametrize("ball", [Linf(), L2()], ids=["Linf", "L2"])


def case(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Points with a third of saturated pixels, planes with a tenth of zero slopes, and by how much each has to go down."""
    generator = torch.Generator().manual_seed(seed)
    point = (torch.rand(n, *SHAPE, generator=generator, dtype=dtype) * 1.5 - 0.25).clamp(0, 1)
    grad = torch.randn(n, *SHAPE, generator=generator, dtype=dtype) ** 3
    grad[torch.rand(n, *SHAPE, generator=generator) < 0.1] = 0
    side = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0).to(dtype)
    # How far the linear function can go within the box, and the share of it that is asked for.
    heading = -side.reshape(-1, 1, 1, 1) * grad
    reach = (heading.abs() * torch.where(heading > 0, 1 - point, point)).sum((1, 2, 3))
    share = torch.rand(n, generator=generator, dtype=dtype)
    return point, side * share * reach, grad


def value(gap: Tensor, grad: Tensor, move: Tensor) -> Tensor:
    return gap + (grad * move).sum((1, 2, 3))


def smallest_linf(point: np.ndarray, gap: float, grad: np.ndarray) -> float:
    """min t with |move_i| <= t, point + move in [0, 1], gap + grad·move = 0: a linear program."""
    d = len(point)
    eye, column = np.eye(d), -np.ones((d, 1))
    found = linprog(
        np.r_[np.zeros(d), 1], A_ub=np.block([[eye, column], [-eye, column]]), b_ub=np.zeros(2 * d),
        A_eq=np.r_[grad, 0][None], b_eq=[-gap], bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
    )  # fmt: skip
    assert found.success
    return float(found.fun)


def nearest_l2(point: np.ndarray, gap: float, grad: np.ndarray) -> np.ndarray:
    """The move clip(-s · grad) with the multiplier s that meets the plane, which bisection finds."""

    def move(s: float) -> np.ndarray:
        return np.clip(point - s * grad, 0, 1) - point

    sign, low, high = np.sign(gap), 0.0, 1.0
    while sign * (gap + grad @ move(sign * high)) > 0 and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * (gap + grad @ move(sign * middle)) > 0 else (low, middle)
    return move(sign * high)


def numbers(values: Tensor) -> np.ndarray:
    return values.flatten().numpy()


@balls
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_lands_on_the_plane_within_the_box_and_nowhere_farther_than_needed(ball: Ball, seed: int) -> None:
    point, gap, grad = case(5, seed)
    move = to_boundary(ball, point, gap, grad)
    assert value(gap, grad, move).abs().max() <= 1e-9
    assert (point + move).min() >= -1e-12
    assert (point + move).max() <= 1 + 1e-12
    for k in range(5):
        task = numbers(point[k]), float(gap[k]), numbers(grad[k])
        if isinstance(ball, Linf):
            assert float(move[k].abs().max()) == pytest.approx(smallest_linf(*task), abs=1e-8)
        else:
            assert np.allclose(numbers(move[k]), nearest_l2(*task), atol=1e-8)


@balls
def test_a_plane_beyond_the_box_is_met_at_the_nearest_corner(ball: Ball) -> None:
    point, gap, grad = case(6, seed=1)
    heading = -gap.sign().reshape(-1, 1, 1, 1) * grad
    move = to_boundary(ball, point, 1e3 * gap.sign(), grad)
    corner = torch.where(heading > 0, 1.0, torch.where(heading < 0, 0.0, point))
    assert torch.allclose(point + move, corner.to(point), rtol=0, atol=1e-12)


@balls
def test_without_a_gap_or_a_slope_nothing_moves(ball: Ball) -> None:
    point, gap, grad = case(6, seed=2)
    assert (to_boundary(ball, point, torch.zeros_like(gap), grad) == 0).all()
    assert (to_boundary(ball, point, gap, torch.zeros_like(grad)) == 0).all()
    # White pixels that would have to become whiter.
    assert (to_boundary(ball, torch.ones_like(point), -gap.abs(), grad.abs()) == 0).all()


@balls
def test_a_point_in_the_open_goes_the_way_of_the_closed_form(ball: Ball) -> None:
    grad, gap = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.tensor([0.1, -0.1, 0.05, -0.2])
    move = to_boundary(ball, torch.full_like(grad, 0.5), gap, grad)
    assert torch.allclose(ball.norm(move), gap.abs() / dual_norm(ball, grad), rtol=1e-5)


@balls
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_the_gradient_does_not_matter(ball: Ball, scale: float) -> None:
    point, gap, grad = case(6, seed=4, dtype=torch.float32)
    usual, scaled = to_boundary(ball, point, gap, grad), to_boundary(ball, point, gap * scale, grad * scale)
    assert torch.allclose(usual, scaled, rtol=1e-3, atol=1e-5)
    assert torch.allclose(dual_norm(ball, grad * scale), dual_norm(ball, grad) * scale, rtol=1e-5)


@balls
def test_rows_do_not_wait_for_each_other(ball: Ball) -> None:
    point, gap, grad = case(40, seed=5)
    together = to_boundary(ball, point, gap, grad)
    for k in (0, 17, 39):
        alone = to_boundary(ball, point[k : k + 1], gap[k : k + 1], grad[k : k + 1])
        assert torch.allclose(alone[0], together[k], rtol=0, atol=1e-12)


def test_other_balls_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="no projection onto a decision boundary in L1; use Linf or L2"):
        to_boundary(L1(1.0), *case(1, seed=6))
