"""Transfer: the source's images, the target's verdicts, and no gradient of the target."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.conftest import SHAPE, Unasked, batch_of, make_net, net_file, refilled, streams_of
from vizrobust.attacks import FGSM, L2, LOSSES, PGD, Linf, Square, Transfer, parse_attack
from vizrobust.data import load
from vizrobust.models import CheckpointInfo, load_checkpoint, save_checkpoint
from vizrobust.models.checkpoints import body_state
from vizrobust.spec import vary

EPS = 8 / 255


INNER = [
    PGD(steps=5, ball=Linf(EPS)),
    FGSM(L2(0.5)),
    PGD(steps=3, ball=L2(0.5), targeted=True),
    Square(queries=6, ball=Linf(EPS)),
]


@pytest.mark.parametrize("attack", INNER, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sources_iterates_are_judged_on_the_target(attack, dtype: torch.dtype) -> None:
    x, y = batch_of(9, dtype)
    target = Unasked(make_net("resnet_small", seed=2).to(dtype))
    found = Transfer(source=net_file(), attack=attack)(target, x, y, streams=streams_of(9))
    source = load_checkpoint(net_file()).net().to(dtype=dtype, memory_format=torch.channels_last)
    alone = attack(source, x, y, streams=streams_of(9))
    assert torch.equal(found.x, alone.x)
    points = torch.stack([point for point in target.seen if len(point) == 9])
    steps = len(alone.correct) - 1
    assert len(points) == steps + 1, "one pass of the target for each iterate"
    with torch.no_grad():
        logits = torch.stack([target.net(point) for point in points])
    assert torch.equal(found.correct, logits.argmax(2) == y)
    assert torch.allclose(found.loss, torch.stack([LOSSES["margin"](row, y) for row in logits]))


def test_on_its_own_source_it_is_the_attack_itself() -> None:
    x, y = batch_of(9)
    net = load_checkpoint(net_file()).net()
    attack = PGD(steps=5, ball=Linf(EPS), loss="margin", restarts=3)
    found, alone = (
        Transfer(source=net_file(), attack=attack)(net, x, y, streams=streams_of(9)),
        attack(net, x, y, streams=streams_of(9)),
    )
    assert torch.equal(found.correct, alone.correct)
    assert torch.equal(found.best, alone.best)
    first, *_ = Transfer(source=net_file(), attack=attack).runs(net, x)
    assert (first.name, first.component, first.steps) == (f"PGD on {net_file()}", f"PGD on {net_file()}", 5)


def test_images_made_on_another_network_break_this_one() -> None:
    data = load("mnist5k")
    x, y = data.test.take(torch.arange(60)), data.test.labels[:60]
    net = load_checkpoint("mnist-k1").net()
    attack = Transfer(source="mnist-k2", attack=PGD(steps=5, ball=Linf(0.3)))
    with torch.no_grad():
        clean = (net(x).argmax(1) == y).float().mean()
    found = attack(net, x, y, streams=streams_of(60))
    assert found.correct.all(0).float().mean() < clean - 0.15
    assert (Linf(0.3).norm(found.best - x) <= 0.3 + 1e-6).all()


def test_the_source_is_loaded_once_and_anew_when_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vizrobust.attacks import wrappers

    loads = []
    monkeypatch.setattr(wrappers, "load_checkpoint", lambda ref: loads.append(ref) or load_checkpoint(ref))
    names = tuple("abcdefg")
    x, y = batch_of(5)
    for seed in (1, 2):
        path = tmp_path / "checkpoint.safetensors"
        about = CheckpointInfo("small_cnn", SHAPE, names, (0.4,) * 3, (0.3,) * 3)
        save_checkpoint(path, body_state(make_net(seed=seed)), about)
        os.utime(path, ns=(seed, seed))
        attack = Transfer(source=str(tmp_path), attack=PGD(steps=2, ball=Linf(EPS), random_start=False))
        for _ in range(2):
            found = attack(make_net(seed=3), x, y, streams=streams_of(5))
        alone = attack.attack(make_net(seed=seed).to(memory_format=torch.channels_last), x, y, streams=streams_of(5))
        assert torch.equal(found.x, alone.x)
    assert loads == [str(tmp_path)] * 2


def test_a_refilled_slot_gives_the_same_image() -> None:
    x, y = batch_of(6)
    for inner in (PGD(steps=9, ball=Linf(EPS)), Square(queries=9, ball=L2(0.5))):
        attack = Transfer(source=net_file(), attack=inner)
        undisturbed, mixed = refilled(attack, make_net(seed=2), x, y, 6)
        assert all(torch.equal(value, mixed[key]) for key, value in undisturbed.items())
        assert any(key.startswith("source.") for key in undisturbed)


def test_networks_that_do_not_fit_are_refused() -> None:
    x, y = batch_of(5)
    with pytest.raises(ValueError, match="'mnist-k0' takes images of 1x28x28, not 3x20x16; name a source of the same data"):
        Transfer(attack=PGD(ball=Linf(EPS)))(make_net(), x, y, streams=streams_of(5))
    other = net_file(classes=4)
    with pytest.raises(ValueError, match=r"has 4 classes, not 7; name a source of the same data"):
        Transfer(source=other, attack=PGD(ball=Linf(EPS)))(make_net(), x, y, streams=streams_of(5))
    with pytest.raises(ValueError, match="no model 'mnist-k9'"):
        Transfer(source="mnist-k9", attack=PGD(ball=Linf(EPS)))(make_net(), x, y, streams=streams_of(5))


def test_it_is_written_down_and_varied_with_its_attack() -> None:
    attack = Transfer(source="runs/a", attack=PGD(steps=7, ball=L2(2)))
    assert repr(attack) == 'Transfer(source="runs/a", attack=PGD(steps=7, ball=L2(eps=2.0)))'
    assert parse_attack(repr(attack)) == attack
    assert vary(attack, eps=1.5, steps=3) == Transfer(source="runs/a", attack=PGD(steps=3, ball=L2(1.5)))
    assert attack.ball == L2(2)
    assert attack.threat_model() == ("L2", 2.0)
