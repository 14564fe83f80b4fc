"""APGD against a plain loop, its schedule image by image, and what stops other attacks; see also test_apgd_peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from tests.test_balls import by_bisection
from tests.test_gradient_attacks import weak_net
from vizrobust.attacks import APGD, L1, L2, LOSSES, PGD, Ball, Linf
from vizrobust.attacks.apgd import APGDRun, L1APGDRun
from vizrobust.attacks.losses import TARGETED_LOSSES
from vizrobust.models import Normalized
from vizrobust.rng import Streams

N, EPS = 5, 1 / 16


def streams(n: int = N) -> Streams:
    return Streams(0, range(n), "attack")


@pytest.fixture
def double() -> tuple[nn.Module, Tensor, Tensor]:
    """A curved network and five images in float64, a third of the pixels black or white."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(N, *SHAPE, generator=generator, dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    return curved_net().double(), x, torch.tensor([0, 3, 6, 2, 1])


def curved_net(classes: int = CLASSES, factor: float = 1.0) -> nn.Module:
    """Curved on the scale of the balls, so that step sizes must fall."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = nn.Sequential(nn.Flatten(), nn.Linear(960, 30), nn.Tanh(), nn.Linear(30, classes))
    with torch.no_grad():
        body[1].weight *= 8
        body[3].weight *= factor
        body[3].bias *= factor
    return Normalized(body, [0.4] * 3, [0.3] * 3).eval()


def checkpoints(steps: int) -> list[int]:
    """Where the published schedule looks at the loss."""
    found, at, distance = [], 0, max(int(0.22 * steps), 1)
    while at + distance <= steps:
        at += distance
        found.append(at)
        distance = max(distance - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def value_and_slope(net, point: Tensor, loss) -> tuple[float, Tensor]:
    point = point.clone().requires_grad_()
    value = loss(net(point))
    value.sum().backward()
    return float(value.detach()), point.grad


def plain_apgd(net, x: Tensor, loss, steps: int, eps: float, norm: str, start: Tensor) -> tuple[Tensor, list[float], int]:
    """Algorithm 1 of Croce & Hein (2020) for one image: the last point, the losses, and how often the step was halved."""

    def project(point: Tensor) -> Tensor:
        way = point - x
        way = way.clamp(-eps, eps) if norm == "Linf" else way * min(1.0, eps / max(float(way.norm()), 1e-12))
        return (x + way).clamp(0, 1)

    def direction(grad: Tensor) -> Tensor:
        return grad.sign() if norm == "Linf" else grad / max(float(grad.norm()), 1e-12)

    eta, here, before = 2 * eps, start, start
    value, grad = value_and_slope(net, here, loss)
    losses, best, best_value, best_grad = [value], here, value, grad
    last, halved_last, best_then, halvings = 0, True, None, 0
    for k in range(steps):
        aimed = project(here + eta * direction(grad))
        share = 0.75 if k else 1.0
        here, before = project(here + share * (aimed - here) + (1 - share) * (here - before)), here
        value, grad = value_and_slope(net, here, loss)
        losses.append(value)
        if value > best_value:
            best, best_value, best_grad = here, value, grad
        if k + 1 in checkpoints(steps) and k + 1 < steps:
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k + 1))
            halve = rises <= 0.75 * (k + 1 - last) or (not halved_last and best_value <= best_then)
            last, halved_last, best_then = k + 1, halve, best_value
            if halve:
                halvings += 1
                eta, here, grad = eta / 2, best, best_grad
    return here, losses, halvings


BALLS = {"Linf": Linf(EPS), "L2": L2(1.0)}
balls = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@balls
def test_apgd_is_its_plain_loop(ball: Ball, loss: str, steps: int, double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    found = APGD(steps=steps, ball=ball, loss=loss)(net, x, y, streams=streams())
    start = (x + ball.sample(x, streams())).clamp(0, 1)
    halvings = []
    for k in range(N):
        one = slice(k, k + 1)
        last, losses, count = plain_apgd(
            net, x[one], lambda logits, one=one: LOSSES[loss](logits, y[one]), steps, ball.eps, type(ball).__name__, start[one]
        )
        assert (found.x[one] - last).abs().max() < 1e-9
        # DLR goes to infinity where the first three logits meet, and magnifies the last digits.
        np.testing.assert_allclose(found.loss[:, k], losses, atol=1e-9, rtol=1e-5)
        halvings.append(count)
    if steps == 30:
        assert len(set(halvings)) > 1, "the images have step sizes of their own"


@pytest.mark.parametrize("loss", LOSSES)
@balls
def test_towards_a_class_it_is_the_plain_loop_too(ball: Ball, loss: str, double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    attack = APGD(steps=12, ball=ball, loss=loss, targeted=True, targets=2, random_start=False)
    first, second = attack.runs(net, x)
    assert [walk.name for walk in (first, second)] == [f"{first.component} 1", f"{first.component} 2"]
    assert first.component == {"dlr": "APGD-T", "ce": "APGD-CE-T", "margin": "APGD-MARGIN-T", "pm": "APGD-PM-T"}[loss]
    for walk in (first, second):
        state = walk.start(net, x, y, streams=streams())
        for _ in range(12):
            walk.step(net, state)
        for k in range(N):
            one, order = slice(k, k + 1), net(x[k : k + 1])[0].argsort(descending=True).tolist()
            order.remove(int(y[k]))
            target = torch.tensor([order[walk.variant.rank - 1]])
            last, _, _ = plain_apgd(
                net, x[one], lambda logits, one=one, t=target: TARGETED_LOSSES[loss](logits, y[one], t),
                12, ball.eps, type(ball).__name__, x[one],
            )  # fmt: skip
            assert (state["adv"][one] - last).abs().max() < 1e-9


def plain_l1_apgd(net, x: Tensor, loss, steps: int, eps: float, start: Tensor) -> tuple[Tensor, list[float], list[Tensor]]:
    """L1-APGD for one image, as three runs one after the other; the last point, all losses and all points."""

    def project(point: Tensor, reach: float) -> Tensor:
        return torch.from_numpy(by_bisection(x.numpy(), point.numpy(), reach))

    first = int(0.3 * steps)
    here, losses, points = start, [], []
    for factor, length in ((3, first), (2, first), (1, steps - 2 * first)):
        if factor > 1 and not first:
            continue
        reach, final = factor * eps, factor == 1
        here = project(here, reach)
        value, grad = value_and_slope(net, here, loss)
        losses.append(value)
        points.append(here)
        best, best_value, best_grad, eta = here, value, grad, reach
        changed = int((here != x).sum())
        share = changed / x.numel() / 1.5
        # A run's last step leads to the next one's first point.
        for k in range(length if final else length - 1):
            size = grad.abs().flatten()
            least = size.sort().values[min(int((1 - share) * len(size)), len(size) - 1)]
            way = grad.sign() * (grad.abs() >= least)
            here = project(here + eta * way / way.abs().sum(), reach)
            value, grad = value_and_slope(net, here, loss)
            losses.append(value)
            points.append(here)
            if value > best_value:
                best, best_value, best_grad = here, value, grad
            if (k + 1) % max(int(0.04 * length), 1) == 0 and not (final and k + 1 == length):
                now = int((best != x).sum())
                share = now / x.numel() / 1.5
                if now < 0.95 * changed:
                    eta, here, grad = reach, best, best_grad
                else:
                    eta = max(eta / 1.5, reach / 10)
                changed = now
        here = here if final else best
    return here, losses, points


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_l1_apgd_is_its_plain_loop(steps: int, double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    eps = 4.0
    (walk,) = APGD(steps=steps, ball=L1(eps)).runs(net, x)
    assert isinstance(walk, L1APGDRun)
    state = walk.start(net, x, y, streams=streams())
    clean = LOSSES["ce"](net(x), y).detach()
    noise = streams().normal(*SHAPE).to(x)
    points, losses = [], []
    for _ in range(steps):
        points.append(state["adv"])
        walk.step(net, state)
        losses.append(state["loss"])
    for k in range(N):
        one = slice(k, k + 1)
        last, expected, met = plain_l1_apgd(
            net, x[one], lambda logits, one=one: LOSSES["ce"](logits, y[one]), steps, eps, (x + noise)[one]
        )
        assert len(expected) == steps + 1
        assert (state["adv"][one] - last).abs().max() < 1e-9
        for point, loss, wanted, at in zip(points, losses, expected[:-1], met[:-1], strict=True):
            assert (point[one] - at).abs().max() < 1e-9
            inside = float((at - x[one]).abs().sum()) <= eps + 1e-9
            assert float(loss[k]) == pytest.approx(wanted if inside else float(clean[k]), abs=1e-9)


def test_l1_points_outside_the_ball_break_nothing() -> None:
    net, n = curved_net(), 40
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    attack = APGD(steps=40, ball=L1(1.0))
    found = attack(net, x, y, streams=streams(n))
    for image in (found.x, found.best):
        assert ((image.double() - x).abs().flatten(1).sum(1) <= 1 + 1e-6).all()
    assert torch.equal(net(found.best).argmax(1) != y, ~found.correct.all(0))
    assert found.correct[:12].all(), "at 3 eps nothing counts"
    assert not found.correct.all()
    assert found.loss.isfinite().all()
    (walk,) = attack.runs(net, x)
    state = walk.start(net, x, y, streams=streams(n))
    far = (state["adv"] - x).abs().flatten(1).sum(1)
    assert torch.allclose(far, torch.full((n,), 3.0), atol=1e-5)
    assert (net(state["adv"]).argmax(1) != y).any() or (found.loss[0] == found.loss[1]).all()


def test_l1_apgd_beats_pgd_with_sparse_changes() -> None:
    net, n = curved_net(), 60
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    apgd, pgd = (kind(steps=30, ball=L1(0.1))(net, x, y, streams=streams(n)) for kind in (APGD, PGD))
    assert apgd.correct.all(0).float().mean() < pgd.correct.all(0).float().mean()
    assert ((apgd.best != x).flatten(1).float().mean(1) < 0.01).all()


def test_the_checkpoints_of_100_steps_are_the_published_ones() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    net = make_net()
    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    (walk,) = APGD(ball=Linf(EPS)).runs(net, x)
    state = walk.start(net, x, y, streams=streams(2))
    met = []
    for _ in range(100):
        met.append(int(state["checkpoint"][0]))
        walk.step(net, state)
    assert list(dict.fromkeys(met)) == checkpoints(100)


class Rising(nn.Module):
    """Two logits whose margin takes the values written down, one pass after the other; the gradient is 1 everywhere."""

    def __init__(self, margins: list[float]) -> None:
        super().__init__()
        self.margins = iter(margins)

    def forward(self, x: Tensor) -> Tensor:
        value = x.sum((1, 2, 3)) * 1e-9
        value = value - value.detach() + next(self.margins)
        return torch.stack((-value, torch.zeros_like(value)), 1)


@pytest.mark.parametrize(("first", "halved"), [(-7.0, False), (-4.0, True)])
def test_the_first_window_counts_from_the_start_point(first: float, halved: bool) -> None:
    # Windows of 4 steps at N = 20: a rise of 3 in 4 is too few. Losses above 0 all the way, as cross entropy's are:
    # compared with the 0 of an unfilled place, as in the authors' code, the first step would be a rise in any case.
    margins = [8 + first, 3.0, 4.0, 5.0, 6.0, 7.0, 7.0, 7.0]
    net, x = Rising(margins), torch.full((1, 1, 4, 3), 0.5)
    walk = APGD(steps=20, ball=Linf(0.1), loss="margin", random_start=False).runs(Rising([0.0]), x)[0]
    assert isinstance(walk, APGDRun)
    state = walk.start(net, x, torch.tensor([0]), streams(1))
    for _ in range(5):
        walk.step(net, state)
    assert state["stride"].tolist() == pytest.approx([0.1 if halved else 0.2])


def test_images_go_back_to_their_best_point_when_their_step_is_halved() -> None:
    # The loss falls after the second point, so at the first checkpoint (t = 4) the walk goes on from there.
    net, x = Rising([1.0, 3.0, 2.0, 2.0, 2.0, 2.0]), torch.full((1, 1, 4, 3), 0.5)
    walk = APGD(steps=20, ball=Linf(0.1), loss="margin", random_start=False).runs(Rising([0.0]), x)[0]
    state = walk.start(net, x, torch.tensor([0]), streams(1))
    walk.step(net, state)
    second = state["adv"]
    for _ in range(4):
        walk.step(net, state)
    assert torch.equal(state["peak"], second)
    assert torch.equal(state["before"], second)
    assert state["stride"].tolist() == pytest.approx([0.1])


def sure_net(x: Tensor, classes: int, gap: float = 120.0) -> nn.Module:
    """The curved network with logits so far apart that the least sure image has this gap."""
    logits = curved_net(classes)(x).topk(2, dim=1).values
    return curved_net(classes, gap / float((logits[:, 0] - logits[:, 1]).min().detach()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("ball", "classes"), [(Linf(0.03), 2), (Linf(0.03), 3), (Linf(0.03), 7), (L2(0.6), 7), (L1(8.0), 7)], ids=repr
)
def test_a_logit_gap_of_120_stops_no_loss(ball: Ball, loss: str, classes: int) -> None:
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(3))
    net = sure_net(x, classes)
    y = net(x).argmax(1)
    probability = net(x).detach().softmax(1).gather(1, y[:, None])
    assert (probability == 1).all()
    for attack in (
        PGD(steps=10, ball=ball, loss=loss, random_start=False),
        APGD(steps=10, ball=ball, loss=loss, random_start=False),
        APGD(steps=10, ball=ball, loss=loss, targeted=True, targets=2, random_start=False),
    ):
        found = attack(net, x, y, streams=streams(8))
        before, after = (LOSSES["margin"](net(image), y).detach() for image in (x, found.best))
        assert (after > before + 60).all(), attack
        assert (~found.correct.all(0)).float().mean() >= 0.5, attack


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_there_are_no_more_targets_than_other_classes(classes: int) -> None:
    net = curved_net(classes)
    x, y = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(4) % classes
    attack = APGD(steps=2, ball=Linf(EPS), loss="dlr", targeted=True, restarts=2)
    walks = attack.runs(net, x)
    assert len(walks) == 2 * min(9, classes - 1)
    assert [walk.name for walk in walks[:2]] == ["APGD-T 1", "APGD-T 1 restart 2"]
    assert len({walk.name for walk in walks}) == len(walks)
    targets = torch.stack([walk.start(net, x, y, streams=streams(4))["target"] for walk in walks[::2]], 1)
    starts = [walk.start(net, x, y, streams=streams(4))["adv"] for walk in walks]
    assert (targets != y[:, None]).all()
    assert all(len(row.unique()) == len(row) for row in targets)
    assert len({tuple(start.flatten().tolist()) for start in starts}) == len(starts), "every run starts elsewhere"
    assert attack(net, x, y, streams=streams(4)).x.isfinite().all()


def test_restarts_break_what_a_single_run_does_not() -> None:
    net, n = weak_net(), 60
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    single, many = (APGD(steps=2, ball=Linf(0.1), restarts=k)(net, x, y, streams=streams(n)) for k in (1, 5))
    assert many.correct.all(0).float().mean() < single.correct.all(0).float().mean() - 0.03
    assert (many.loss >= single.loss).all()
