"""The evaluation engine: images that leave and enter a batch come out as in a plain loop, whatever happens on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from tests.test_robustness import Says, Scripted
from vizrobust.attacks import EOT, FGSM, PGD, Attack, Linf
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, head
from vizrobust.models import Checkpoint, CheckpointInfo
from vizrobust.models.checkpoints import body_state
from vizrobust.rng import Streams
from vizrobust.robustness import CLEAN, PartialResult, RobustAccuracy, evaluate, merge_results
from vizrobust.robustness.evaluation_runs import adversarial_images, evaluate_in_folder, evaluated, examples, identity
from vizrobust.runs import RunFolder

N = 37
SIZE = 8
ATTACKS = (
    PGD(steps=6, ball=Linf(0.02), alpha=0.006),
    PGD(steps=4, ball=Linf(0.03), alpha=0.01, restarts=3),
    PGD(steps=5, ball=Linf(0.015), alpha=0.006, targeted=True, loss="margin"),
)
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@pytest.fixture
def images() -> ArraySplit:
    x = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = make_net()(x).argmax(1)
    y[::9] = (y[::9] + 1) % CLASSES
    return ArraySplit(x, y)


def plain_loop(net: nn.Module, attack: Attack, images: ArraySplit) -> dict[int, tuple[bool, list[int]]]:
    """Place -> right unchanged, and for each walk the first wrong step (-1: none), one full batch after the other."""
    found = {}
    for start in range(0, N, SIZE):
        index = torch.arange(start, start + SIZE).clamp(max=N - 1)
        x, y = images.take(index), images.labels[index]
        clean = net(x).argmax(1) == y
        steps = []
        for walk in attack.runs(net, x):
            state = walk.start(net, x, y, Streams(0, index.tolist(), "attack"))
            rows = []
            for _ in range(walk.steps):
                walk.step(net, state)
                rows.append(state["correct"])
            walk.evaluate(net, state)
            wrong = ~torch.stack([*rows, state["correct"]])
            steps.append(torch.where(wrong.any(0), wrong.int().argmax(0), -1))
        for k, place in enumerate(index.tolist()):
            found[place] = bool(clean[k]), [int(row[k]) for row in steps]
    return found


@every_attack
@pytest.mark.parametrize("all_runs", [True, False])
def test_every_image_breaks_at_the_step_at_which_it_breaks_in_a_plain_loop(
    attack: Attack, all_runs: bool, images: ArraySplit, compute: Compute
) -> None:
    net = make_net()
    expected = plain_loop(net, attack, images)
    found = merge_results(attack, evaluate(net, attack, images, compute, batch_size=SIZE, all_runs=all_runs))
    assert found.correct.tolist() == [right for right, _ in expected.values()]
    for place, (right, steps) in expected.items():
        column = found.first_success_step[:, place].tolist()
        if not right:
            assert column == [-1] * len(steps), "never attacked"
        elif all_runs:
            assert column == steps
        else:
            first_broken = next((k for k, at in enumerate(steps) if at >= 0), len(steps))
            assert column == [at if k <= first_broken else -1 for k, at in enumerate(steps)]
    outcomes = {at for _, steps in expected.values() for at in steps}
    assert len(outcomes) > 3, "images leave at different steps, so slots are refilled in the middle"
    assert -1 in outcomes


def test_the_network_always_sees_batches_of_the_one_size(images: ArraySplit, compute: Compute) -> None:
    net, sizes = make_net(), []
    net.register_forward_pre_hook(lambda _net, inputs: sizes.append(len(inputs[0])))
    list(evaluate(net, ATTACKS[0], images, compute, batch_size=SIZE))
    assert set(sizes) == {SIZE}


def test_broken_images_leave(images: ArraySplit, compute: Compute) -> None:
    """All but one image break at the second point: the work is theirs and that one's, not 50 steps for each."""
    right = tuple((True, True) if t < 2 else (False, True) for t in range(51))
    attack = Scripted((right,), Linf(1.0))
    x = torch.zeros(N, *SHAPE)
    labels = torch.zeros(N, dtype=torch.int64)
    labels[5], x[5, 0, 0, 0] = 1, 0.1
    parts = list(evaluate(Says(), attack, ArraySplit(x, labels), compute, batch_size=SIZE))
    found = merge_results(attack, parts)
    assert found.first_success_step[0].tolist() == [2 if place != 5 else -1 for place in range(N)]
    assert found.robust_after_step.shape == (51, N)
    assert found.row()["steps"] == 50


