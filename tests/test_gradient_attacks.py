"""FGSM, BIM and PGD: what their parameters mean, against a plain loop and by counting."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.attacks import BIM, FGSM, L2, PGD, AttackResult, Linf, configured, parse_attack
from vizrobust.models import Normalized
from vizrobust.rng import Streams
from vizrobust.training.loop import _weaker

EPS = 8 / 255


def streams(n: int = 5) -> Streams:
    return Streams(0, range(n), "attack")


class Passes:
    """Counts the backward passes through a network, one for each gradient of its images."""

    def __init__(self, net: nn.Module) -> None:
        self.forward = self.gradient = 0

        def count(_net: nn.Module, _inputs: object, output: Tensor) -> None:
            self.forward += 1
            if output.requires_grad:
                output.register_hook(lambda _: setattr(self, "gradient", self.gradient + 1))

        net.register_forward_hook(count)


def plain_loop(net, x, y, steps, alpha, eps, norm="inf", start=None, project=True, target=None) -> list[Tensor]:
    """The attack as a textbook writes it: one image at a time, `.backward()`, numpy-like clips."""
    trajectories = []
    for k in range(len(x)):
        clean = x[k : k + 1]
        adv = (clean if start is None else start[k : k + 1]).clone()
        iterates = [adv]
        for _ in range(steps):
            adv = adv.clone().requires_grad_()
            if target is None:
                F.cross_entropy(net(adv), y[k : k + 1]).backward()
                way = adv.grad
            else:
                F.cross_entropy(net(adv), target[k : k + 1]).backward()
                way = -adv.grad
            way = way.sign() if norm == "inf" else way / way.norm()
            delta = adv.detach() + alpha * way - clean
            if project and norm == "inf":
                delta = torch.from_numpy(np.clip(delta.numpy(), -eps, eps))
            elif project and delta.norm() > eps:
                delta = delta / delta.norm() * eps
            adv = torch.from_numpy(np.clip((clean + delta).numpy(), 0, 1))
            iterates.append(adv)
        trajectories.append(torch.cat(iterates))
    net.zero_grad(set_to_none=True)
    return torch.stack(trajectories, 1)


@pytest.fixture
def double() -> tuple[nn.Module, Tensor, Tensor]:
    """A network and five images in float64, a third of the pixels black or white."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(5, *SHAPE, generator=generator, dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    return make_net().double(), x, torch.tensor([0, 3, 6, 2, 1])


CASES = {
    "FGSM": (FGSM(Linf(EPS)), {"steps": 1, "alpha": EPS}),
    "FGSM-L2": (FGSM(L2(0.5)), {"steps": 1, "alpha": 0.5, "norm": "2", "eps": 0.5}),
    "BIM": (BIM(steps=5, ball=Linf(EPS)), {"steps": 5, "alpha": EPS / 5}),
    "BIM-alpha": (BIM(steps=5, ball=Linf(EPS), alpha=EPS / 2), {"steps": 5, "alpha": EPS / 2}),
    "BIM-unprojected": (BIM(steps=5, ball=Linf(EPS), alpha=EPS, project=False), {"steps": 5, "alpha": EPS, "project": False}),
    "PGD-7": (PGD(steps=7, ball=Linf(EPS), random_start=False), {"steps": 7, "alpha": 2.5 * EPS / 7}),
    "PGD-2": (PGD(steps=2, ball=Linf(EPS), random_start=False), {"steps": 2, "alpha": EPS}),
    "PGD-L2": (
        PGD(steps=7, ball=L2(0.5), random_start=False),
        {"steps": 7, "alpha": 2.5 * 0.5 / 7, "norm": "2", "eps": 0.5},
    ),
    "PGD-target": (
        PGD(steps=5, ball=Linf(EPS), random_start=False, targeted=True, target=4),
        {"steps": 5, "alpha": EPS / 2, "target": torch.full((5,), 4)},
    ),
}


