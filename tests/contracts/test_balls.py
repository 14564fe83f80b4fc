"""Contract: every ball samples inside itself, projects to the nearest point and names the steepest direction."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from vizrobust.attacks import BALLS, L0, Ball
from vizrobust.rng import Streams

N, SHAPE = 6, (3, 5, 4)
EPS = 0.3
# L0 counts: no norm, no ball that has a volume, no steepest direction of norm 1 (see TestL0).
NORMED = {name: make for name, make in BALLS.items() if name != "L0"}
balls = pytest.mark.parametrize("ball", [make(EPS) for make in NORMED.values()], ids=NORMED)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def saturated(*shape: int) -> torch.Tensor:
    """Images of which a third of the values are 0 or 1."""
    return (torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 1.5 - 0.25).clamp(0, 1)


@balls
class TestBall:
    def test_norm_is_a_norm(self, ball: Ball) -> None:
        a, b = randn(N, *SHAPE), randn(N, *SHAPE, seed=1)
        assert ball.norm(a).shape == (N,)
        assert torch.allclose(ball.norm(-2.5 * a), 2.5 * ball.norm(a))
        assert (ball.norm(a + b) <= ball.norm(a) + ball.norm(b)).all()
        assert (ball.norm(torch.zeros(N, *SHAPE)) == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_sample_is_inside_and_like_the_images(self, ball: Ball, dtype: torch.dtype) -> None:
        like = torch.zeros(50, *SHAPE, dtype=dtype)
        sample = ball.sample(like, Streams(0, range(50), "ball"))
        assert sample.shape == like.shape
        assert sample.dtype == dtype
        assert (ball.norm(sample) <= EPS * (1 + 1e-6)).all()
        assert len(torch.unique(ball.norm(sample))) > 40, "each image has its own"

    def test_sample_is_uniform(self, ball: Ball) -> None:
        like = torch.zeros(3000, 1, 2, 3)
        sample = ball.sample(like, Streams(0, range(3000), "ball"))
        norm = ball.norm(sample)
        # The volume within radius r grows as r^d, in any norm.
        assert stats.kstest(((norm / EPS) ** 6).numpy(), "uniform").pvalue > 0.01
        # No side is preferred: every pixel is as often below 0 as above.
        assert all(stats.binomtest(int(above), 3000).pvalue > 0.001 for above in (sample > 0).sum(0).flatten())

    def test_sample_belongs_to_the_stream(self, ball: Ball) -> None:
        like = torch.zeros(9, *SHAPE)
        whole = ball.sample(like, Streams(0, range(9), "ball"))
        index = torch.tensor([8, 2, 2, 0])
        part = ball.sample(like[:4], Streams(0, index.tolist(), "ball"))
        assert torch.allclose(part, whole[index], rtol=0, atol=1e-7)

    def test_project_lands_inside_and_stays(self, ball: Ball) -> None:
        for scale in (0.01, 0.3, 1, 50):
            once = ball.project(scale * randn(N, *SHAPE))
            assert (ball.norm(once) <= EPS * (1 + 1e-12)).all()
            assert torch.allclose(ball.project(once), once, rtol=1e-12, atol=0)

    def test_nothing_in_the_ball_is_nearer_than_the_projection(self, ball: Ball) -> None:
        for scale in (0.05, 0.2, 1, 5):
            point = scale * randn(1, *SHAPE)
            near = ball.project(point)
            distance = (point - near).flatten(1).norm(dim=1)
            # Points anywhere in the ball, and points between them and the projection.
            elsewhere = ball.sample(torch.zeros(2000, *SHAPE, dtype=torch.float64), Streams(0, range(2000)))
            for share in (1.0, 0.1, 0.001):
                other = near + share * (elsewhere - near)
                assert ((point - other).flatten(1).norm(dim=1) >= distance * (1 - 1e-12)).all()

    def test_projection_agrees_with_a_general_optimizer(self, ball: Ball) -> None:
        point = randn(1, 1, 2, 2)
        near = ball.project(point)

        def distance(flat):
            return float((torch.from_numpy(flat) - point.flatten()).square().sum())

        def inside(flat):
            return np.array([EPS - float(ball.norm(torch.from_numpy(flat).reshape(1, 1, 2, 2)))])

        found = optimize.minimize(distance, np.zeros(4), method="SLSQP", constraints={"type": "ineq", "fun": inside}, tol=1e-12)
        # The optimizer stops a little early where a norm has corners, so it may only be a little worse.
        assert found.fun - 1e-3 <= distance(near.flatten().numpy()) <= found.fun + 1e-6

    def test_an_image_is_brought_into_the_ball_and_into_range_and_stays(self, ball: Ball) -> None:
        x = saturated(N, *SHAPE)
        for scale in (0.01, 0.3, 1, 50):
            once = ball.project_image(x, x + scale * randn(N, *SHAPE))
            assert (ball.norm(once - x) <= EPS * (1 + 1e-12)).all()
            assert once.min() >= 0
            assert once.max() <= 1
            assert torch.allclose(ball.project_image(x, once), once, rtol=0, atol=1e-12)
        assert torch.equal(ball.project_image(x, x), x)
        single = ball.project_image(x.float(), x.float() + randn(N, *SHAPE).float())
        assert single.dtype == torch.float32
        assert (ball.norm(single - x.float()) <= EPS + 1e-6).all()

    def test_no_image_allowed_is_nearer_but_for_l2(self, ball: Ball) -> None:
        if type(ball).__name__ == "L2":
            pytest.skip("the ball first, then the range: not the nearest, but what everybody does")
        x = saturated(1, *SHAPE)
        for scale in (0.05, 0.2, 1, 5):
            point = x + scale * randn(1, *SHAPE)
            near = ball.project_image(x, point)
            distance = (point - near).flatten(1).norm(dim=1)
            elsewhere = (x + ball.sample(torch.zeros(2000, *SHAPE, dtype=torch.float64), Streams(0, range(2000)))).clamp(0, 1)
            for share in (1.0, 0.1, 0.001):
                other = near + share * (elsewhere - near)
                assert ((point - other).flatten(1).norm(dim=1) >= distance * (1 - 1e-12)).all()

    def test_steepest_is_of_norm_one_and_no_direction_climbs_faster(self, ball: Ball) -> None:
        grad = randn(N, *SHAPE)
        steepest_direction = ball.steepest_direction(grad)
        assert torch.allclose(ball.norm(steepest_direction), torch.ones(N, dtype=torch.float64))
        gain = (grad * steepest_direction).flatten(1).sum(1)
        for seed in range(300):
            other = randn(N, *SHAPE, seed=seed + 1)
            other = other + 3 * seed * steepest_direction / 300  # also directions near it
            other = other / ball.norm(other).reshape(-1, 1, 1, 1)
            assert ((grad * other).flatten(1).sum(1) <= gain * (1 + 1e-12)).all()

    def test_steepest_of_nothing_is_nothing(self, ball: Ball) -> None:
        assert torch.equal(ball.steepest_direction(torch.zeros(N, *SHAPE)), torch.zeros(N, *SHAPE))

    def test_images_do_not_meet(self, ball: Ball) -> None:
        x = randn(N, *SHAPE)
        clean = saturated(1, *SHAPE)
        for operation in (
            ball.norm,
            ball.project,
            ball.steepest_direction,
            lambda adv: ball.project_image(clean.expand_as(adv), adv),
        ):
            whole = operation(x)
            for k in range(N):
                assert torch.allclose(operation(x[k : k + 1])[0], whole[k], rtol=1e-14)

    def test_a_radius_of_zero_allows_nothing(self, ball: Ball) -> None:
        none = type(ball)(0)
        assert (none.project(randn(N, *SHAPE)) == 0).all()
        assert (none.sample(torch.zeros(N, *SHAPE), Streams(0, range(N))) == 0).all()


@pytest.mark.parametrize("make", NORMED.values(), ids=NORMED)
@given(eps=st.just(0.0) | st.floats(1e-6, 1), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_projection_at_any_radius(make: type, eps: float, scale: float, seed: int) -> None:
    ball = make(eps)
    delta = scale * randn(2, *SHAPE, seed=seed)
    inside = ball.project(delta)
    assert (ball.norm(inside) <= eps * (1 + 1e-12)).all()
    assert torch.allclose(inside, delta) or (ball.norm(delta) > eps * (1 - 1e-12)).any()


class TestL0:
    """Against trying every choice of the values that change."""

    def test_no_choice_of_values_is_nearer(self) -> None:
        x = saturated(N, 1, 2, 3)
        point = x + randn(N, 1, 2, 3)
        for eps in (0, 1, 2, 2.9, 6, 40):
            for ball, inside in ((L0(eps), x + L0(eps).project(point - x)), (L0(eps), L0(eps).project_image(x, point))):
                assert (ball.norm(inside - x) <= eps).all()
                clip = inside.min() >= 0 and inside.max() <= 1
                to = point.clamp(0, 1) if clip else point
                chosen = [torch.tensor(mask, dtype=torch.bool).reshape(1, 1, 2, 3) for mask in product([0, 1], repeat=6)]
                tried = [torch.where(mask, to, x) for mask in chosen if mask.sum() <= eps]
                least = torch.stack([(one - point).flatten(1).norm(dim=1) for one in tried]).amin(0)
                assert torch.allclose((inside - point).flatten(1).norm(dim=1), least)

    def test_equal_values_are_not_all_kept(self) -> None:
        assert L0(2).norm(L0(2).project(torch.ones(3, *SHAPE))).tolist() == [2, 2, 2]

    def test_samples_change_as_many_values_as_allowed_anywhere(self) -> None:
        sample = L0(2).sample(torch.zeros(3000, 1, 2, 3), Streams(0, range(3000), "ball"))
        assert (L0(2).norm(sample) == 2).all()
        assert all(stats.binomtest(int(n), 3000, 1 / 3).pvalue > 0.001 for n in (sample != 0).sum(0).flatten())
        assert stats.kstest(sample[sample != 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01

    def test_the_steepest_direction_is_the_gradient(self) -> None:
        grad = randn(N, *SHAPE)
        found = L0(2).steepest_direction(grad)
        assert (found.abs().flatten(1).amax(1) == 1).all()
        assert torch.allclose(found * grad.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1), grad)
        assert torch.equal(L0(2).steepest_direction(torch.zeros_like(grad)), torch.zeros_like(grad))
