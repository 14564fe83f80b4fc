"""Expectation over transformation: nothing changes on a sound network, and a random one is attacked in the mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import CLASSES, batch_of, make_net, refilled, streams_of
from vizrobust.attacks import EOT, FGSM, L2, PGD, Linf, Noise, Square, parse_attack
from vizrobust.attacks.wrappers import Expectation
from vizrobust.data import load
from vizrobust.models import load_checkpoint
from vizrobust.rng import seeded
from vizrobust.spec import vary

EPS = 8 / 255
CPU = torch.device("cpu")


class Dropping(nn.Module):
    """Drops pixels in evaluation mode too, from torch's global generator."""

    def __init__(self, net: nn.Module, share: float = 0.3) -> None:
        super().__init__()
        self.net, self.share, self.passes = net, share, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(F.dropout(x, self.share, training=True))


INNER = [
    PGD(steps=4, ball=Linf(EPS), restarts=2),
    PGD(steps=4, ball=L2(0.5)),
    FGSM(Linf(EPS)),
    Square(5, Linf(EPS)),
    Noise(5, L2(1)),
]


@pytest.mark.parametrize(("attack", "arch"), [*((attack, "small_cnn") for attack in INNER), (INNER[0], "resnet_small")], ids=repr)
def test_a_deterministic_network_gives_the_same_images_bit_for_bit(attack, arch: str) -> None:
    x, y = batch_of(5)
    net = make_net(arch)
    alone, mean = attack(net, x, y, streams=streams_of(5)), EOT(attack=attack, samples=3)(net, x, y, streams=streams_of(5))
    assert torch.equal(mean.x, alone.x)
    assert torch.equal(mean.best, alone.best)
    assert torch.equal(mean.loss, alone.loss)
    assert torch.equal(mean.correct, alone.correct)


def test_the_expectation_is_the_mean_of_logits_and_its_gradient_theirs() -> None:
    x, _ = batch_of(5, torch.float64)
    net = Dropping(make_net().double())
    weights = torch.rand(5, CLASSES, dtype=torch.float64)
    shown = x.clone().requires_grad_()
    with seeded(5, CPU):
        before = torch.get_rng_state()
        mean = Expectation(net, 4, seed=11)(shown)
        (grad,) = torch.autograd.grad((mean * weights).sum(), shown)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is as before"
    plain = x.clone().requires_grad_()
    logits = []
    for sample in range(4):
        with seeded(11 + sample, CPU):
            logits.append(net(plain))
    expected = torch.stack(logits).mean(0)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), plain)
    assert (logits[0] - logits[1]).abs().max() > 1e-3, "the network is random"
    assert (mean - expected).abs().max() < 1e-12
    assert (grad - expected_grad).abs().max() < 1e-12


def test_gradients_are_those_of_autocast_too() -> None:
    x, _ = batch_of(4)
    net = Dropping(make_net())
    grads = []
    for module in (Expectation(net, 1, seed=0), net):
        shown = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), seeded(0, CPU):
            out = module(shown)
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().sum(), shown)[0])
    assert torch.equal(*grads)


def test_noise_repeats_but_is_another_at_every_step() -> None:
    x, y = batch_of(5)
    net = Dropping(make_net())
    attack = EOT(attack=PGD(steps=4, ball=Linf(EPS)), samples=3)
    with seeded(1, CPU):
        before = torch.get_rng_state()
        once = attack(net, x, y, streams=streams_of(5))
        assert torch.equal(torch.get_rng_state(), before)
    with seeded(2, CPU):
        again = attack(net, x, y, streams=streams_of(5))
    assert torch.equal(once.x, again.x)
    assert torch.equal(once.loss, again.loss)
    still = EOT(attack=PGD(steps=4, ball=Linf(0)), samples=3)(net, x, y, streams=streams_of(5))
    assert (still.loss.diff(dim=0) != 0).all(), "the same image is asked with fresh noise at each step"


def test_memory_and_passes_are_bounded() -> None:
    x, y = batch_of(5)
    net = Dropping(make_net())
    EOT(attack=PGD(steps=2, ball=Linf(EPS)), samples=3)(net, x, y, streams=streams_of(5))
    # Two steps with their gradient's second look, one last verdict.
    assert net.passes == 3 * (2 * 2 + 1)


def test_the_mean_of_many_breaks_more_than_one_noisy_look() -> None:
    """What a random network answers on average is weaker than what one step of a noisy gradient finds."""
    data = load("mnist5k")
    x, y = data.test.take(torch.arange(50)), data.test.labels[:50]
    net = Dropping(load_checkpoint("mnist-k8").net(), 0.5)
    mean = Expectation(net, 30, seed=99)

    def margin(attack) -> float:
        with seeded(0, CPU):
            adv = attack(net, x, y, streams=streams_of(50), evaluate=False).x
        with torch.no_grad():
            logits = mean(adv)
        own = logits.gather(1, y[:, None])[:, 0]
        return float((logits.scatter(1, y[:, None], -torch.inf).amax(1) - own).mean())

    one = PGD(steps=4, ball=Linf(0.25), random_start=False)
    assert margin(EOT(attack=one, samples=10)) > margin(one) + 0.2


def test_a_refilled_slot_gives_the_same_image() -> None:
    x, y = batch_of(6)
    for inner in (PGD(steps=9, ball=Linf(EPS)), Square(queries=9, ball=L2(0.5))):
        undisturbed, mixed = refilled(EOT(attack=inner, samples=2), make_net(), x, y, 6)
        assert all(torch.equal(value, mixed[key]) for key, value in undisturbed.items())


def test_it_is_written_down_and_varied_with_its_attack() -> None:
    attack = EOT(attack=PGD(steps=7, ball=L2(2)), samples=5)
    assert repr(attack) == "EOT(attack=PGD(steps=7, ball=L2(eps=2.0)), samples=5)"
    assert parse_attack(repr(attack)) == attack
    assert vary(attack, eps=1.5, steps=3) == EOT(attack=PGD(steps=3, ball=L2(1.5)), samples=5)
    assert (attack.ball, attack.threat_model()) == (L2(2), ("L2", 2.0))
    first, second = EOT(attack=PGD(ball=L2(1), restarts=2)).runs(make_net(), batch_of(2)[0])
    assert (first.name, second.name, second.component, second.steps) == ("EoT PGD", "EoT PGD 2", "EoT PGD", 40)
    with pytest.raises(ValueError, match="EOT: samples must be at least 1, got 0"):
        parse_attack("eot(samples=0)")
