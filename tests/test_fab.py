"""FAB: exact on linear networks, the same as pyautoattack's on a trained one, and sound with few classes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.digits import digits, digits_net
from tests.test_boundary_projection import nearest_l2, numbers, smallest_linf
from vizrobust.attacks import FAB, L1, L2, Attack, Ball, Linf
from vizrobust.rng import Streams

SHAPE = (2, 3, 4)
balls = pytest.mark.parametrize("ball", [Linf(), L2()], ids=["Linf", "L2"])


def linear_net(classes: int, offset: float = 0.0) -> nn.Module:
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, classes, dtype=torch.float64))
    net[1].bias.data += offset
    return net.requires_grad_(False)


def case(net: nn.Module, n: int = 6) -> tuple[Tensor, Tensor]:
    """Images, a third of whose pixels are saturated, and the network's own labels."""
    x = (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    return x, net(x).argmax(1)


def smallest(attack: Attack, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,): the norms of what the attack found, inf where it found nothing."""
    found = attack(net, x, y, streams=Streams(0, range(len(x))))
    wrong = net(found.best).argmax(1) != y
    assert torch.equal(wrong, ~found.correct.all(0))
    return torch.where(wrong, attack.ball.norm(found.best - x), torch.inf)


def exact(ball: Ball, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The smallest perturbations of a linear network: the nearest of its boundaries, by solvers."""
    weight, logits = net[1].weight.numpy(), net(x).numpy()
    best = []
    for k, label in enumerate(y.tolist()):
        tasks = [
            (numbers(x[k]), logits[k, other] - logits[k, label], weight[other] - weight[label])
            for other in range(len(weight)) if other != label
        ]  # fmt: skip
        solve = smallest_linf if isinstance(ball, Linf) else lambda *task: np.linalg.norm(nearest_l2(*task))
        best.append(min(solve(*task) for task in tasks))
    return torch.tensor(best)


@balls
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("targeted", [True, False])
def test_on_a_linear_network_it_finds_the_smallest_perturbation(ball: Ball, classes: int, targeted: bool) -> None:
    net = linear_net(classes)
    x, y = case(net)
    found, best = smallest(FAB(steps=20, ball=ball, targeted=targeted), net, x, y), exact(ball, net, x, y)
    assert (found >= best * (1 - 1e-9)).all()
    assert (found <= best * 1.02).all()


@pytest.mark.parametrize(("classes", "walks"), [(2, 1), (3, 2), (12, 9)])
def test_it_walks_towards_each_wrong_class_there_is(classes: int, walks: int) -> None:
    net = linear_net(classes)
    x, y = case(net)
    runs = FAB(steps=3).runs(net, x)
    assert [walk.name for walk in runs] == [f"FAB-T {k + 1}" for k in range(walks)]
    order = net(x).argsort(dim=1, descending=True)[:, 1:]
    for k, walk in enumerate(runs):
        assert torch.equal(walk.start(net, x, y, Streams(0, range(6)))["against"][:, 0], order[:, k])


def test_a_label_that_is_not_the_networks_choice_is_no_target() -> None:
    net = linear_net(5)
    x, y = case(net)
    for walk in FAB(steps=3).runs(net, x):
        against = walk.start(net, x, (y + 1) % 5, Streams(0, range(6)))["against"][:, 0]
        assert not (against == (y + 1) % 5).any()


@balls
def test_with_an_eps_only_what_is_inside_counts(ball: Ball) -> None:
    net = linear_net(3)
    x, y = case(net)
    far = smallest(FAB(steps=20, ball=ball), net, x, y)
    limited = type(ball)(eps=float(far.sort().values[2]) * 1.001)
    attack = FAB(steps=20, ball=limited)
    found = attack(net, x, y, streams=Streams(0, range(6)))
    assert torch.equal(~found.correct.all(0), far <= limited.eps)
    for image in (found.x, found.best):
        assert (ball.norm(image - x) <= limited.eps + 1e-6).all()
        assert ((image >= 0) & (image <= 1)).all()
    not_broken = found.correct.all(0)
    assert torch.equal(found.best[not_broken], x[not_broken])


def test_its_loss_is_minus_the_distance_and_its_best_the_nearest_wrong_point() -> None:
    net = linear_net(2)
    x, y = case(net)
    seen: list[Tensor] = []
    attack = FAB(steps=8, ball=L2())
    (walk,) = attack.runs(net, x)
    state = walk.start(net, x, y, Streams(0, range(6)))
    losses = []
    for _ in range(9):
        seen.append(state["at"])
        walk.step(net, state)
        losses.append(state["loss"])
    points = torch.stack(seen)
    norms = (points - x).flatten(2).norm(dim=2)
    wrong = torch.stack([net(point).argmax(1) != y for point in points])
    assert torch.allclose(torch.stack(losses), -norms)
    found = attack(net, x, y, streams=Streams(0, range(6)))
    assert torch.allclose(found.loss, -norms)
    assert torch.equal(~found.correct, wrong)
    best = torch.where(wrong, norms, torch.inf).argmin(0)
    assert torch.equal(found.best, points[best, torch.arange(6)])
    assert not wrong[0].any()
    assert torch.equal(points[0], x), "no random start"


@pytest.mark.parametrize("targeted", [True, False])
def test_its_steps_are_those_of_the_paper(targeted: bool) -> None:
    """Against a loop over single images, with projections by bisection."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    net = nn.Sequential(nn.Flatten(), body).requires_grad_(False)
    x, y = case(net)
    walk = FAB(ball=L2(), targeted=targeted).runs(net, x)[-1]
    state = walk.start(net, x, y, Streams(0, range(6)))
    plain = [image.flatten().clone() for image in x]
    order = net(x).argsort(dim=1, descending=True)
    shares = []
    for _ in range(12):
        walk.step(net, state)
        for k, label in enumerate(y.tolist()):
            clean, at = x[k].flatten(), plain[k]
            if body(at).argmax() != label:
                at = clean + 0.9 * (at - clean)
            rows = torch.autograd.functional.jacobian(body, at)
            planes = [
                (float(body(at)[other] - body(at)[label]), rows[other] - rows[label])
                for other in ([int(order[k, 2])] if targeted else [c for c in range(3) if c != label])
            ]
            gap, grad = min(planes, key=lambda plane: abs(plane[0]) / float(plane[1].norm()))
            from_at = torch.from_numpy(nearest_l2(at.numpy(), gap, grad.numpy()))
            from_clean = torch.from_numpy(nearest_l2(clean.numpy(), gap + float(grad @ (clean - at)), grad.numpy()))
            near, far = (max(float(move.norm()), 1e-8) for move in (from_at, from_clean))
            share = min(near / (near + far), 0.1)
            shares.append(share)
            plain[k] = ((1 - share) * (at + 1.05 * from_at) + share * (clean + 1.05 * from_clean)).clamp(0, 1)
        assert torch.allclose(state["at"].flatten(1), torch.stack(plain), rtol=0, atol=1e-7)
    assert min(shares) < 0.1 == max(shares), "both branches were met"


@balls
def test_restarts_begin_elsewhere_and_within_half_of_the_way(ball: Ball) -> None:
    net = linear_net(3)
    x, y = case(net)
    streams = Streams(0, range(6))
    for limited, most in ((type(ball)(eps=0.2), torch.full((6,), 0.1)), (ball, 0.5 * exact(ball, net, x, y))):
        first, second, third = FAB(ball=limited, restarts=3, targeted=False).runs(net, x)
        assert [walk.name for walk in (first, second, third)] == ["FAB", "FAB restart 2", "FAB restart 3"]
        starts = [walk.start(net, x, y, streams)["at"] for walk in (first, second, third)]
        assert torch.equal(starts[0], x)
        assert not torch.equal(starts[1], starts[2])
        for start in starts:
            assert (ball.norm(start - x) <= most + 1e-9).all()
            assert ((start >= 0) & (start <= 1)).all()


def test_a_flat_network_is_left_alone() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x.sum((1, 2, 3)) + 1, 0 * x.sum((1, 2, 3))], 1)

    x, y = case(linear_net(2))
    for attack in (FAB(steps=3, restarts=2), FAB(steps=3, ball=L2(), targeted=False, restarts=2)):
        found = attack(Flat(), x, 0 * y, streams=Streams(0, range(6)))
        assert found.correct.all()
        assert found.x.isfinite().all()


@pytest.mark.peers
@pytest.mark.parametrize(("ball", "targeted"), [(Linf(), True), (L2(), False)], ids=repr)
def test_it_finds_what_pyautoattacks_finds(ball: Ball, targeted: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fab = pytest.importorskip("pyautoattack.fab_pt", reason="pyautoattack is not here", exc_type=ImportError)
    net, (x, y) = digits_net(), digits(40)
    targets, steps = (3, 15) if targeted else (1, 15)
    mine = smallest(FAB(steps=steps, ball=ball, targeted=targeted, targets=targets), net, x, y)
    peer = fab.FABAttack_PT(net, n_iter=steps, eps=1e9, norm=type(ball).__name__, targeted=targeted, device="cpu")
    theirs = torch.full_like(mine, torch.inf)
    for rank in range(2, 2 + targets):
        peer.target_class = rank
        adv = peer.attack_single_run(x, y, is_targeted=targeted)
        theirs = torch.where(net(adv).argmax(1) != y, ball.norm(adv - x).minimum(theirs), theirs)
    assert torch.equal(mine.isfinite(), theirs.isfinite())
    ratio = mine / theirs
    assert 0.98 < ratio.median() < 1.02
    assert ((ratio > 0.9) & (ratio < 1.1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FAB(ball=L1(1.0)), "FAB: the ball must be Linf or L2, got L1"),
        (lambda: FAB(targets=0), "FAB: targets must be at least 1, got 0"),
        (lambda: FAB(alpha_max=2), "FAB: alpha_max must be between 0 and 1, got 2"),
        (lambda: FAB(eta=0.5), "FAB: eta must be at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
