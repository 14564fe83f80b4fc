"""AutoAttack: which attacks it is made of, what it says of itself, and that it is never weaker than any of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, make_net
from tests.test_gradient_attacks import weak_net
from vizrobust.attacks import APGD, ENSEMBLES, EOT, L1, L2, NAMES, AutoAttack, Ball, Linf, configured, parse_attack
from vizrobust.attacks.black_box import Square
from vizrobust.attacks.boundary_attacks import FAB
from vizrobust.compute import Compute
from vizrobust.data.dataset import ArraySplit
from vizrobust.rng import Streams
from vizrobust.robustness import evaluate, merge_results
from vizrobust.spec import parse

BALL = Linf(8 / 255)


def small(version: str = "standard", ball: Ball = BALL) -> AutoAttack:
    return AutoAttack(version, ball, steps=4, queries=6, targets=2, samples=2)


def test_the_versions_are_the_published_ones() -> None:
    towards = APGD(ball=BALL, loss="dlr", targeted=True)
    assert AutoAttack(ball=BALL).components == (APGD(ball=BALL), towards, FAB(ball=BALL), Square(ball=BALL))
    assert AutoAttack("plus", BALL).components == (
        APGD(ball=BALL, restarts=5), APGD(ball=BALL, loss="dlr", restarts=5), FAB(ball=BALL, targeted=False, restarts=5),
        Square(ball=BALL), towards, FAB(ball=BALL),
    )  # fmt: skip
    assert AutoAttack("rand", BALL).components == (EOT(APGD(ball=BALL), 20), EOT(APGD(ball=BALL, loss="dlr"), 20))
    assert AutoAttack(ball=L1(12)).components == (
        APGD(ball=L1(12), restarts=5),
        APGD(ball=L1(12), loss="dlr", targeted=True, targets=5),
    )
    fab, square = AutoAttack().components[2:]
    assert (fab.steps, fab.targets, fab.targeted, fab.restarts) == (100, 9, True, 1)
    assert (square.queries, square.restarts) == (5000, 1)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_bare_names_make_the_ensemble_and_it_reads_back(name: str) -> None:
    attack = parse_attack(name.upper())
    assert attack == AutoAttack(name)
    for made in (attack, parse_attack(f"{name}(ball=l2(eps=0.5))"), configured(attack, default_eps=0.3)):
        assert parse(repr(made), NAMES) == made
    assert configured(attack, default_eps=0.3).components[0].ball == Linf(0.3)
    assert configured(attack, norm="L2", eps=0.5) == AutoAttack(name, L2(0.5))
    with pytest.raises(ValueError, match="has no eps"):
        attack(weak_net(), torch.rand(2, 1, 4, 3), torch.tensor([0, 1]), streams=Streams(0, range(2)))


def test_every_walk_has_a_name_of_its_own_and_the_name_of_its_member(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    walks = AutoAttack(ball=BALL).runs(net, images[0])
    others = range(1, CLASSES)
    names = ["APGD-CE", *(f"APGD-T {k}" for k in others), *(f"FAB-T {k}" for k in others), "Square"]
    assert [walk.name for walk in walks] == names
    assert list(dict.fromkeys(walk.component for walk in walks)) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    for version in ENSEMBLES:
        for ball in (BALL, L2(0.5), L1(3.0)):
            names = [walk.name for walk in AutoAttack(version, ball).runs(net, images[0])]
            assert len(set(names)) == len(names)


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.2)], ids=repr)
def test_an_image_is_broken_where_any_member_breaks_it(ball: Ball) -> None:
    net, n = weak_net(), 60
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    attack = small(ball=ball)
    together = attack(net, x, y, streams=Streams(0, range(n), "attack"))
    alone = [component(net, x, y, streams=Streams(0, range(n), "attack")).correct.all(0) for component in attack.components]
    assert torch.equal(together.correct.all(0), torch.stack(alone).all(0))
    assert together.correct.all(0).sum() < max(hits.sum() for hits in alone)
    assert torch.equal(net(together.best).argmax(1) != y, ~together.correct.all(0))


def test_an_evaluation_says_who_broke_each_image(compute: Compute) -> None:
    net, n = weak_net(), 30
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    images = ArraySplit(x, y)
    attack = small(ball=Linf(0.03))
    result = merge_results(attack, evaluate(net, attack, images, compute, batch_size=7))
    whole = attack(net, x, y, streams=Streams(0, range(n), "attack")).correct.all(0)
    assert result.successes_by_component().keys() == {"APGD-CE", "APGD-T", "FAB-T", "Square"}
    assert sum(result.successes_by_component().values()) == int((~result.robust).sum())
    # Images at the edge may fall either way: the batch has another size.
    assert (result.robust == whole).float().mean() > 0.95


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ENSEMBLES)
def test_networks_of_two_or_three_classes_are_attacked_too(version: str, classes: int) -> None:
    net = make_net(classes=classes)
    x, y = torch.rand(4, 3, 20, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4) % classes
    attack = replace(small(version), steps=2)
    found = attack(net, x, y, streams=Streams(0, range(4)))
    assert found.best.isfinite().all()
    assert (BALL.norm(found.best - x) <= BALL.eps + 1e-6).all()
    targeted = [walk for walk in replace(attack, targets=9).runs(net, x) if walk.component == "APGD-T"]
    assert len(targeted) == (0 if version == "rand" else classes - 1)
    said = attack.notes(classes)
    assert any("targeted dlr needs 4 classes" in text for text in said) == (version != "rand")
    assert any(text.startswith("dlr needs 3 classes") for text in said) == (version in ("plus", "rand") and classes == 2)
    assert len(set(said)) == len(said)


def test_with_enough_classes_there_is_nothing_to_say() -> None:
    for version in ENSEMBLES:
        assert AutoAttack(version, BALL).notes(10) == ()
        assert AutoAttack(version, BALL).notes(4) == ()


def test_what_the_l1_ensemble_lacks_is_said() -> None:
    assert AutoAttack(ball=L1(12)).notes(10) == (
        "AutoAttack in the L1 ball is without FAB-T and Square, which have no L1 ball here",
    )
    assert "FAB and Square and FAB-T" in AutoAttack("plus", L1(12)).notes(10)[0]
    assert AutoAttack("rand", L1(12)).notes(10) == ()


def test_fast_is_standard_of_which_hopeless_images_leave() -> None:
    net, n = weak_net(), 60
    x = torch.rand(n, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    images = ArraySplit(x, net(x).argmax(1))
    ball = Linf(0.04)
    standard, fast = (AutoAttack(version, ball, steps=20, queries=200, targets=2) for version in ("standard", "fast"))
    slow, quick = (merge_results(one, evaluate(net, one, images, Compute("cpu"), batch_size=20)) for one in (standard, fast))
    assert 0 < int(slow.robust.sum()) < n
    assert not (slow.robust & ~quick.robust).any()
    assert int((quick.robust & ~slow.robust).sum()) <= 2
    assert quick.forward_passes < 0.7 * slow.forward_passes
    # What both break in one run, they break at the same step.
    both = (quick.first_success_step >= 0) & (slow.first_success_step >= 0)
    assert torch.equal(quick.first_success_step[both], slow.first_success_step[both])
    # Where nobody takes images out, they stay as they were when they left.
    run = fast.runs(net, x)[1]
    state = run.start(net, x, images.labels, Streams(0, range(n), "attack"))
    points = x
    for _ in range(run.steps):
        there = state["done"]
        run.step(net, state)
        assert torch.equal(state["adv"][there], points[there])
        points = state["adv"]
    assert 0 < int(state["done"].sum()) < n
