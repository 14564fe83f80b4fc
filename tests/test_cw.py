"""C&W: its search for c by hand, near the optimum on linear networks, and sound where other implementations are not."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.digits import digits, digits_net
from tests.test_fab import case, exact, linear_net, smallest
from vizrobust.attacks import CW, L2, Linf
from vizrobust.attacks.penalty_attacks import _image
from vizrobust.rng import Streams


@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_linear_network_it_comes_near_the_smallest_perturbation(classes: int) -> None:
    net = linear_net(classes)
    x, y = case(net)
    found, best = smallest(CW(steps=40, search_steps=5, initial_c=1.0, lr=0.1), net, x, y), exact(L2(), net, x, y)
    assert (found >= best * (1 - 1e-9)).all()
    assert (found / best).median() <= 1.05
    assert (found <= best * 1.25 + 0.01).all()


def test_the_smallest_perturbation_does_not_depend_on_the_logits_offset() -> None:
    net = linear_net(3)
    x, y = case(net)
    attack, usual = CW(steps=12, search_steps=3, initial_c=1.0, lr=0.1), None
    # With all logits below 0 a zero in place of the label's own would pass for the largest other one.
    for offset in (0.0, -100.0, 100.0):
        shifted = linear_net(3, offset)
        found = smallest(attack, shifted, x, y)
        assert found.isfinite().all()
        usual = found if usual is None else usual
        assert torch.allclose(found, usual, rtol=1e-6)


@pytest.mark.peers
def test_black_and_white_images_move() -> None:
    net, (x, y) = digits_net(), digits(40)
    x = x.round()
    right = (net(x).argmax(1) == y).nonzero()[:5, 0]
    x, y = x[right], y[right]
    assert smallest(CW(steps=40, search_steps=2, initial_c=100.0, lr=0.1), net, x, y).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not here", exc_type=ImportError)
        assert torch.equal(torchattacks.CW(net, c=100, steps=10, lr=0.1)(x, y), x), "what the test is about"


@pytest.mark.peers
def test_it_is_as_near_as_foolboxs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox", reason="foolbox is not here", exc_type=ImportError)
        net, (x, y) = digits_net(), digits(7)
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        peer = foolbox.attacks.L2CarliniWagnerAttack(4, 60, 0.1, initial_const=1.0, abort_early=False)
        adv, _, broken = peer(model, x, y, epsilons=None)
    theirs = torch.where(broken, L2().norm(adv - x), torch.inf)
    mine = smallest(CW(steps=60, search_steps=4, lr=0.1, initial_c=1.0), net, x, y)
    assert torch.equal(mine.isfinite(), theirs.isfinite())
    assert mine.median() <= theirs.median() * 1.02
    assert mine.median() >= theirs.median() * 0.8


def test_each_image_searches_for_its_own_c() -> None:
    """The bounds after every round, by a loop over plain numbers."""
    net = linear_net(3)
    x, y = case(net)
    attack = CW(steps=7, search_steps=6, lr=0.1)
    (walk,) = attack.runs(net, x)
    assert walk.steps == 42
    state = walk.start(net, x, y, Streams(0, range(6)))
    rounds: list[list[tuple[float, bool]]] = [[] for _ in range(6)]
    for t in range(42):
        before, wrong = state["c"].clone(), net(state["at"]).argmax(1) != y
        walk.step(net, state)
        for k in range(6):
            if t > 0:
                rounds[k].append((float(before[k]), bool(wrong[k])))
        restarted = bool((state["at"] - x).abs().max() < 1e-12)
        assert restarted == (t > 0 and t % 7 == 0), "all images of this batch began together"
        if restarted:
            assert (state["k"] == 0).all()
            assert (state["mean"] == 0).all()
    for tries in rounds:
        c, low, high = 0.1, 0.0, float("inf")
        for start in range(0, 41, 7):
            part = tries[start : start + 7]
            assert [used for used, _ in part] == pytest.approx([c] * len(part))
            if any(wrong for _, wrong in part):
                high = min(high, c)
            else:
                low = max(low, c)
            c = 10 * c if high == float("inf") else (low + high) / 2
    assert len({tuple(tries) for tries in rounds}) > 1


@pytest.mark.parametrize("confidence", [0.0, 50.0])
def test_a_step_is_adams_on_the_objective(confidence: float) -> None:
    net, (x, y) = digits_net(), digits(5)
    # The last two are wrong from the start, so only a confidence pushes them farther.
    y = torch.where(torch.arange(5) < 3, y, (y + 1) % 10)
    net, x = nn.Sequential(net).double(), x.double() * 0.8 + 0.1
    try:
        attack = CW(steps=50, initial_c=3.0, confidence=confidence)
        (walk,) = attack.runs(net, x)
        state = walk.start(net, x, y, Streams(0, range(5)))
        w = state["w"].clone().requires_grad_()
        start = _image(state["w"])
        assert torch.allclose(start, x, rtol=0, atol=1e-12)
        adam = torch.optim.Adam([w], lr=attack.lr)
        for _ in range(6):
            walk.step(net, state)
            adv = 0.5 + (0.5 + 0.01) * w.tanh()
            logits = net(adv)
            own = logits.gather(1, y[:, None])[:, 0]
            other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            loss = (adv - start).square().sum() + 3 * (own - other + confidence).clamp_min(0).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            assert torch.allclose(state["w"], w, rtol=0, atol=1e-9)
    finally:
        net.float()


def test_with_confidence_the_wrong_class_leads_by_as_much() -> None:
    net = linear_net(3)
    x, y = case(net)
    attack = CW(steps=20, search_steps=3, lr=0.1, initial_c=10.0)
    usual = smallest(attack, net, x, y)
    lead = 0.2
    found = replace(attack, confidence=lead)(net, x, y, streams=Streams(0, range(6)))
    logits = net(found.best)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    broken = ~found.correct.all(0)
    assert broken.any()
    assert (others - own >= lead - 1e-9)[broken].all()
    assert (L2().norm(found.best - x) >= usual)[broken].all()


def test_with_an_eps_only_what_is_inside_counts() -> None:
    net = linear_net(3)
    x, y = case(net)
    attack = CW(steps=20, search_steps=3, lr=0.1, initial_c=10.0)
    far = smallest(attack, net, x, y)
    limited = L2(eps=float(far.sort().values[2]) * 1.001)
    found = replace(attack, ball=limited)(net, x, y, streams=Streams(0, range(6)))
    assert torch.equal(~found.correct.all(0), far <= limited.eps)
    for image in (found.x, found.best):
        assert (limited.norm(image - x) <= limited.eps + 1e-6).all()
        assert ((image >= 0) & (image <= 1)).all()


def test_an_image_that_is_wrong_needs_no_perturbation() -> None:
    net = linear_net(3)
    x, y = case(net)
    wrong = (y + 1) % 3
    for confidence in (0.0, 5.0):
        found = CW(steps=3, confidence=confidence)(net, x, wrong, streams=Streams(0, range(6)))
        assert torch.equal(found.best, x)
        assert not found.correct[0].any()


class LeftPart(nn.Module):
    """The network, on the first eight columns."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[..., :8])