class Dropping(nn.Module):
    """Random in evaluation mode too: it draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(torch.nn.functional.dropout(x, 0.3, training=True))


def test_a_random_networks_noise_repeats_and_the_global_generator_is_left_alone(images: ArraySplit, compute: Compute) -> None:
    before = torch.get_rng_state()
    found = [merge_results(ATTACKS[0], evaluate(Dropping(), ATTACKS[0], images, compute, batch_size=SIZE)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0].first_success_step, found[1].first_success_step)


@pytest.mark.parametrize(
    "attack", [PGD(steps=3, ball=Linf(0.03), alpha=0.01, restarts=2), EOT(PGD(steps=2, ball=Linf(0.03)), samples=2)], ids=repr
)
def test_a_random_networks_verdicts_depend_on_seed_image_and_step_alone(
    attack: Attack, images: ArraySplit, compute: Compute
) -> None:
    some_images = head(images, 14)

    def found(**how) -> RobustAccuracy:
        return merge_results(attack, evaluate(Dropping(), attack, some_images, compute, **{"batch_size": 4, **how}))

    parts = list(evaluate(Dropping(), attack, some_images, compute, batch_size=4))
    whole = merge_results(attack, parts)
    assert 0 < int(whole.robust.sum()) < int(whole.correct.sum()), "some images are decided each way"
    assert any("EOT" in warning for warning in whole.warnings) == isinstance(attack, PGD)
    assert not torch.equal(found(seed=1).first_success_step, whole.first_success_step)
    some = found(indices=[12, 4, 7, 9])
    assert torch.equal(some.first_success_step, whole.first_success_step[:, some.indices])
    rest = evaluate(Dropping(), attack, some_images, compute, batch_size=6, known=parts[:5])
    resumed = merge_results(attack, [*parts[:5], *rest])
    assert torch.equal(resumed.first_success_step, whole.first_success_step)


def test_examples_of_a_random_network_do_not_depend_on_the_batch(images: ArraySplit, compute: Compute) -> None:
    some, attack = head(images, 7), replace(ATTACKS[0], steps=3)
    result = merge_results(attack, evaluate(Dropping(), attack, some, compute, batch_size=4))
    together, apart = (adversarial_images(Dropping(), result, some, compute, batch_size=size) for size in (7, 2))
    assert torch.equal(together, apart)
    assert not torch.equal(together, some.take(torch.arange(7)))
    few, more = (examples(Dropping(), result, some, compute, count=count) for count in (1, 3))
    assert torch.equal(few.adv, more.adv[:1])
    assert torch.equal(few.adv_probs, more.adv_probs[:1])


class Overflowing(nn.Module):
    """Logits that are not finite on images brighter than a half, as after an overflow; else class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 3, device=x.device) + 0 * x.flatten(1).sum(1, keepdim=True)
        logits[:, 0] += 1
        return torch.where((x.flatten(1).mean(1) > 0.5)[:, None], torch.nan, logits)


def test_outputs_that_are_not_finite_break_nothing_and_are_not_robust(compute: Compute) -> None:
    x = torch.full((4, *SHAPE), 0.2)
    x[1] = 0.9
    labels = torch.tensor([0, 0, 1, 0])
    found = merge_results(FGSM(Linf(0.01)), evaluate(Overflowing(), FGSM(Linf(0.01)), ArraySplit(x, labels), compute))
    assert found.correct.tolist() == found.robust.tolist() == [True, False, False, True]
    assert found.undefined.tolist() == [False, True, False, False]
    assert found.minimum_norm.tolist() == [math.inf, 0, 0, math.inf]
    assert "not finite on 1 of 4 images" in found.warnings[0]
    assert found.row()["undefined"] == 1


def test_a_result_says_itself_in_one_line_and_warns_of_a_network_with_one_answer(compute: Compute) -> None:
    x, labels = torch.full((4, *SHAPE), 0.2), torch.tensor([0, 1, 1, 0])
    found = merge_results(FGSM(Linf(0.01)), evaluate(Overflowing(), FGSM(Linf(0.01)), ArraySplit(x, labels), compute))
    assert repr(found) == "50.0 % (15.0 to 85.0) of 4 images under FGSM(ball=Linf(eps=0.01))"
    assert found.warnings == ("the network predicts class 0 for all 4 unchanged images",)
    assert found.warnings[0] in found._repr_html_()
    assert (found.accuracy, found.interval) == (0.5, (found.row()["ci_low"], found.row()["ci_high"]))
    assert found.rows() == [found.row()]


def test_the_last_point_alone_may_decide(compute: Compute) -> None:
    # Wrong in the middle and back; wrong at the end; never wrong.
    attack = Scripted((((True, True, True), (False, True, True), (True, False, True)),), Linf(1.0))
    x, labels = torch.zeros(3, *SHAPE), torch.arange(3)
    x[:, 0, 0, 0] = labels / 10
    found = merge_results(attack, evaluate(Says(), attack, ArraySplit(x, labels), compute, batch_size=2, stop="last"))
    assert found.robust.tolist() == [True, False, True]
    assert found.first_success_step.tolist() == [[-1, 2, -1]]


