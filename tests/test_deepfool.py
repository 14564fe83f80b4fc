"""DeepFool: the closed form on linear networks, and foolbox's points on a trained one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.digits import digits, digits_net
from tests.test_fab import case, linear_net, smallest
from vizrobust.attacks import L2, Ball, DeepFool, Linf
from vizrobust.attacks.threat_models import dual_norm
from vizrobust.rng import Streams

balls = pytest.mark.parametrize("ball", [Linf(), L2()], ids=["Linf", "L2"])


@balls
def test_on_a_linear_network_one_step_crosses_the_nearest_boundary(ball: Ball) -> None:
    net = linear_net(4)
    x, y = case(net)
    x = 0.4 + 0.2 * x  # nothing is cut off at 0 or 1
    net[1].weight.data *= 20
    y = net(x).argmax(1)
    logits, weight = net(x), net[1].weight
    distance = torch.full((6,), torch.inf, dtype=x.dtype)
    for other in range(4):
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, other]
        size = dual_norm(ball, (weight[other] - weight[y]).reshape(x.shape))
        distance = torch.where(y == other, distance, torch.minimum(distance, gap / size))
    assert torch.allclose(smallest(DeepFool(ball=ball), net, x, y), 1.02 * (distance + 1e-4), rtol=1e-6)
    assert torch.allclose(smallest(DeepFool(ball=ball, overshoot=0.5), net, x, y), 1.5 * (distance + 1e-4), rtol=1e-6)


@pytest.mark.peers
@balls
def test_it_goes_where_foolbox_goes(ball: Ball) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox", reason="foolbox is not here", exc_type=ImportError)
        net, (x, y) = digits_net(), digits(20)
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        peer = getattr(foolbox.attacks, f"{type(ball).__name__}DeepFoolAttack")(steps=50, candidates=4, overshoot=0.02)
        theirs, _, broken = peer(model, x, y, epsilons=None)
    attack = DeepFool(ball=ball, candidates=4)
    mine = attack(net, x, y, streams=Streams(0, range(20)))
    assert torch.equal(~mine.correct.all(0), broken)
    norms, same = (ball.norm(image - x) for image in (mine.best, theirs))
    assert torch.allclose(norms.median(), same.median(), rtol=1e-2)
    # One that is wrong by a hair for one of the two may go a step on for the other.
    assert ((mine.best - theirs).abs().flatten(1).amax(1) < 1e-3).float().mean() >= 0.9


@balls
def test_broken_images_stay_and_are_done(ball: Ball) -> None:
    net, (x, y) = digits_net(), digits(20)
    (walk,) = DeepFool(ball=ball).runs(net, x)
    state = walk.start(net, x, y, Streams(0, range(20)))
    places, dones = [], []
    for _ in range(12):
        walk.step(net, state)
        places.append(state["at"])
        dones.append(state["done"])
    assert not dones[0].any()
    assert 0 < dones[3].sum() < 20, "at different steps"
    for t in range(11):
        assert (dones[t + 1] | ~dones[t]).all()
        assert torch.equal(places[t + 1][dones[t]], places[t][dones[t]])
    assert torch.equal(dones[-1], net(places[-1]).argmax(1) != y)
    assert torch.equal(state["best"][dones[-1]], places[-1][dones[-1]])


@balls
def test_with_an_eps_only_what_is_inside_counts(ball: Ball) -> None:
    net, (x, y) = digits_net(), digits(9)
    far = smallest(DeepFool(ball=ball, steps=15, candidates=3), net, x, y)
    limited = type(ball)(eps=float(far.median()))
    found = DeepFool(ball=limited, steps=15, candidates=3)(net, x, y, streams=Streams(0, range(9)))
    assert torch.equal(~found.correct.all(0), far <= limited.eps)
    for image in (found.x, found.best):
        assert (ball.norm(image - x) <= limited.eps + 1e-6).all()


@balls
def test_a_flat_or_a_two_class_network_is_no_trouble(ball: Ball) -> None:
    net = linear_net(2)
    x, y = case(net)
    assert smallest(DeepFool(ball=ball), net, x, y).isfinite().all()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(24, 2, dtype=torch.float64))
    nn.init.zeros_(flat[1].weight)
    flat[1].bias.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = DeepFool(ball=ball, steps=3)(flat, x, 0 * y, streams=Streams(0, range(6)))
    assert torch.equal(found.x, x)
    assert found.correct.all()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("candidates", 1, "candidates must be at least 2"),
        ("overshoot", -1, "overshoot must be at least 0"),
        ("steps", -1, "steps"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(field: str, value: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DeepFool(**{field: value})