def test_pixels_that_the_network_does_not_see_stay() -> None:
    net, (x, y) = digits_net(), digits(6)
    # So many that tanh and atanh do not give some of them back to the last bit.
    wide = torch.cat((x, torch.rand(6, 1, 8, 400, generator=torch.Generator().manual_seed(0))), -1)
    found = CW(steps=15, search_steps=2, initial_c=10.0)(LeftPart(net), wide, y, streams=Streams(0, range(6)))
    assert not found.correct.all()
    moved = (found.x - wide).abs()
    assert moved[..., :8].max() > 0.01
    assert moved[..., 8:].max() <= 1e-6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ball": Linf()}, "CW: the ball must be L2, got Linf"),
        ({"lr": 0.0}, "CW: lr must be above 0, got 0"),
        ({"search_steps": 0}, "CW: search_steps must be at least 1, got 0"),
        ({"confidence": -1.0}, "CW: confidence must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CW(**fields)


def test_the_image_is_where_it_starts_also_where_it_is_black_or_white() -> None:
    x = torch.tensor([0.0, 1.0, 0.5, 0.001, 0.999]).reshape(1, 1, 1, 5)
    (walk,) = CW().runs(nn.Identity(), x)
    state = walk.start(nn.Identity(), x, torch.tensor([0]), Streams(0, [0]))
    assert (_image(state["w"]) - x).abs().max() <= 1e-6
