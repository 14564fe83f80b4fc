"""Clarity: the two measures against slow oracles, hand-made pairs, the judge, and the choice of questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.clarity import Judge, excitations, judge_log_odds, judge_top1, judges_for, shared_rankings, two_afc
from vizrobust.clarity.judges import last_layer
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.features import Channel, Logit
from vizrobust.models import Checkpoint, CheckpointInfo, Normalized, architecture


def slow_auc(exciting, other, queries, distractors) -> float:
    """Pair by pair, in plain numpy."""

    def cosine(a, b):
        return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))

    def score(q):
        return np.mean([cosine(q, e) for e in exciting]) - np.mean([cosine(q, e) for e in other])

    wins = [(score(q) > score(d)) + 0.5 * (score(q) == score(d)) for q in queries for d in distractors]
    return float(np.mean(wins))


def test_forced_choice_is_the_share_of_pairs_that_are_ordered_right():
    generator = np.random.default_rng(1)
    arrays = [generator.normal(size=(count, 6)) + shift for count, shift in ((3, 0.4), (5, -0.1), (7, 0.3), (11, 0.0))]
    fast = two_afc(*(torch.tensor(a, dtype=torch.float32) for a in arrays))
    assert fast == pytest.approx(slow_auc(*arrays), abs=1e-6)
    assert 0.5 < fast < 1


def test_transfer_is_the_log_odds_of_the_softmax():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit = torch.tensor([0, 6, 3, 3])
    p = logits.softmax(1)[torch.arange(4), unit]
    torch.testing.assert_close(judge_log_odds(logits, unit), (p / (1 - p)).log())
    # A judge that is sure beyond float32's softmax still gives a finite number.
    assert torch.isfinite(judge_log_odds(torch.tensor([[400.0, 0.0, 0.0]]), torch.tensor([0]))).all()
    assert judge_top1(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])).tolist() == [True, False]


def planted_judge(compute: Compute) -> Judge:
    """A network that sees two things: how bright the left half is, and the right."""
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2) * 5
    halves = nn.AdaptiveAvgPool3d((1, 1, 2))  # over channels and rows
    return Judge("planted", nn.Sequential(halves, nn.Flatten(), head).eval(), ("left", "right"), compute)


def test_both_measures_order_a_clear_and_a_noisy_picture(compute):
    judge = planted_judge(compute)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(6, *SHAPE, generator=generator)
    left, right = torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE)
    left[..., : SHAPE[2] // 2], right[..., SHAPE[2] // 2 :] = 1, 1
    natural_left, natural_right = (0.2 * torch.rand(9, *SHAPE, generator=generator) + 0.8 * p[:1] for p in (left, right))
    unit = torch.zeros(2, dtype=torch.long)
    assert (judge_log_odds(judge(left).logits, unit) > judge_log_odds(judge(noise[:2]).logits, unit) + 1).all()
    questions = judge(natural_left).features, judge(natural_right).features
    clear = two_afc(judge(left).features, judge(right).features, *questions)
    draws = [torch.rand(6, *SHAPE, generator=generator) for _ in range(40)]
    noisy = [two_afc(judge(draw[:3]).features, judge(draw[3:]).features, *questions) for draw in draws]
    assert clear == 1.0
    # Noise leans to either side by chance, so single draws may be 0 or 1; on average it tells nothing.
    assert 0.2 < np.mean(noisy) < 0.8


def test_a_judge_sees_each_image_alone_and_in_one_batch_size(compute):
    judge = Judge("j", make_net("resnet_small"), tuple("abcdefg"), compute)
    x = torch.rand(103, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole, part = judge(x), judge(x[:5])
    assert whole.logits.shape == (103, CLASSES)
    assert whole.features.shape == (103, last_layer(judge.net).in_features)
    assert torch.equal(whole.features[:5], part.features)
    torch.testing.assert_close(judge.net(x[100:]), whole.logits[100:], rtol=1e-4, atol=1e-4)
    assert not last_layer(judge.net)._forward_pre_hooks


def checkpoint(name: str, arch: str = "small_cnn", seed: int = 0, data: str = "somewhere") -> Checkpoint:
    about = CheckpointInfo(
        arch=arch, input_shape=SHAPE, classes=tuple("abcdefg"), mean=(0.4,) * 3, std=(0.3,) * 3, data=data
    )  # fmt: skip
    build = architecture(arch, SHAPE, CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Checkpoint(name, about, build().state_dict(), build)


def test_a_compared_checkpoint_cannot_be_the_judge(compute, monkeypatch):
    one, judge, trained_alike = checkpoint("one"), checkpoint("judge", seed=5, data="elsewhere"), checkpoint("alike", seed=6)
    known = {"one": one, "judge": judge, "alike": trained_alike}
    monkeypatch.setattr("vizrobust.clarity.judges.load_checkpoint", lambda ref, *_: known[ref])
    assert judges_for("somewhere", [one], compute, [], builtin=False) == []
    (found,) = judges_for("somewhere", [one], compute, ["judge"], builtin=False)
    assert found.name == "judge"
    with pytest.raises(ValueError, match="one of the compared checkpoints"):
        judges_for("somewhere", [one], compute, ["one"], builtin=False)
    with pytest.raises(ValueError, match="'alike' was trained on somewhere, as one was; name a judge trained on other images"):
        judges_for("somewhere", [one], compute, ["alike"], builtin=False)
    known["silent"] = checkpoint("silent", seed=7, data="")
    with pytest.raises(ValueError, match=r"'silent' does not say what it was trained on; .* judge_independent"):
        judges_for("somewhere", [one], compute, ["silent"], builtin=False)
    assert judges_for("somewhere", [one], compute, ["silent"], builtin=False, independent=True)


def test_excitations_and_orders_match_a_plain_loop(compute):
    net = make_net()
    x = torch.rand(13, *SHAPE, generator=torch.Generator().manual_seed(4))
    images = ArraySplit(x, torch.zeros(13, dtype=torch.long))
    assert isinstance(net, Normalized)
    got = excitations(net, Channel(layer="conv2"), [5, 1], images, compute)
    maps = {}
    handle = net.net.conv2.register_forward_hook(lambda _m, _i, out: maps.update(out=out))
    with torch.no_grad():
        logits = net(x)
    handle.remove()
    torch.testing.assert_close(got, maps["out"][:, [5, 1]].mean((2, 3)).T, rtol=1e-4, atol=1e-5)
    first, second = shared_rankings([logits.T[:2]])
    assert first.index.tolist() == logits[:, 0].argsort(descending=True).tolist()
    # Mean rank over two networks: an image that both like a little beats one that only one of them loves.
    a, b = torch.tensor([[9.0, 5.0, 1.0, 0.0]]), torch.tensor([[0.0, 5.0, 1.0, 9.0]])
    assert shared_rankings([a, b])[0].index[0] == 1
    assert set(second.queries(3).tolist()).isdisjoint(second.index[3:].tolist())
    assert Logit().layers == ("logits",)


def test_distractors_are_the_hard_part_of_the_order():
    order = shared_rankings([torch.arange(100.0).flip(0)[None]])[0]
    assert order.queries(4).tolist() == [0, 1, 2, 3]
    assert order.distractors().tolist() == list(range(10, 50))
