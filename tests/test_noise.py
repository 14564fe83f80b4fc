"""Random noise: where its points lie, and that each is judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net, refilled
from vizrobust.attacks import L2, Ball, Linf, Noise
from vizrobust.rng import Streams

EPS = 8 / 255


def streams(n: int) -> Streams:
    return Streams(0, range(n), "attack")


def points(attack: Noise, x: Tensor) -> Tensor:
    """(draws, N, C, H, W): what a network is shown."""
    seen: list[Tensor] = []

    class Shown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            seen.append(x)
            return x.flatten(1)[:, :CLASSES]

    attack(Shown(), x, torch.zeros(len(x), dtype=torch.int64), streams=streams(len(x)))
    return torch.stack(seen)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "vertices"])
@pytest.mark.parametrize("ball", [Linf(0.2), L2(2.0)], ids=["Linf", "L2"])
def test_every_draw_is_another_point_of_the_ball(kind: str, ball: Ball) -> None:
    x = torch.full((4, *SHAPE), 0.5, dtype=torch.float64)
    delta = points(Noise(samples=9, ball=ball, kind=kind), x) - x
    assert len(delta) == 9
    flat = delta.flatten(0, 1)
    assert len(flat.flatten(1).unique(dim=0)) == 36, "no two draws and no two images alike"
    norm = ball.norm(flat)
    assert (norm <= ball.eps + 1e-9).all()
    if kind != "uniform":
        assert torch.allclose(norm, torch.full_like(norm, ball.eps)), "at the radius"
    # Up and down alike, and no pixel left out.
    assert (flat.mean() / flat.std()).abs() < 0.05
    assert (flat.std(0) > 0).all()


def test_each_kind_has_its_distribution_in_linf() -> None:
    x = torch.full((40, *SHAPE), 0.5, dtype=torch.float64)
    kinds = {
        kind: (points(Noise(samples=2, ball=Linf(0.2), kind=kind), x) - x) / 0.2 for kind in ("uniform", "gaussian", "vertices")
    }
    assert torch.allclose(kinds["vertices"].abs(), torch.ones(1, dtype=torch.float64))
    assert kinds["uniform"].abs().mean() == pytest.approx(1 / 2, abs=0.01)
    assert kinds["uniform"].square().mean() == pytest.approx(1 / 3, abs=0.01)
    gaussian = kinds["gaussian"].flatten(2)
    kurtosis = gaussian.pow(4).mean() / gaussian.square().mean() ** 2
    assert kurtosis == pytest.approx(3, abs=0.15)


def test_an_image_is_broken_if_any_draw_breaks_it() -> None:
    net, n = make_net(), 30
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = Noise(samples=12, ball=Linf(0.3), kind="vertices")
    found = attack(net, x, y, streams=streams(n))
    with torch.no_grad():
        wrong = torch.stack([net(point).argmax(1) != y for point in points(attack, x)])
        assert torch.equal(found.correct, ~wrong)
        assert torch.equal(net(found.best).argmax(1) != y, wrong.any(0))
    assert 0 < wrong.any(0).sum() < n
    assert wrong.any(0).sum() > wrong[0].sum()


def test_fewer_draws_are_the_first_of_more() -> None:
    x = torch.rand(3, *SHAPE)
    few, more = (points(Noise(samples=draws, ball=L2(1.0)), x) for draws in (4, 7))
    assert torch.equal(more[:4], few)


@pytest.mark.parametrize("kind", ["uniform", "vertices"])
def test_a_refilled_slot_gives_the_same_image(kind: str) -> None:
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    undisturbed, mixed = refilled(Noise(ball=Linf(EPS), kind=kind), make_net(), x, torch.arange(6), 7)
    assert all(torch.equal(value, mixed[key]) for key, value in undisturbed.items())
