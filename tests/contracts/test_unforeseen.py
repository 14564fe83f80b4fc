"""Contract: every unforeseen attack changes nothing at strength 0, climbs, stays allowed, and keeps images apart."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import CLASSES, assert_alone_as_in_a_batch, assert_the_same_at_one_batch_size, make_net
from tests.contracts.test_attacks import everything_about, lived_in_net
from vizrobust.attacks import LOSSES, NAMES, UNFORESEEN, family, strengths
from vizrobust.attacks.attack import Attack, AttackRun, State
from vizrobust.data import load
from vizrobust.models import evaluating, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.spec import parse, vary

SHAPE = (3, 20, 23)  # odd, not square, a multiple of no block; smaller than any real image, to be quick
SHAPES = [(1, 28, 28), (3, 29, 47), (1, 50, 31), (3, 64, 64)]
ATTACKS: dict[str, Any] = {name: thing() for name, thing in UNFORESEEN.items()}
ATTACKS |= {f"JPEG-{norm}": vary(ATTACKS["JPEG"], norm=norm) for norm in ("l2", "l1")}
ATTACKS |= {"Snow-signs": vary(ATTACKS["Snow"], signs=True), "Fog-targeted": vary(ATTACKS["Fog"], targeted=True)}
# Strong enough to reach bounds, saturated pixels and all.
EPS = {"Elastic": 1.5, "JPEG": 1.0, "JPEG-l2": 20.0, "JPEG-l1": 150.0, "Fog": 1.0, "Snow": 1.0, "Snow-signs": 1.0, "Gabor": 0.5}
EPS |= {"Pixel": 4.0, "Glitch": 0.2, "Kaleidoscope": 0.2, "Wood": 0.1, "Fog-targeted": 1.0}
# Attacks that add to the image, so that it has to be clipped.
ADDED = [name for name in ATTACKS if name.startswith(("JPEG", "Snow", "Gabor", "Kaleidoscope"))]
every_attack = pytest.mark.parametrize("name", list(ATTACKS))


def make(name: str, **changes: Any) -> Any:
    return vary(ATTACKS[name], **{"eps": EPS[name], **changes})


def batch(n: int, shape: tuple[int, int, int] = SHAPE, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # A third of the pixels are saturated, as in MNIST.
    x = (torch.rand(n, *shape, generator=generator, dtype=dtype) * 1.5 - 0.25).clamp(0, 1)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def streams(items: Any) -> Streams:
    return Streams(0, items, "attack")


@every_attack
class TestEveryUnforeseenAttack:
    def test_it_is_an_attack_that_text_can_name(self, name: str) -> None:
        attack = make(name, steps=3)
        assert isinstance(attack, Attack)
        assert parse(repr(attack), NAMES) == attack
        assert all(isinstance(walk, AttackRun) for walk in attack.runs(make_net(shape=SHAPE), batch(1)[0]))

    def test_without_a_strength_it_says_what_to_write(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"has no eps: write \w+\(eps=…\)"):
            make(name, eps=None)(make_net(shape=SHAPE), *batch(2), streams=streams(range(2)))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_strength_0_changes_nothing_and_others_stay_in_range(self, name: str, shape: tuple[int, int, int]) -> None:
        x, _ = batch(3, shape)
        for eps in (0.0, EPS[name]):
            attack = make(name, eps=eps)
            v = attack.init(x, streams(range(3)))
            z = v["z"].clone().requires_grad_()
            image = attack.apply(x, {**v, "z": z})
            (grad,) = torch.autograd.grad(image.square().sum(), z)
            assert grad.isfinite().all()
            assert image.shape == x.shape
            assert image.dtype == x.dtype
            assert image.min() >= 0
            assert image.max() <= 1
            assert all(len(value) == 3 for value in v.values()), "the first axis is the image"
            # grid_sample's coordinates round; nothing else does.
            assert ((image - x).abs().max() <= 2e-5) == (eps == 0)

    def test_what_comes_back(self, name: str) -> None:
        x, y = batch(4)
        net, attack = make_net(shape=SHAPE), make(name, steps=3)
        before = x.clone()
        found = attack(net, x, y, streams=streams(range(4)))
        assert torch.equal(x, before)
        assert found.loss.shape == found.correct.shape == (4, 4)
        for image in (found.x, found.best):
            assert image.shape == x.shape
            assert not image.requires_grad
            assert image.min() >= 0
            assert image.max() <= 1
        with torch.no_grad():
            logits = net(found.x)
        assert torch.equal(found.correct[-1], logits.argmax(1) == y)
        if not attack.targeted:
            assert torch.allclose(found.loss[-1], LOSSES["ce"](logits, y), atol=1e-6)
        assert torch.equal(attack(net, x, y, streams=streams(range(4)), evaluate=False).x, found.x)
        assert torch.equal(attack(net, x, y, streams=streams(range(4))).x, found.x), "the same streams give the same images"
        assert not torch.equal(attack(net, x, y, streams=streams(range(4, 8))).x, found.x)

    def test_the_network_is_borrowed(self, name: str) -> None:
        net = lived_in_net(torch.nn.Identity())
        before = everything_about(net)
        make(name, steps=2)(net, *batch(5), streams=streams(range(5)))
        assert everything_about(net) == before

    def test_the_variable_starts_and_stays_allowed(self, name: str) -> None:
        x, y = batch(3)
        net, attack = make_net(shape=SHAPE), make(name, steps=4)
        (walk,) = attack.runs(net, x)
        state = walk.start(net, x, y, streams=streams(range(3)))
        for _ in range(4):
            v = {key.removeprefix("params."): value for key, value in state.items() if key.startswith("params.")}
            again = attack.project(v)
            assert torch.allclose(again, v["z"], rtol=1e-5, atol=1e-6), "projecting what is allowed changes nothing"
            back = attack.project({**v, "z": 3 - 20 * v["z"]})
            assert torch.allclose(attack.project({**v, "z": back}), back, rtol=1e-5, atol=1e-6)
            before = v["z"]
            walk.step(net, state)
            assert not torch.equal(state["params.z"], before)
            with torch.no_grad():
                image = attack.apply(x, {**v, "z": state["params.z"]})
            assert torch.equal(image, state["adv"])

    def test_clipping_hides_no_gradient(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        x = (batch(2)[0] > 0.5).float()
        attack = make(name)
        v = attack.init(x, streams(range(2)))
        weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))

        def gradient(of: Tensor | None = None) -> tuple[Tensor, Tensor]:
            z = v["z"].clone().requires_grad_()
            image = attack.apply(x, {**v, "z": z})
            (grad,) = torch.autograd.grad((image * weights)[... if of is None else of].sum(), z)
            return image.detach(), grad

        image, with_clip = gradient()
        if name in ADDED:
            black, white = image == 0, image == 1
            assert gradient(black | white)[1].abs().sum() > 0
            assert (black | white).float().mean() > 0.1
        monkeypatch.setattr(importlib.import_module(type(attack).__module__), "clip", lambda image: image, raising=False)
        without, unclipped = gradient()
        assert torch.equal(with_clip, unclipped)
        assert ((without < 0) | (without > 1)).any() == (name in ADDED), "only what is added to an image can leave [0, 1]"

    def test_in_bf16_the_image_is_made_in_its_own_precision(self, name: str) -> None:
        x, y = batch(3)
        net, attack = make_net(shape=SHAPE), make(name, steps=2)
        (walk,) = attack.runs(net, x)
        start = walk.start(net, x, y, streams=streams(range(3)))["adv"]
        with torch.autocast("cpu", torch.bfloat16):
            state = walk.start(net, x, y, streams=streams(range(3)))
            walk.step(net, state)
        assert torch.equal(state["best"], start)
        assert state["adv"].dtype == torch.float32

    def test_in_float64_an_image_alone_is_the_same_as_in_a_batch(self, name: str) -> None:
        net = make_net(shape=SHAPE).double()
        assert_alone_as_in_a_batch(make(name, steps=4), net, *batch(5, dtype=torch.float64), (0, 3))

    def test_in_fp32_at_one_batch_size_an_image_is_the_same_bit_for_bit(self, name: str) -> None:
        assert_the_same_at_one_batch_size(make(name, steps=3), make_net(shape=SHAPE), *batch(11))

    def test_a_slot_filled_again_at_another_step_changes_nothing(self, name: str) -> None:
        net = make_net(shape=SHAPE)
        x, y = batch(6)
        (walk,) = make(name, steps=5).runs(net, x)

        def walked(state: State, count: int) -> State:
            for _ in range(count):
                walk.step(net, state)
            return state

        with evaluating(net):
            whole = walked(walk.start(net, x, y, streams=streams(range(6))), 5)
            # Rows 1 and 4 hold other images for two steps, then make room for those that `whole` had there.
            others = [0, 5, 2, 3, 1, 5]
            state = walked(walk.start(net, x[others], y[others], streams(others)), 2)
            for key, value in walk.start(net, x, y, streams=streams(range(6))).items():
                state[key] = state[key].clone().index_copy(0, torch.tensor([1, 4]), value[[1, 4]])
            early = {key: value.clone() for key, value in walked(state, 3).items()}
            late = walked(state, 2)
        for key in ("adv", "best", "params.z", "loss", "best_loss"):
            assert torch.equal(early[key][[0, 2, 3]], whole[key][[0, 2, 3]]), key
            assert torch.equal(late[key][[1, 4]], whole[key][[1, 4]]), key


@pytest.fixture(scope="module")
def digits() -> tuple[torch.nn.Module, Tensor, Tensor]:
    data = load("mnist5k")
    net = load_checkpoint("mnist-k0").net()
    return net, data.test.take(torch.arange(30)), data.test.labels[:30]


# The share of the accuracy that goes from low to high; Wood is harmless on digits, Kaleidoscope harmful from the start.
LEAST_FALL = {"Wood": 0.0, "Kaleidoscope": 0.0}


@pytest.mark.parametrize("name", list(UNFORESEEN))
def test_on_a_network_that_knows_its_task_it_climbs_and_more_strength_breaks_more(
    name: str, digits: tuple[torch.nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits
    low, _, high = strengths(family(ATTACKS[name]), (1, 28, 28))
    robust = []
    for eps in (low, high):
        attack = vary(ATTACKS[name], eps=eps, steps=10)
        found = attack(net, x, y, streams=streams(range(30)))
        assert found.loss[-1].mean() > found.loss[0].mean() + 0.01
        assert (found.loss[-1] > found.loss[0]).float().mean() > 0.7
        robust.append(float(found.correct.all(0).float().mean()))
    assert robust[1] <= robust[0] - LEAST_FALL.get(name, 0.3) * robust[0]
    assert math.isclose(attack.runs(net, x)[0].alpha, attack.range / math.sqrt(10))
