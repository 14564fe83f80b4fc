"""Accuracy under attack: who survives, counted by hand, whatever the batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.attacks import BIM, FGSM, L2, PGD, Linf
from vizrobust.attacks import attack as attack_module
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, head
from vizrobust.intervals import share, wilson
from vizrobust.rng import Streams
from vizrobust.robustness import CLEAN, RobustAccuracy, evaluate, merge_results

EPS = 8 / 255


@pytest.fixture
def split() -> ArraySplit:
    """23 images: not a multiple of any batch size used. Labels are the network's own for most of them."""
    x = torch.rand(23, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = make_net()(x).argmax(1)
    y[::6] = (y[::6] + 1) % CLASSES
    return ArraySplit(x, y)


def run(net: nn.Module, attack, split, compute: Compute, **options) -> RobustAccuracy:
    return merge_results(attack, list(evaluate(net, attack, split, compute, **options)))


@dataclass(frozen=True)
class Scripted(attack_module.Attack):
    """An attack of several walks that report verdicts written down beforehand, one column for each label."""

    verdicts: tuple[tuple[tuple[bool, ...], ...], ...]
    ball: Linf
    shift: float = 0.0

    def runs(self, net: nn.Module, x: Tensor) -> tuple[ScriptedRun, ...]:
        return tuple(ScriptedRun(f"script {k}", rows, self.shift) for k, rows in enumerate(self.verdicts))


@dataclass(frozen=True)
class ScriptedRun:
    name: str
    rows: tuple[tuple[bool, ...], ...]
    shift: float

    @property
    def component(self) -> str:
        return self.name.split()[0]

    @property
    def steps(self) -> int:
        return len(self.rows) - 1

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> attack_module.State:
        return attack_module.initial_state(x, y, x + self.shift, streams)

    def step(self, net: nn.Module, state: attack_module.State) -> None:
        self.evaluate(net, state)

    def evaluate(self, net: nn.Module, state: attack_module.State) -> None:
        right = torch.tensor(self.rows)[state["step"].clamp(max=self.steps), state["y"]]
        said = torch.where(right, state["y"], (state["y"] + 1) % 4)
        attack_module.record(state, torch.nn.functional.one_hot(said, 4).float(), torch.zeros(len(said)))


class Says(nn.Module):
    """Answers with the class that is written in an image's first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 10).round().long(), 4).float()


def test_an_image_survives_only_if_it_was_right_clean_and_at_every_iterate(compute: Compute) -> None:
    # One label for each story: never wrong; wrong at first; wrong in the middle and back; wrong at the end.
    attack = Scripted((((True, False, True, True), (True, True, False, True), (True, True, True, False)),), Linf(EPS))
    labels = torch.tensor([0, 1, 2, 3, 0])
    x = torch.zeros(5, *SHAPE)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 2, 3, 1]) / 10  # the last image is already wrong clean
    found = run(Says(), attack, ArraySplit(x, labels), compute, batch_size=3)
    assert found.correct.tolist() == [True, True, True, True, False]
    expected = [[True, False, True, True, False], [True, False, False, True, False], [True, False, False, False, False]]
    assert found.robust_after_step.tolist() == expected
    assert found.robust.tolist() == expected[-1]
    assert [row["accuracy"] for row in found.curve()] == [0.6, 0.4, 0.2]
    assert [row["steps"] for row in found.curve()] == [0, 1, 2]


@pytest.mark.parametrize(
    "attack",
    [FGSM(Linf(EPS)), BIM(steps=3, ball=Linf(EPS)), PGD(steps=5, ball=Linf(EPS)), PGD(steps=3, ball=L2(0.5), restarts=2)],
    ids=repr,
)
def test_the_counts_are_those_of_attacking_all_images_at_once(attack, split: ArraySplit, compute: Compute) -> None:
    net = make_net().double()
    x, y = split.pixels.double(), split.labels
    whole = attack(net, x, y, streams=Streams(0, range(23), "attack"))
    alive, survivors = (net(x).argmax(1) == y).tolist(), []
    for row in whole.correct.tolist():
        alive = [before and now for before, now in zip(alive, row, strict=True)]
        survivors.append(sum(alive))
    found = run(make_net(), attack, split, compute, batch_size=10, all_runs=True)
    assert [int(row.sum()) for row in found.robust_after_step] == survivors
    assert found.robust_after_step.shape == (len(whole.correct), 23)


def test_a_curve_is_the_same_as_shorter_looks_at_the_same_run(split: ArraySplit, compute: Compute) -> None:
    net = make_net()
    long = run(net, PGD(steps=6, ball=Linf(EPS), alpha=EPS / 4), split, compute, batch_size=8)
    accuracies = [row["accuracy"] for row in long.curve()]
    for steps in range(7):
        short = run(net, PGD(steps=steps, ball=Linf(EPS), alpha=EPS / 4), split, compute, batch_size=8)
        assert share(short.robust) == accuracies[steps]
        assert torch.equal(short.robust_after_step, long.robust_after_step[: steps + 1])
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]


def test_repeats_that_fill_the_last_batch_do_not_count(split: ArraySplit, compute: Compute) -> None:
    # The last image is the one repeated: were the repeats counted, making it wrong would show in the share.
    net, attack = make_net(), PGD(steps=2, ball=Linf(EPS))
    parts = list(evaluate(net, attack, split, compute, batch_size=10))
    assert sorted(place for part in parts if part.run == CLEAN for place in part.indices) == list(range(23))
    found = merge_results(attack, parts)
    assert len(found.correct) == len(found.robust) == found.row()["n"] == 23
    with torch.no_grad():
        assert found.correct.tolist() == (net(split.pixels).argmax(1) == split.labels).tolist()
    attacked = [place for part in parts if part.run != CLEAN for place in part.indices]
    assert sorted(attacked) == found.correct.nonzero()[:, 0].tolist(), "each right image once, no wrong one"


def test_the_first_images_come_out_the_same_however_many_follow(split: ArraySplit, compute: Compute) -> None:
    net, attack = make_net(), PGD(steps=4, ball=Linf(EPS))
    whole = run(net, attack, split, compute, batch_size=5)
    for n in (1, 4, 5, 11, 22):
        part = run(net, attack, head(split, n), compute, batch_size=5)
        assert torch.equal(part.robust_after_step, whole.robust_after_step[:, :n])
    assert len(run(net, attack, head(split, 99), compute, batch_size=5).correct) == 23


def test_the_seed_moves_the_random_start(split: ArraySplit, compute: Compute) -> None:
    net, attack = make_net(), PGD(steps=1, ball=Linf(0.1))
    x, y = split.pixels[:5], split.labels[:5]
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach().clone()))
    for seed in (0, 0, 1):
        run(net, attack, ArraySplit(x, y), compute, seed=seed, batch_size=5)
    clean, starts = seen[0::3], seen[1::3]
    assert torch.equal(clean[0], x)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


class Steady(nn.Module):
    """Right on label 0 whatever the image, with a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((x.flatten(1).mean(1) + 9, x.flatten(1).std(1)), dim=1)


@pytest.mark.parametrize(
    ("attack", "forward", "gradient"),
    [
        (FGSM(Linf(EPS)), 1 + 2, 1),
        (PGD(steps=5, ball=Linf(EPS)), 1 + 6, 5),
        (PGD(steps=5, ball=Linf(EPS), restarts=3), 1 + 3 * 6, 3 * 5),
        (PGD(steps=0, ball=Linf(EPS)), 1 + 1, 0),
    ],
    ids=repr,
)
def test_an_image_that_is_never_broken_costs_what_its_steps_cost(attack, forward: int, gradient: int, compute: Compute) -> None:
    net = Steady()
    images = ArraySplit(torch.rand(20, *SHAPE), torch.zeros(20, dtype=torch.int64))
    row = run(net, attack, images, compute, batch_size=10).row()
    assert (row["accuracy"], row["forward_passes"], row["gradient_passes"]) == (1, forward, gradient)
    assert not net._forward_pre_hooks, "the counter is gone"


def test_a_row_says_what_was_done(split: ArraySplit, compute: Compute) -> None:
    attack = PGD(steps=3, ball=Linf(EPS))
    found = run(make_net(), attack, split, compute, batch_size=10)
    row = found.row()
    hits = int(found.robust.sum())
    assert row["attack"] == "PGD(steps=3, ball=Linf(eps=8/255))"
    assert (row["norm"], row["eps"], row["steps"], row["n"]) == ("Linf", EPS, 3, 23)
    assert (row["clean"], row["accuracy"]) == (share(found.correct), hits / 23)
    assert (row["ci_low"], row["ci_high"]) == wilson(hits, 23)
    assert row["note"] == ""
    assert row["max_norm"] == pytest.approx(EPS, abs=1e-6)


def test_the_lectures_iteration_is_labelled_when_it_leaves_the_ball(compute: Compute) -> None:
    x = torch.full((7, *SHAPE), 0.5)
    images = ArraySplit(x + 0.01 * torch.rand(x.shape), torch.arange(7))
    far = run(make_net(), BIM(steps=10, ball=Linf(EPS), alpha=EPS, project=False), images, compute, batch_size=4)
    assert far.outside
    assert far.row()["note"] == "outside the ball"
    assert far.largest_norm > 3 * EPS
    assert far.row()["max_norm"] == round(far.largest_norm, 6)
    for attack in (
        BIM(steps=10, ball=Linf(EPS), project=False),
        BIM(steps=10, ball=Linf(EPS), alpha=EPS),
        PGD(ball=L2(2), steps=3),
    ):
        inside = run(make_net(), attack, images, compute, batch_size=4)
        assert not inside.outside, attack
        assert inside.row()["note"] == ""
        assert inside.largest_norm <= attack.ball.eps + 1e-6


@pytest.mark.parametrize("right", [True, False])
def test_an_attack_whose_points_are_outside_is_labelled_whether_they_are_wrong_or_not(right: bool, compute: Compute) -> None:
    images = ArraySplit(torch.zeros(3, *SHAPE), torch.zeros(3, dtype=torch.int64))
    attack = Scripted((((True,), (right,)),), Linf(EPS), shift=2 * EPS)
    found = run(Says(), attack, images, compute, batch_size=3)
    assert found.outside
    assert found.robust.tolist() == [right] * 3


def test_the_network_is_given_back_also_after_an_exception(split: ArraySplit, compute: Compute) -> None:
    net = make_net("resnet_small").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run(net, PGD(steps=2, ball=Linf(EPS)), split, compute, batch_size=10)
    with pytest.raises(ValueError, match="target class 7 does not exist"):
        run(net, FGSM(Linf(EPS), targeted=True, target=CLASSES), split, compute, batch_size=10)
    assert all(module.training for module in net.modules())
    assert not net._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_no_images_are_refused(compute: Compute) -> None:
    nothing = ArraySplit(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="no images to attack"):
        run(make_net(), FGSM(Linf(EPS)), nothing, compute)


@given(st.integers(1, 5000), st.data())
def test_wilson_is_scipys_and_the_formula(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    scipys = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == (scipys.low, scipys.high)
    z, p = norm.ppf(0.975), hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert low == pytest.approx(middle - half, abs=1e-9)
    assert high == pytest.approx(middle + half, abs=1e-9)
    assert -1e-12 <= low <= p + 1e-12
    assert p - 1e-12 <= high <= 1 + 1e-12


def test_share() -> None:
    assert share(torch.tensor([True, False, False, True, True])) == 0.6


def test_gradients_that_are_not_finite_are_counted_once_per_image(compute: Compute) -> None:
    class Rooted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sqrt().flatten(1)[:, :4] + 4 * torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 4)

    x = torch.full((7, *SHAPE), 0.5)
    x[:3, 0, 0, 1] = 0.0
    split = ArraySplit(x, torch.zeros(7, dtype=torch.int64))
    attack = PGD(steps=3, ball=Linf(0.1), random_start=False)
    parts = list(evaluate(Rooted(), attack, split, compute, batch_size=4))
    parts += [replace(part, run="again") for part in parts if part.run != "clean"]
    found = merge_results(attack, parts)
    assert found.robust.all()
    assert found.nonfinite_gradients == 3
    assert found.warnings == ("gradients are not finite on 3 of 7 images; such entries count as 0",)
