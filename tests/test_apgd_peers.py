"""APGD is its authors' code (pyautoattack) in loss and in success, where that is installed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.conftest import SHAPE, make_net
from vizrobust.attacks import APGD, L1, L2, Ball, Linf
from vizrobust.data import load
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams

pytestmark = pytest.mark.peers


def authors(net: nn.Module, ball: Ball, steps: int, loss: str, **how: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = pytest.importorskip("pyautoattack.autopgd_base", reason="pip install --no-deps -r tests/peers.txt")
        kind = base.APGDAttack_targeted if loss == "dlr-targeted" else base.APGDAttack
        loss_ = {} if loss == "dlr-targeted" else {"loss": loss}
        return kind(net, n_iter=steps, norm=type(ball).__name__, eps=ball.eps, seed=0, device="cpu", **loss_, **how)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
# Radii within which no image is broken: beyond the boundary DLR goes to infinity and magnifies the last digits.
@pytest.mark.parametrize("ball", [Linf(2**-9), L2(2**-6)], ids=repr)
def test_from_the_same_start_apgd_is_its_authors_but_for_how_their_first_step_counts(ball: Ball, loss: str) -> None:
    net = make_net().double()
    x = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = net(x).argmax(1)
    theirs = authors(net, ball, 30, loss)
    theirs.init_hyperparam(x)
    _, _, best, _ = theirs.attack_single_run(x, y, x_init=x)
    (walk,) = APGD(steps=30, ball=ball, loss=loss, random_start=False).runs(net, x)
    state = walk.start(net, x, y, Streams(0, range(12), "attack"))
    for t in range(30):
        walk.step(net, state)
        if t == 0:
            state["previous_loss"] = torch.zeros_like(state["previous_loss"])
    assert (state["stride"] < 2 * ball.eps).any()
    walk.evaluate(net, state)
    assert not state["misclassified"].any()
    assert torch.allclose(state["best_loss"], best, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist-k0", "mnist-k8"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_apgd_breaks_as_many_images_as_its_authors(norm: str, loss: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, data, n = load_checkpoint(model).net(), load("mnist5k"), 200
    x, y = data.test.take(torch.arange(n)), data.test.labels[:n]
    eps = {"Linf": {"mnist-k0": 0.04, "mnist-k8": 0.3}, "L2": dict.fromkeys(("mnist-k0", "mnist-k8"), 1.0)}
    ball = {"Linf": Linf, "L2": L2, "L1": L1}[norm](eps.get(norm, {}).get(model, 8.0))
    how = {"use_largereps": True} if norm == "L1" else {}
    name, targeted = loss.partition("-")[0], loss == "dlr-targeted"
    if targeted:
        how["n_target_classes"] = 2
    attack = authors(net, ball, 100, loss, **how)
    # Their count of changed values takes in those that rounding has changed by a last digit; ours does not.
    count = "pyautoattack.autopgd_base.L0_norm"
    monkeypatch.setattr(count, lambda delta: (delta.abs() > 1e-5).flatten(1).sum(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of images without a gradient
        theirs = attack.perturb(x, y)
    found = APGD(ball=ball, loss=name, targeted=targeted, targets=2)(net, x, y, streams=Streams(0, range(n), "attack"))
    mine, other = (float((net(image).argmax(1) == y).float().mean()) for image in (found.best, theirs))
    # What runs from different random starts differ by; in L1 single runs do more. Ours may break more images.
    apart = 0.04 if norm == "L1" else 0.02
    assert -2 * apart <= mine - other <= apart, (mine, other)
    assert (ball.norm(found.best - x) <= ball.eps + 1e-6).all()