@pytest.mark.parametrize(("attack", "plain"), CASES.values(), ids=CASES)
def test_an_attack_is_its_plain_loop(attack, plain, double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    expected = plain_loop(net, x, y, **{"eps": EPS, **plain})
    found = attack(net, x, y, streams=streams())
    assert (found.x - expected[-1]).abs().max() < 1e-12
    goal = plain.get("target", y)
    sign = 1 if "target" not in plain else -1
    with torch.no_grad():
        losses = torch.stack([sign * F.cross_entropy(net(row), goal, reduction="none") for row in expected])
    assert torch.allclose(found.loss, losses, atol=1e-9)


def test_a_random_start_is_the_streams_own_point_of_the_ball(double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    for ball, norm in ((Linf(EPS), "inf"), (L2(0.5), "2")):
        start = (x + ball.sample(x, streams())).clamp(0, 1)
        assert (start != x).any()
        expected = plain_loop(net, x, y, 4, 2.5 * ball.eps / 4, ball.eps, norm, start)
        assert (PGD(steps=4, ball=ball)(net, x, y, streams=streams()).x - expected[-1]).abs().max() < 1e-12


def test_an_unclipped_start_is_where_the_first_gradient_is_taken(double: tuple[nn.Module, Tensor, Tensor]) -> None:
    """On black images, from the streams' own point outside [0, 1]; then as the textbook has it."""
    net, x, y = double
    x = x * 0.05
    ball = Linf(eps=0.2)
    start = x + ball.sample(x, streams(len(x)))
    assert bool((start < 0).any())
    point = start.clone().requires_grad_()
    F.cross_entropy(net(point), y, reduction="sum").backward()
    expected = (start + 0.25 * point.grad.sign()).clamp(x - 0.2, x + 0.2).clamp(0, 1)
    found = PGD(steps=1, ball=ball, alpha=0.25, clip_start=False)(net, x, y, streams=streams(len(x)))
    torch.testing.assert_close(found.x, expected)
    assert not torch.equal(found.x, PGD(steps=1, ball=ball, alpha=0.25)(net, x, y, streams=streams(len(x))).x)


def test_a_start_outside_the_range_is_no_example() -> None:
    """A network that is wrong only where a pixel is below 0: no image is broken, and the best point is an image."""

    class Below(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            below = -x.flatten(1).amin(1) - 1e-6
            return torch.stack((torch.zeros_like(below), below), 1)

    x, y = torch.zeros(5, 1, 4, 6), torch.zeros(5, dtype=torch.int64)
    attack = PGD(steps=2, ball=Linf(eps=0.3), clip_start=False)
    assert bool(attack(Below(), x, y, streams=streams()).correct.all())
    (walk,) = attack.runs(Below(), x)
    state = walk.start(Below(), x, y, streams=streams())
    walk.step(Below(), state)
    assert not bool(state["misclassified"].any())
    assert bool(((state["best"] >= 0) & (state["best"] <= 1)).all())


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_k_steps_are_k_gradients_and_the_kth_iterate(steps: int, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    passes = Passes(net)
    PGD(steps=steps, ball=Linf(EPS))(net, *images, streams=streams())
    assert (passes.forward, passes.gradient) == (steps + 1, steps)
    PGD(steps=steps, ball=Linf(EPS))(net, *images, streams=streams(), evaluate=False)
    assert (passes.forward, passes.gradient) == (2 * steps + 1, 2 * steps)


def test_fgsm_and_restarts_count_too(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    passes = Passes(net)
    FGSM(Linf(EPS))(net, *images, streams=streams(), evaluate=False)
    assert (passes.forward, passes.gradient) == (1, 1)
    PGD(steps=3, restarts=4, ball=Linf(EPS))(net, *images, streams=streams())
    assert (passes.forward, passes.gradient) == (1 + 4 * 4, 1 + 4 * 3)


def test_no_weight_gradient_is_computed(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    def refuse(_: Tensor) -> None:
        raise AssertionError("a weight gradient was computed")

    for weight in net.parameters():
        weight.register_hook(refuse)
    PGD(steps=2, ball=Linf(EPS))(net, *images, streams=streams())


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=repr)
def test_one_step_of_eps_from_the_image_is_fgsm_exactly(ball, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    fgsm = FGSM(ball)(net, *images, streams=streams())
    pgd = PGD(steps=1, ball=ball, random_start=False, alpha=ball.eps)(net, *images, streams=streams())
    default = PGD(steps=1, ball=ball, random_start=False)(net, *images, streams=streams())
    ism = BIM(steps=1, ball=ball)(net, *images, streams=streams())
    for other in (pgd, default, ism):
        assert torch.equal(fgsm.x, other.x)
        assert torch.equal(fgsm.loss, other.loss)


def test_iterates_of_a_longer_run_at_the_same_step_are_nested(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    long = PGD(steps=6, ball=Linf(EPS), alpha=EPS / 4)(net, *images, streams=streams())
    for steps in range(6):
        short = PGD(steps=steps, ball=Linf(EPS), alpha=EPS / 4)(net, *images, streams=streams())
        assert torch.equal(short.loss, long.loss[: steps + 1])
        assert torch.equal(short.correct, long.correct[: steps + 1])


def test_unprojected_iteration_leaves_the_ball_only_when_it_can(net: nn.Module) -> None:
    # Images away from 0 and 1, where clipping would keep the change small.
    x, y = torch.full((5, *SHAPE), 0.5), torch.tensor([0, 3, 6, 2, 1])
    far = BIM(steps=10, ball=Linf(EPS), alpha=EPS / 2, project=False)(net, x, y, streams=streams())
    assert (Linf(EPS).norm(far.x - x) > 2 * EPS).all()
    inside = BIM(steps=10, ball=Linf(EPS), project=False)(net, x, y, streams=streams())
    assert (Linf(EPS).norm(inside.x - x) <= EPS + 1e-6).all()
    assert torch.allclose(inside.x, BIM(steps=10, ball=Linf(EPS))(net, x, y, streams=streams()).x, atol=1e-6)
    assert far.x.min() >= 0
    assert far.x.max() <= 1


NOTHING = [FGSM(Linf(0)), BIM(ball=Linf(0)), PGD(steps=3, ball=Linf(0)), PGD(steps=3, ball=L2(0))]


@pytest.mark.parametrize("attack", NOTHING, ids=repr)
def test_a_radius_of_zero_changes_nothing(attack, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    assert torch.equal(attack(net, x, y, streams=streams()).x, x)


def test_black_and_white_pixels_have_a_gradient_too(net: nn.Module) -> None:
    x = torch.randint(2, (5, *SHAPE), generator=torch.Generator().manual_seed(0)).float()
    found = PGD(steps=5, ball=Linf(0.3))(net, x, torch.tensor([0, 3, 6, 2, 1]), streams=streams())
    moved = found.x - x
    # On a pixel at its bound only one direction is open; the gradient points there about half of the time.
    assert ((moved != 0).float().mean((1, 2, 3)) > 0.3).all()
    assert (found.loss[-1] > found.loss[0]).all()


def test_the_range_is_clipped_after_the_ball() -> None:
    """On a linear network the optimum is known: every pixel goes eps along its weight, or to the bound."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).double()
    x = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(1, 1, 4, 3)
    weight = net[1].weight.detach()
    up = (weight[1] - weight[0]).reshape(1, 1, 4, 3).sign()
    found = PGD(steps=10, ball=Linf(0.25))(net, x, torch.tensor([0]), streams=streams(1))
    assert (found.x - (x + 0.25 * up).clamp(0, 1)).abs().max() < 1e-12


def weak_net() -> nn.Module:
    """Curved on the scale of the ball, so that restarts end in different places."""
    torch.manual_seed(5)
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, CLASSES))
    with torch.no_grad():
        body[1].weight *= 12
    return Normalized(body, [0.5], [0.3]).eval()


def test_restarts_count_the_worst_for_each_image() -> None:
    net, n = weak_net(), 60
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    attack = PGD(steps=3, ball=Linf(0.06), alpha=0.02, restarts=4)
    found = attack(net, x, y, streams=streams(n))
    # The same four runs, one by one: each restart has a stream of its own, the first that of an attack without restarts.
    one = PGD(steps=3, ball=Linf(0.06), alpha=0.02)
    runs: list[AttackResult] = [
        one(net, x, y, streams=begun) for begun in (streams(n), *(streams(n).child(f"restart {r}") for r in (1, 2, 3)))
    ]
    losses, corrects = torch.stack([run.loss for run in runs]), torch.stack([run.correct for run in runs])
    assert torch.equal(found.loss, losses.amax(0))
    assert torch.equal(found.correct, corrects.all(0))
    by_run, together = corrects.all(1).float().mean(1), found.correct.all(0).float().mean()
    assert together < by_run.min(), "worse than the worst single run: each image has its own worst"
    fooled = ~corrects.all(1).all(0)
    assert 0 < fooled.sum() < n
    for k in range(n):
        assert any(torch.equal(found.best[k], run.best[k]) for run in runs)
        assert any(torch.equal(found.x[k], run.x[k]) for run in runs)
    wrong = net(found.best).argmax(1) != y
    assert torch.equal(wrong, fooled), "best is wrong exactly where any iterate of any restart was"
    wrong_at_the_end = net(found.x).argmax(1) != y
    assert torch.equal(wrong_at_the_end, ~corrects[:, -1].all(0))


def test_best_is_wrong_if_any_iterate_was() -> None:
    net, n = weak_net(), 60
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    # Steps so long that many runs pass a wrong point and come back.
    found = PGD(steps=6, ball=Linf(0.08), alpha=0.08)(net, x, y, streams=streams(n))
    met = ~found.correct.all(0)
    assert (met & found.correct[-1]).any(), "some were met on the way and lost at the end"
    assert torch.equal(net(found.best).argmax(1) != y, met)
    never = ~met
    best_loss = F.cross_entropy(net(found.best), y, reduction="none")
    assert torch.allclose(best_loss[never], found.loss.amax(0)[never], atol=1e-5)


class Scripted(nn.Module):
    """Answers each pass with logits written down beforehand; the images' gradient is 1 everywhere."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.answers = iter(logits)

    def forward(self, x: Tensor) -> Tensor:
        rise = x.sum((1, 2, 3))[:, None] * torch.tensor([[-1.0, 0.0, 0.0]])
        return torch.tensor(next(self.answers)) + rise - rise.detach()


# For an image of class 0: right but unsure (loss 1.03), wrong yet nearly right (0.70), right and sure (0.09).
UNSURE, WRONG, SURE = [0.1, 0.0, 0.0], [0.0, 0.01, -9.0], [3.0, 0.0, 0.0]


def test_a_wrong_iterate_is_better_than_a_right_one_of_higher_loss() -> None:
    x, y = torch.full((1, 1, 4, 3), 0.5), torch.tensor([0])
    found = PGD(steps=2, ball=Linf(0.2), alpha=0.1, random_start=False)(Scripted([UNSURE, WRONG, SURE]), x, y, streams=streams(1))
    assert found.correct[:, 0].tolist() == [True, False, True]
    assert found.loss[0, 0] > found.loss[1, 0] > found.loss[2, 0]
    assert torch.allclose(found.best, x + 0.1)
    assert torch.allclose(found.x, x + 0.2)


@pytest.mark.parametrize("script", [[SURE, UNSURE, SURE, WRONG], [SURE, WRONG, SURE, UNSURE]], ids=["last", "first"])
def test_a_wrong_restart_is_worse_than_a_right_one_of_higher_loss(script: list[list[float]]) -> None:
    x, y = torch.full((1, 1, 4, 3), 0.5), torch.tensor([0])
    single = PGD(steps=1, ball=Linf(0.2), alpha=0.1)
    begun = (streams(1), streams(1).child("restart 1"))
    runs = [single(Scripted(script[2 * k : 2 * k + 2]), x, y, streams=begun[k]) for k in range(2)]
    wrong = next(run for run in runs if not run.correct.all())
    found = PGD(steps=1, ball=Linf(0.2), alpha=0.1, restarts=2)(Scripted(script), x, y, streams=streams(1))
    assert torch.equal(found.best, wrong.best)
    assert torch.equal(found.x, wrong.x)
    assert found.correct[:, 0].tolist() == [True, False]
    assert torch.equal(found.loss, torch.maximum(runs[0].loss, runs[1].loss))


class Raw:
    """A ball that steps along the gradient as it is, so that any scaling of it shows."""

    eps = 10.0

    def norm(self, delta: Tensor) -> Tensor:
        return L2(1).norm(delta)

    def project(self, delta: Tensor) -> Tensor:
        return delta

    def project_image(self, x: Tensor, adv: Tensor) -> Tensor:
        return adv

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        return grad

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        return torch.zeros_like(like)


def test_a_gradient_is_the_images_own_whatever_the_size_of_the_batch(double: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = double
    attack = PGD(steps=3, ball=Raw(), alpha=1.0)
    together = attack(net, x, y, streams=streams()).x
    assert (together - x).abs().max() > 1e-3
    for k in range(5):
        alone = attack(net, x[k : k + 1], y[k : k + 1], streams=streams(1)).x
        assert (alone[0] - together[k]).abs().max() < 1e-12


def test_a_targeted_attack_drives_images_to_their_target(net: nn.Module) -> None:
    x = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % CLASSES
    attack = PGD(steps=20, ball=Linf(0.3), targeted=True)
    found = attack(net, x, y, streams=streams(40))
    reached = net(found.x).argmax(1)
    assert (reached != y).all(), "the classes drawn are wrong ones"
    assert len(reached.unique()) == CLASSES
    assert torch.equal(attack(net, x, y, streams=streams(40)).x, found.x)
    # The draw is the image's own: it does not depend on the other images.
    part = attack(net, x[7:12], y[7:12], streams=Streams(0, range(7, 12), "attack"))
    assert torch.equal(net(part.x).argmax(1), reached[7:12])
    assert (found.loss[-1] > found.loss[0]).all(), "the loss recorded rises towards the target"
    fixed = PGD(steps=20, ball=Linf(0.3), targeted=True, target=2)(net, x, y, streams=streams(40))
    assert (net(fixed.x).argmax(1) == 2).float().mean() > 0.9


def test_a_target_that_the_network_does_not_have_is_refused(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="target class 7 does not exist: the network has classes 0 to 6"):
        PGD(ball=Linf(EPS), targeted=True, target=CLASSES)(net, *images, streams=streams())


def test_batchnorm_does_not_see_the_attack(images: tuple[Tensor, Tensor]) -> None:
    net = make_net("resnet_small").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    PGD(steps=3, ball=Linf(EPS))(net, *images, streams=streams())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training


class TestFit:
    def test_the_data_sets_radius_fills_an_open_one(self) -> None:
        assert configured(PGD(), default_eps=0.3) == PGD(ball=Linf(0.3))
        assert configured(PGD(ball=Linf(0.1)), default_eps=0.3) == PGD(ball=Linf(0.1))

    def test_common_fields_apply_where_there_are_any(self) -> None:
        assert configured(PGD(), default_eps=0.3, eps=0.2, steps=7) == PGD(steps=7, ball=Linf(0.2))
        assert configured(FGSM(), default_eps=0.3, steps=7, alpha=None) == FGSM(ball=Linf(0.3))

    def test_another_norm_needs_its_own_radius(self) -> None:
        assert configured(PGD(ball=Linf(0.1)), norm="l2", eps=2) == PGD(ball=L2(2))
        assert configured(PGD(ball=Linf(0.1)), norm="LINF") == PGD(ball=Linf(0.1))
        for attack in (PGD(ball=Linf(0.1)), PGD(ball=L2())):
            with pytest.raises(ValueError, match=r"PGD with L2 has no eps; give eps, or L2\(eps=…\)"):
                configured(attack, default_eps=0.3, norm="L2")
        with pytest.raises(ValueError, match="no norm 'L3'; did you mean L2"):
            configured(PGD(), norm="L3")

    def test_no_radius_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="PGD with Linf has no eps"):
            configured(PGD())


@pytest.mark.parametrize("alpha", ["eps/16", "eps", "2.5 * eps", "0.3 * eps", "eps/3", "0.0 * eps"])
def test_a_step_size_may_be_a_share_of_eps(alpha: str) -> None:
    attack = parse_attack(f"PGD(steps=3, alpha={alpha})")
    assert parse_attack(repr(attack)) == attack
    assert f"alpha={alpha}" in repr(attack)
    share = attack.alpha.of(1.0)
    fitted = configured(attack, 8 / 255)
    assert parse_attack(repr(fitted)) == fitted
    (run,) = fitted.runs(None, torch.zeros(1, 1, 2, 2))
    assert run.alpha == share * (8 / 255)
    assert _weaker(fitted, 0.5).runs(None, torch.zeros(1, 1, 2, 2))[0].alpha == share * (4 / 255)
    other = parse_attack(f"Elastic(eps=2, alpha={alpha})")
    assert other.runs(None, torch.zeros(1, 1, 8, 8))[0].alpha == share * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PGD(alpha=-eps/16)", "alpha must not be negative, got -0.0625 * eps"),
        ("PGD(alpha=eps/0)", "b not 0"),
        ("PGD(alpha=eps + 1)", "cannot be combined"),
        ("PGD(alpha=eps * eps)", "cannot be combined"),
        ("PGD(steps=eps)", "steps must be a whole number, got eps"),
        ("PGD(eps=eps/2)", "eps must be a number, got eps/2"),
        ("PGD(alpha=eps('x'))", "share must be a number, got 'x'"),
        ("Elastic(alpha=inf * eps)", "alpha must be finite and not negative"),
        ("eps", "is not an attack"),
    ],
)
def test_a_share_of_eps_is_a_step_size_alone(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_attack(text)