def test_who_broke_what_is_counted_once(compute: Compute) -> None:
    first_walk = ((True, True, True), (False, True, True))
    second = ((True, True, True), (False, False, True))
    attack = Scripted((first_walk, second), Linf(1.0))
    x, labels = torch.zeros(3, *SHAPE), torch.arange(3)
    x[:, 0, 0, 0] = labels / 10
    for all_runs in (True, False):
        found = merge_results(attack, evaluate(Says(), attack, ArraySplit(x, labels), compute, batch_size=2, all_runs=all_runs))
        assert found.runs == ("script 0", "script 1")
        assert found.row()["broken_by"] == {"script": 2}
        assert found.robust.tolist() == [False, False, True]
        assert found.first_success_step.tolist() == [[1, -1, -1], [1 if all_runs else -1, 1, -1]]


@every_attack
def test_what_is_known_is_not_computed_again(attack: Attack, images: ArraySplit, compute: Compute) -> None:
    whole = list(evaluate(make_net(), attack, images, compute, batch_size=SIZE))
    expected = merge_results(attack, whole)
    for kept in sorted({0, 1, len(whole) // 2, len(whole) - 1, len(whole)}):
        rest = list(evaluate(make_net(), attack, images, compute, batch_size=SIZE, known=whole[:kept]))
        seen = [(part.run, place) for part in (*whole[:kept], *rest) for place in part.indices]
        assert len(seen) == len(set(seen)), "no verdict twice"
        found = merge_results(attack, [*whole[:kept], *rest])
        assert torch.equal(found.first_success_step, expected.first_success_step)
        assert torch.equal(found.correct, expected.correct)
    assert not list(evaluate(make_net(), attack, images, compute, batch_size=SIZE, known=whole))


def test_only_some_images(images: ArraySplit, compute: Compute) -> None:
    attack = ATTACKS[0]
    whole = merge_results(attack, evaluate(make_net(), attack, images, compute, batch_size=SIZE))
    some = merge_results(attack, evaluate(make_net(), attack, images, compute, batch_size=SIZE, indices=[30, 4, 17]))
    assert some.indices.tolist() == [4, 17, 30]
    assert torch.equal(some.robust, whole.robust[some.indices])


def test_a_stopped_consumer_leaves_the_network_as_it_was(images: ArraySplit, compute: Compute) -> None:
    net = make_net("resnet_small").train()
    parts = evaluate(net, ATTACKS[0], images, compute, batch_size=SIZE)
    for _ in range(6):
        next(parts)
        assert all(module.training for module in net.modules()), "also between two parts"
        assert not net._forward_pre_hooks


@pytest.fixture
def checkpoint() -> Checkpoint:
    net = make_net()
    about = CheckpointInfo(
        arch="small_cnn", input_shape=SHAPE, classes=tuple(f"c{k}" for k in range(CLASSES)), mean=(0.4,) * 3, std=(0.3,) * 3
    )
    from vizrobust.models import architecture

    return Checkpoint("tiny", about, body_state(net), architecture("small_cnn", SHAPE, CLASSES))


def folder(path: Path) -> RunFolder:
    return RunFolder(path, "attack", identity("toy", "test", 0, SIZE, "fp32"))


HOW = {"batch_size": SIZE}


class TestInARunFolder:
    def test_a_stopped_evaluation_goes_on(
        self, tmp_path: Path, checkpoint: Checkpoint, images: ArraySplit, compute: Compute
    ) -> None:
        attack = ATTACKS[1]
        expected = evaluated(folder(tmp_path / "whole"), checkpoint, attack, images, compute, **HOW)
        for stop in range(1, 12, 2):
            path = tmp_path / f"stopped-{stop}"
            for _, _part in zip(
                range(stop), evaluate_in_folder(folder(path), checkpoint, attack, images, compute, **HOW), strict=False
            ):
                pass
            with (path / "rows.jsonl").open("a") as file:
                file.write('{"walk": "PGD", "ima')  # killed in the middle of a line
            found = evaluated(folder(path), checkpoint, attack, images, compute, **HOW)
            assert torch.equal(found.first_success_step, expected.first_success_step)
            assert torch.equal(found.correct, expected.correct)
            rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
            verdicts = [(row["walk"], place) for row in rows for place in row["images"]]
            assert len(verdicts) == len(set(verdicts))

    def test_a_finished_one_is_read(self, tmp_path: Path, checkpoint: Checkpoint, images: ArraySplit, compute: Compute) -> None:
        first_time = evaluated(folder(tmp_path), checkpoint, ATTACKS[0], images, compute, **HOW)
        before = (tmp_path / "rows.jsonl").read_bytes()
        again = evaluated(folder(tmp_path), replace(checkpoint, build=fails), ATTACKS[0], images, compute, net=make_net(), **HOW)
        assert (tmp_path / "rows.jsonl").read_bytes() == before
        assert again.row() == first_time.row()

    def test_fewer_and_more_images_use_what_is_there(
        self, tmp_path: Path, checkpoint: Checkpoint, images: ArraySplit, compute: Compute
    ) -> None:
        expected = evaluated(folder(tmp_path / "whole"), checkpoint, ATTACKS[1], images, compute, **HOW)
        for n in (20, 7, N):
            found = evaluated(folder(tmp_path / "grown"), checkpoint, ATTACKS[1], head(images, n), compute, **HOW)
            assert torch.equal(found.first_success_step, expected.first_success_step[:, :n])
            assert found.row()["n"] == n

    def test_attacks_and_checkpoints_do_not_meet(
        self, tmp_path: Path, checkpoint: Checkpoint, images: ArraySplit, compute: Compute
    ) -> None:
        run = folder(tmp_path)
        other = checkpoint.untrained("other")
        for one in (checkpoint, other):
            for attack in ATTACKS:
                alone = merge_results(attack, evaluate(one.net(), attack, images, compute, batch_size=SIZE))
                found = evaluated(run, one, attack, images, compute, **HOW)
                assert torch.equal(found.first_success_step, alone.first_success_step)
        rows = run.rows()
        assert sum(len(row["images"]) for row in rows if row["walk"] == CLEAN) == 2 * N, "once for each checkpoint"


def fails() -> nn.Module:
    raise AssertionError("nothing is left to compute")


def test_costs_of_a_subset_are_in_proportion(
    tmp_path: Path, checkpoint: Checkpoint, images: ArraySplit, compute: Compute
) -> None:
    whole = evaluated(folder(tmp_path), checkpoint, ATTACKS[0], images, compute, batch_size=SIZE)
    half = evaluated(folder(tmp_path), checkpoint, ATTACKS[0], head(images, 16), compute, batch_size=SIZE)
    assert 0 < half.seconds < whole.seconds
    assert 0 < half.gradient_passes < whole.gradient_passes


def test_a_part_is_plain_data() -> None:
    part = PartialResult("PGD", "PGD", 3, (1, 2), (-1, 2), (0.1, 0.2), 8, 6, 0.5)
    assert json.loads(json.dumps(vars(part)))["indices"] == [1, 2]


# Batches of 8 repeat themselves; a few larger counts stand for the others.
@pytest.mark.parametrize(
    ("batch_size", "counts"),
    [
        pytest.param(8, (*range(1, 18), 31, 64), id="8"),
        pytest.param(8, range(1, 65), id="8, every count", marks=pytest.mark.slow),
        pytest.param(100, range(1, 65), id="100"),
    ],
)
def test_the_cost_follows_the_number_of_images(batch_size, counts):
    """Of images that the attack cannot change, for every count: at most 1.5 times the images that are needed pass the network."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].weight.data = torch.tensor([[0.0, 0, 0, 0], [9.0, 9, 9, 9]])
    seen = []
    net.register_forward_pre_hook(lambda _net, inputs: seen.append(len(inputs[0])))
    attack, steps = PGD(steps=10, ball=Linf(eps=1e-6), random_start=False), 10
    for count in counts:
        images = ArraySplit(torch.full((count, 1, 2, 2), 0.5), torch.ones(count, dtype=torch.int64))
        seen.clear()
        parts = list(evaluate(net, attack, images, Compute("cpu"), batch_size=batch_size))
        assert merge_results(attack, parts).robust.all()
        assert sum(seen) <= 1.5 * count * (steps + 3), count
        sizes = {part.batch_size or batch_size for part in parts}
        assert len(sizes) == 1
        assert sizes <= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}


def test_what_was_begun_in_larger_batches_is_gone_on_with_in_them():
    net, attack = make_net(), PGD(steps=3, ball=Linf(eps=0.05))
    x = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    images = ArraySplit(x, net(x).argmax(1))
    old = [replace(part, batch_size=0) for part in evaluate(net, attack, images, Compute("cpu"), indices=range(4))]
    new = list(evaluate(net, attack, images, Compute("cpu"), known=old))
    assert {part.batch_size for part in new} == {0}  # 100, as in a folder of before
    fresh = list(evaluate(net, attack, images, Compute("cpu")))
    assert {part.batch_size for part in fresh} == {12}
    again = list(evaluate(net, attack, images, Compute("cpu"), known=fresh[:1]))
    assert [(part.indices, part.first_success_step, part.norms) for part in again] == [
        (part.indices, part.first_success_step, part.norms) for part in fresh[1:]
    ]
