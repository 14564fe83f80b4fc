"""The Square attack: its windows and what it keeps, against plain loops, and its success against the peers'."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, Unasked, make_net, refilled
from vizrobust.attacks import L2, LOSSES, PGD, Ball, Linf, Noise, Square
from vizrobust.attacks.black_box import HALVED_AFTER, pyramids, sides, window_level
from vizrobust.data import load
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams

EPS = 8 / 255
balls = pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=["Linf", "L2"])


def streams(n: int) -> Streams:
    return Streams(0, range(n), "attack")


def images(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, *SHAPE, generator=generator, dtype=dtype) * 1.5 - 0.25).clamp(0, 1)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def published_p(p: float, query: int) -> float:
    """The schedule as the authors write it down for 10,000 queries; `query` counts from 0."""
    ends = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, math.inf)
    divisors = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    return p / next(divisor for end, divisor in zip(ends, divisors, strict=True) if query <= end)


def test_the_schedule_is_the_published_one() -> None:
    queries = torch.arange(10_000)
    level = window_level(queries)
    for query in [*range(1100), *(end + k for end in HALVED_AFTER for k in (-1, 0, 1)), 9999]:
        p = published_p(0.8, query)
        assert 0.8 * 0.5 ** int(level[query]) == pytest.approx(p)
        side = round(math.sqrt(p * 28 * 36))
        assert sides(28, 36, 0.8, 1)[level[query]] == min(max(side, 1), 28)
        odd = max(side, 3)
        assert sides(28, 36, 0.8, 3)[level[query]] == min(odd + 1 if odd % 2 == 0 else odd, 28)


def test_every_linf_point_is_the_best_so_far_with_one_window_at_the_edge_of_the_ball() -> None:
    x, y = images()
    net = Unasked(make_net())
    Square(queries=80, ball=Linf(EPS))(net, x, y, streams=streams(len(x)))
    assert len(net.seen) == 81, "one pass for the start and one for each window"
    up, down = (x + EPS).clamp(0, 1), (x - EPS).clamp(0, 1)
    start = net.seen[0]
    assert ((start == up) | (start == down)).all()
    for k in range(len(x)):
        for channel in range(SHAPE[0]):
            for column in range(SHAPE[2]):
                stripe = start[k, channel, :, column]
                assert torch.equal(stripe, up[k, channel, :, column]) or torch.equal(stripe, down[k, channel, :, column])
    with torch.no_grad():
        losses = torch.stack([LOSSES["margin"](net.net(point), y) for point in net.seen])
    corners = set()
    for t, point in enumerate(net.seen[1:]):
        side = min(max(round(math.sqrt(published_p(0.8, t) * SHAPE[1] * SHAPE[2])), 1), min(SHAPE[1:]))
        for k in range(len(x)):
            kept = net.seen[int(losses[: t + 1, k].argmax())][k]
            changed = (point[k] != kept).any(0)
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            if not len(rows):
                continue  # the window already was like that
            assert max(rows.max() - rows.min(), columns.max() - columns.min()) < side
            corners.add((k, int(rows.min()), int(columns.min())))
            for channel in range(SHAPE[0]):
                new = (point[k, channel] - kept[channel]).sign().unique()
                assert not (1 in new and -1 in new), "a channel goes one way"
                moved = point[k, channel] != kept[channel]
                assert ((point[k, channel] == up[k, channel]) | (point[k, channel] == down[k, channel]))[moved].all()
    assert len({corner for _, *corner in map(list, corners) for corner in [tuple(corner)]}) > 20, (
        "images have windows of their own"
    )


def test_windows_reach_every_pixel_and_differ_between_images() -> None:
    """Also the last row and column, which other implementations leave out."""
    x, y = torch.full((40, 1, 5, 4), 0.5), torch.zeros(40, dtype=torch.int64)
    net = Unasked(nn.Sequential(nn.Flatten(), nn.Linear(20, 3)))
    Square(queries=30, ball=Linf(0.1), p_init=0.05)(net, x, y, streams=streams(40))
    touched = torch.zeros(5, 4)
    for before, after in zip(net.seen, net.seen[1:], strict=False):
        touched += (before != after).any(1).float().sum(0)
    assert (touched > 0).all()
    assert (net.seen[1] != net.seen[0]).any(1).flatten(1).float().unique(dim=0).shape[0] > 10


def plain_pyramid(height: int, width: int) -> np.ndarray:
    """Squares that grow around the middle, each adding 1 / k²."""
    hill = np.zeros((height, width))
    for k in range(max(height // 2, width // 2) + 1):
        for row in range(max(height // 2 - k, 0), min(height // 2 + k + 1, height)):
            for column in range(max(width // 2 - k, 0), min(width // 2 + k + 1, width)):
                hill[row, column] += 1 / (k + 1) ** 2
    return hill


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_a_pyramid_is_a_hill_and_a_pit(side: int) -> None:
    both = np.concatenate((plain_pyramid(side // 2, side), -plain_pyramid(side - side // 2, side)))
    both /= np.sqrt((both**2).sum())
    upright, turned = pyramids(side).numpy()
    assert np.abs(upright - both).max() < 1e-12
    assert np.abs(turned - both.T).max() < 1e-12


def plain_transfer(x: np.ndarray, kept: np.ndarray, eps: float, side: int, chance: np.ndarray) -> np.ndarray:
    """Algorithm 3 of the paper for one image, with slices."""
    channels, height, width = x.shape
    top, left = int(chance[0] * (height - side + 1)), int(chance[1] * (width - side + 1))
    top2, left2 = int(chance[2] * (height - side + 1)), int(chance[3] * (width - side + 1))
    pattern = pyramids(side).numpy()[int(chance[4] < 0.5)]
    delta = kept - x
    unused = max(eps**2 - (delta**2).sum(), 0) / channels
    result = delta.copy()
    result[:, top2 : top2 + side, left2 : left2 + side] = 0
    for channel in range(channels):
        one, two = np.zeros((height, width), bool), np.zeros((height, width), bool)
        one[top : top + side, left : left + side] = True
        two[top2 : top2 + side, left2 : left2 + side] = True
        window = delta[channel, top : top + side, left : left + side]
        new = (-1 if chance[5 + channel] < 0.5 else 1) * pattern + window / max(np.sqrt((window**2).sum()), 1e-12)
        new *= np.sqrt((delta[channel][one | two] ** 2).sum() + unused) / np.sqrt((new**2).sum())
        result[channel, top : top + side, left : left + side] = new
    return np.clip(x + result * eps / np.sqrt((result**2).sum()), 0, 1)


@pytest.mark.parametrize("saturated", [False, True])
def test_every_l2_point_is_the_papers(saturated: bool) -> None:
    eps, n = 0.5, 4
    x, y = images(n, dtype=torch.float64)
    x = x if saturated else 0.3 + 0.4 * x
    net = Unasked(make_net().double())
    Square(queries=60, ball=L2(eps))(net, x, y, streams=streams(n))
    with torch.no_grad():
        losses = torch.stack([LOSSES["margin"](net.net(point), y) for point in net.seen])
    keys = streams(n).keys
    for t, point in enumerate(net.seen[1:]):
        side = max(round(math.sqrt(published_p(0.8, t) * SHAPE[1] * SHAPE[2])), 3)
        side = min(side + 1 - side % 2, min(SHAPE[1:]))
        chance = Streams.of(keys, torch.full((n,), t + 1)).child("square").uniform(5 + SHAPE[0]).double().numpy()
        for k in range(n):
            kept = net.seen[int(losses[: t + 1, k].argmax())][k].numpy()
            expected = plain_transfer(x[k].numpy(), kept, eps, side, chance[k])
            assert np.abs(point[k].numpy() - expected).max() < 1e-9
    norms = torch.stack([L2(eps).norm(point - x) for point in net.seen])
    assert (norms <= eps + 1e-12).all()
    if not saturated:
        assert (norms > eps - 1e-9).all(), "the whole radius is used"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 16), (2, 3, 7), (1, 1, 2)])
def test_the_l2_start_is_made_of_signed_tiles(shape: tuple[int, int, int]) -> None:
    x = torch.full((3, *shape), 0.5, dtype=torch.float64)
    (walk,) = Square(ball=L2(0.3)).runs(nn.Identity(), x)
    delta = walk.start(nn.Identity(), x, torch.zeros(3, dtype=torch.int64), streams(3))["adv"] - x
    assert torch.allclose(L2(0.3).norm(delta), torch.tensor(0.3, dtype=torch.float64))
    side = max(min(shape[1:]) // 5, 1)
    down, across = shape[1] // side, shape[2] // side
    top, left = shape[1] % side // 2, shape[2] % side // 2
    scale = 0.3 / math.sqrt(down * across * shape[0])
    seen = set()
    for image in delta:
        for channel in image:
            rest = channel.clone()
            for row in range(top, top + down * side, side):
                for column in range(left, left + across * side, side):
                    tile = channel[row : row + side, column : column + side] / scale
                    rest[row : row + side, column : column + side] = 0
                    fits = {
                        (turned, sign)
                        for turned in (0, 1)
                        for sign in (-1, 1)
                        if torch.allclose(tile, sign * pyramids(side)[turned])
                    }
                    assert fits
                    seen |= fits
            assert not rest.any(), "nothing between the tiles and the margin"
    assert len(seen) == 4 or shape == (1, 1, 2)


@balls
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_loss_kept_only_rises_and_the_best_is_kept(ball: Ball, loss: str) -> None:
    x, y = images(8)
    net = make_net()
    with torch.no_grad():
        y[:4] = net(x[:4]).argmax(1)
    (walk,) = Square(queries=40, ball=ball, loss=loss).runs(net, x)
    state = walk.start(net, x, y, streams=streams(8))
    with torch.no_grad():
        for _ in range(40):
            before = state["kept_loss"], state["kept_wrong"]
            walk.step(net, state)
            fell = state["kept_loss"] < before[0]
            assert not (fell & ~(state["kept_wrong"] & ~before[1])).any(), "only for a wrong point is a higher loss given up"
            logits = net(state["kept"])
            assert torch.allclose(LOSSES[loss](logits, y), state["kept_loss"], atol=1e-6)
            assert torch.equal(logits.argmax(1) != y, state["kept_wrong"])
        assert torch.equal(state["best"], state["kept"])
        assert (state["best_loss"] == state["kept_loss"]).all()


@balls
def test_a_refilled_slot_gives_the_same_image(ball: Ball) -> None:
    x, y = images()
    # Twelve queries pass the first halving of p, so that schedules differ between the slots.
    undisturbed, mixed = refilled(Square(queries=20, ball=ball), make_net(), x, y, 14)
    assert all(torch.equal(value, mixed[key]) for key, value in undisturbed.items())
    assert (undisturbed["step"] == 14).all()


def test_restarts_have_windows_of_their_own() -> None:
    x, y = images()
    net = make_net()
    first, second = Square(queries=5, ball=Linf(EPS), restarts=2).runs(net, x)
    assert (first.name, second.name, second.component) == ("Square", "Square 2", "Square")
    starts = [walk.start(net, x, y, streams=streams(6))["adv"] for walk in (first, second)]
    assert (starts[0] != starts[1]).flatten(1).any(1).all()


@pytest.mark.parametrize(("ball", "floor"), [(Linf(0.2), 0.25), (L2(2.0), 0.15)], ids=["Linf", "L2"])
def test_it_breaks_what_hides_its_gradients(ball: Ball, floor: float) -> None:
    """A network that rounds its input gives no gradient: nothing is there for PGD to climb."""
    inner = load_checkpoint("mnist-k0").net()
    data = load("mnist5k")
    x, y = data.test.take(torch.arange(30)), data.test.labels[:30]

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner((x * 8).round() / 8)

    def accuracy(attack: PGD | Square | Noise) -> float:
        return float(attack(Rounded(), x, y, streams=streams(30)).correct.all(0).float().mean())

    square = accuracy(Square(queries=100, ball=ball))
    assert square < accuracy(PGD(steps=5, ball=ball)) - floor
    assert square < accuracy(Noise(samples=100, ball=ball)) - floor


def theirs(norm: str, eps: float, queries: int, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Who still is classified rightly after pyautoattack's Square."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        square = pytest.importorskip("pyautoattack.square", reason="pip install --no-deps -r tests/peers.txt")
        attack = square.SquareAttack(net, norm=norm, eps=eps, n_queries=queries, resc_schedule=False, seed=0, device="cpu")
        adv = attack.perturb(x, y)
    with torch.no_grad():
        return net(adv).argmax(1) == y


def agrees(ball: Ball, queries: int, n: int) -> None:
    data, net = load("mnist5k"), load_checkpoint("mnist-k8").net()
    x, y = data.test.take(torch.arange(n)), data.test.labels[:n]
    peer = theirs(type(ball).__name__, ball.eps, queries, net, x, y)
    found = Square(queries=queries, ball=ball)(net, x, y, streams=streams(n)).correct.all(0)
    with torch.no_grad():
        clean = net(x).argmax(1) == y
    assert 0.1 < (clean & ~found).float().mean() < 0.9, "the case tells attacks apart"
    # The same images, attacked with other random numbers: those on which the two differ fall either way.
    ours_only, theirs_only = int((peer & ~found).sum()), int((found & ~peer).sum())
    assert abs(ours_only - theirs_only) <= 3 * math.sqrt(ours_only + theirs_only) + 1


CASES = [(Linf(0.35), 120), (L2(2.5), 120)]


@pytest.mark.peers
@pytest.mark.parametrize(("ball", "queries"), CASES, ids=["Linf", "L2"])
def test_it_is_as_strong_as_pyautoattacks(ball: Ball, queries: int) -> None:
    agrees(ball, queries, 60)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(("ball", "queries"), CASES, ids=["Linf", "L2"])
def test_it_is_as_strong_as_pyautoattacks_on_many_images(ball: Ball, queries: int) -> None:
    agrees(ball, 1500, 500)
