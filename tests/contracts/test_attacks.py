"""Contract: every attack stays in its ball and in [0, 1], borrows the network, beats noise and keeps images apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, assert_alone_as_in_a_batch, assert_the_same_at_one_batch_size, make_net, net_file
from tests.digits import digits_net
from vizrobust.attacks import APGD, ATTACKS, EOT, L0, L1, L2, LOSSES, Attack, AttackResult, AttackRun, Ball, Linf, State, Transfer
from vizrobust.data import load
from vizrobust.models import evaluating, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.spec import vary

BALLS: dict[str, Ball] = {"Linf": Linf(8 / 255), "L2": L2(0.7)}
SPARSE: dict[str, Ball] = {"L1": L1(6.0), "L0": L0(9)}
STEPS = 4


# These ask for no gradient of the network: what they achieve in a few queries is tested in files of their own.
BLACK_BOX = ("Square", "HopSkipJump", "Noise", "Transfer")
# These look for the smallest perturbation: where they go is not what they hand out, and they judge by its norm.
MINIMAL = tuple(name for name, kind in ATTACKS.items() if kind.minimum_norm)
# The norm of those that know neither Linf nor L2, or only one of them.
ONLY = {"CW": "L2", "DDN": "L2", "ALMA": "L2", "SigmaZero": "L0"}
# Attacks around another one have its ball.
AROUND = {"Transfer": Transfer(source=net_file()), "EOT": EOT(samples=2)}


def make(name: str, ball: Ball, steps: int = STEPS) -> Attack:
    """The attack with its defaults, this ball and so many steps, where it has a number of them."""
    attack = vary(AROUND[name], ball=ball) if name in AROUND else ATTACKS[name](ball=ball)
    small = vary(attack, where_present=True, steps=steps, queries=steps, targets=2, search_steps=2)
    return small if name in AROUND else vary(small, where_present=True, samples=steps + 1)


def steps_of(attack: Attack, net: nn.Module, x: Tensor) -> int:
    return max(walk.steps for walk in attack.runs(net, x))


def is_l1_apgd(attack: Attack) -> bool:
    return isinstance(attack, APGD) and isinstance(attack.ball, L1)


# Variants of one attack that go through other code; a new attack is found through the catalogue.
VARIANTS = {
    "APGD": [{"restarts": 2}, {"random_start": False}, {"loss": "dlr", "targeted": True}, {"loss": "dlr"}],
    "FAB": [{"restarts": 2}, {"targeted": False}],
    "FGSM": [{"targeted": True}],
    "PGD": [{"restarts": 2}, {"random_start": False}, {"targeted": True}, {"loss": "margin"}],
    "Square": [{"restarts": 2}, {"loss": "ce"}],
    "FMN": [{"steepest": True}],
    "Noise": [{"kind": "gaussian"}, {"kind": "vertices"}],
    "Transfer": [{"restarts": 2}],
    "EOT": [{"restarts": 2}],
}


def catalogue() -> Iterator[tuple[Attack, str]]:
    for name in ATTACKS:
        for kind, ball in {**BALLS, **SPARSE}.items():
            try:
                yield make(name, ball), f"{name}-{kind}"
            except ValueError:  # not every attack knows the sparse balls
                assert kind in SPARSE or ONLY[name] != kind
        for changes in VARIANTS.get(name, []):
            yield vary(make(name, BALLS["Linf"]), **changes), f"{name}-{'-'.join(changes)}"
    for name, changes in (("Noise", {"kind": "vertices"}), ("FMN", {"steepest": True})):
        yield vary(make(name, SPARSE["L0"]), **changes), f"{name}-L0-{'-'.join(changes)}"


EVERY = list(catalogue())
# AutoAttack's members are here by themselves, so it keeps the first property alone.
SINGLE = [(attack, name) for attack, name in EVERY if not name.startswith("AutoAttack")]
every_attack = pytest.mark.parametrize("attack", [attack for attack, _ in SINGLE], ids=[name for _, name in SINGLE])
every_pair = pytest.mark.parametrize(
    ("name", "ball"),
    [
        pytest.param(name, ball, id=f"{name}-{kind}")
        for name in ATTACKS
        for kind, ball in {**BALLS, **SPARSE}.items()
        if name != "AutoAttack" and kind in ((ONLY[name],) if name in ONLY else BALLS)
    ],
)


def batch(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A third of the pixels are saturated, as in MNIST: black and white must be attackable too.
    x = (torch.rand(n, *SHAPE, generator=generator, dtype=dtype) * 1.5 - 0.25).clamp(0, 1)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def streams(items) -> Streams:
    return Streams(0, items, "attack")


@contextmanager
def iterates(net: nn.Module, n: int) -> Iterator[list[Tensor]]:
    """The batches of n images that the network sees."""
    seen: list[Tensor] = []
    handle = net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()
        seen[:] = [x for x in seen if len(x) == n]


@dataclass(frozen=True)
class Outcome:
    """One run of an attack on five images, and what the network saw in it."""

    net: nn.Module
    x: Tensor
    y: Tensor
    found: AttackResult
    seen: list[Tensor]


@cache
def outcome(attack: Attack) -> Outcome:
    net, (x, y) = make_net(), batch(5)
    before = x.clone(), y.clone()
    with iterates(net, 5) as seen:
        found = attack(net, x, y, streams=streams(range(5)))
    assert torch.equal(x, before[0]), "the images given are left alone"
    assert torch.equal(y, before[1])
    return Outcome(net, x, y, found, seen)


@pytest.mark.parametrize("attack", [attack for attack, _ in EVERY], ids=[name for _, name in EVERY])
def test_shapes_types_and_ranges(attack: Attack) -> None:
    ran = outcome(attack)
    x, found, steps = ran.x, ran.found, steps_of(attack, ran.net, ran.x)
    assert found.best is not None
    assert found.loss is not None
    assert found.correct is not None
    for image in (found.x, found.best):
        assert image.shape == x.shape
        assert image.dtype == x.dtype
        assert not image.requires_grad
        assert image.min() >= 0
        assert image.max() <= 1
        assert (attack.ball.norm(image - x) <= attack.ball.eps + 1e-6).all()
    assert found.loss.shape == found.correct.shape == (steps + 1, 5)
    assert found.correct.dtype == torch.bool
    assert not found.loss.requires_grad


@every_attack
class TestWhatComesBack:
    def test_without_judging_the_same_streams_give_the_same_images_and_others_do_not(self, attack: Attack) -> None:
        ran = outcome(attack)
        net, x, y = ran.net, ran.x, ran.y
        with iterates(net, 5) as seen:
            blind = attack(net, x, y, streams=streams(range(5)), evaluate=False)
        assert torch.equal(blind.x, ran.found.x)
        assert (blind.best, blind.loss, blind.correct) == (None, None, None)
        several = isinstance(attack, EOT) or type(attack).__name__ in MINIMAL
        if len(attack.runs(net, x)) == 1 and not several and not is_l1_apgd(attack):
            assert len(seen) == steps_of(attack, net, x), "no forward pass more than gradients need"
        if getattr(attack, "random_start", False):
            assert not torch.equal(attack(net, x, y, streams=streams(range(5, 10)), evaluate=False).x, blind.x)

    def test_losses_and_verdicts_are_those_of_the_iterates(self, attack: Attack) -> None:
        if getattr(attack, "targeted", False) or isinstance(attack, EOT):
            pytest.skip("another label, or several passes for each point: see test_gradient_attacks and test_eot")
        ran = outcome(attack)
        net, x, y, found, seen = ran.net, ran.x, ran.y, ran.found, ran.seen
        if len(attack.runs(net, x)) > 1:
            pytest.skip("several runs: see test_gradient_attacks")
        if is_l1_apgd(attack):
            pytest.skip("its first points lie outside the ball: see test_apgd")
        if type(attack).__name__ in MINIMAL:
            pytest.skip("its loss is a distance: see test_fab, test_deepfool, test_cw, test_smallest and test_hop_skip_jump")
        assert found.loss is not None
        assert found.best is not None
        assert found.correct is not None
        assert len(seen) == len(found.loss)
        loss = LOSSES[getattr(attack, "loss", "margin" if type(attack).__name__ in BLACK_BOX else "ce")]
        with torch.no_grad():
            logits = torch.stack([net(image) for image in seen])
        recomputed = torch.stack([loss(row, y) for row in logits])
        assert torch.allclose(found.loss, recomputed, atol=1e-6)
        assert torch.equal(found.correct, logits.argmax(2) == y)
        assert torch.equal(seen[-1], found.x), "the K-th iterate is the example"
        start = x
        if getattr(attack, "random_start", False):
            start = (x + attack.ball.sample(x, streams(range(5)))).clamp(0, 1)
        if type(attack).__name__ not in BLACK_BOX:
            assert torch.equal(seen[0], start), "row 0 is the start"
        # The best of them, found by a loop over plain numbers.
        for k in range(5):
            order = [(not bool(right[k]), float(value[k])) for right, value in zip(found.correct, found.loss, strict=True)]
            best = max(range(len(order)), key=lambda t: order[t])
            assert torch.equal(found.best[k], seen[best][k])


class FailsLate(nn.Module):
    """Raises at its third forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 3:
            raise RuntimeError("out of memory")
        return x


def lived_in_net(last: nn.Module) -> nn.Module:
    """A network in training, with a frozen BatchNorm, dropout, a frozen weight, gradients and hooks of its owner's."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, CLASSES), last,
    )  # fmt: skip
    net.train()
    net[5].eval()
    net[4].weight.requires_grad_(False)
    net(torch.rand(8, *SHAPE)).sum().backward()
    net[0].bias.grad = None
    net.register_forward_hook(lambda *_: None)
    net[1].register_forward_pre_hook(lambda *_: None)
    return net


def everything_about(net: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in net.modules()],
        "values": {key: value.tolist() for key, value in net.state_dict().items()},
        "requires_grad": [weight.requires_grad for weight in net.parameters()],
        "grad": [None if weight.grad is None else weight.grad.tolist() for weight in net.parameters()],
        "hooks": [[list(getattr(module, kind)) for kind in hooks] for module in net.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad_enabled": torch.is_grad_enabled(),
    }


# All attacks run through `Attack.__call__`. Four kinds of runs stand for them: restarts with gradients, queries, the smallest
# perturbation towards several classes, an attack around another one.
KINDS = ("PGD-restarts", "Square-Linf", "FAB-Linf", "EOT-Linf")
a_kind_of_run = pytest.mark.parametrize("attack", [attack for kind in KINDS for attack, name in EVERY if name == kind], ids=KINDS)


class TestTheNetworkIsBorrowed:
    @a_kind_of_run
    def test_it_is_given_back_untouched(self, attack: Attack) -> None:
        net = lived_in_net(nn.Identity())
        before = everything_about(net)
        for judge in (True, False):
            attack(net, *batch(5), streams=streams(range(5)), evaluate=judge)
        assert everything_about(net) == before

    @pytest.mark.parametrize("name", list(ATTACKS))
    def test_whatever_the_attack(self, name: str) -> None:
        net = lived_in_net(nn.Identity())
        before = everything_about(net)
        make(name, (SPARSE if ONLY.get(name) == "L0" else BALLS)[ONLY.get(name, "L2")], steps=2)(
            net, *batch(3), streams=streams(range(3))
        )
        assert everything_about(net) == before

    @a_kind_of_run
    def test_also_after_an_exception(self, attack: Attack) -> None:
        fails = FailsLate()
        net = lived_in_net(fails)
        fails.passes = 2 - min(1, steps_of(attack, make_net(), batch(5)[0]) - 1)
        before = everything_about(net)
        with pytest.raises(RuntimeError, match="out of memory"):
            attack(net, *batch(5), streams=streams(range(5)))
        assert everything_about(net) == before

    @a_kind_of_run
    def test_it_runs_in_evaluation_mode(self, attack: Attack) -> None:
        net = lived_in_net(nn.Identity())
        x, y = batch(5)
        in_training = attack(net, x, y, streams=streams(range(5)))
        in_evaluation = attack(net.eval(), x, y, streams=streams(range(5)))
        assert torch.equal(in_training.x, in_evaluation.x)
        assert torch.equal(in_training.loss, in_evaluation.loss)


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that knows its task, with 40 test images and labels."""
    if request.param == "digits":
        net, data = digits_net(), load("digits")
    else:
        net, data = load_checkpoint(request.param).net(), load("mnist5k")
    index = torch.arange(IMAGES)
    x, y = data.test.take(index), data.test.labels[index]
    with torch.no_grad():
        assert (net(x).argmax(1) == y).float().mean() > 0.85
    return net, x, y


IMAGES = 40
# Radii at which neither the attack nor noise has it all its own way.
RADII = {"Linf": 0.1, "L2": 1.0}


@pytest.mark.parametrize(
    "trained",
    ["digits", pytest.param("mnist-k8", marks=pytest.mark.slow), pytest.param("mnist-k0", marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ATTACKS for kind in RADII if name not in (*BLACK_BOX, *ONLY, "AutoAttack")],
)
def test_an_attack_beats_noise_of_the_same_size(name: str, kind: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    ball = type(BALLS[kind])(RADII[kind])
    # FMN's published step, of one L2 length in every norm, is hardly better than noise on mnist-k8 in so few steps.
    attack = vary(make(name, ball, steps=10), where_present=True, steepest=True)
    found = (vary(attack, eps=None) if name in MINIMAL else attack)(net, x, y, streams=streams(range(IMAGES)))
    image = found.best if name in MINIMAL else found.x
    noise = ball.steepest_direction(ball.sample(x, streams(range(IMAGES)).child("noise")))
    # As long as the attack's own change, image by image; clipping may only shorten both.
    size = ball.norm(image - x).reshape(-1, 1, 1, 1)
    noisy = (x + size * noise).clamp(0, 1)
    with torch.no_grad():
        # Margins tell images apart of which the network is so sure that their cross entropy is 0.
        attacked, disturbed, clean = (LOSSES["margin"](net(each), y) for each in (image, noisy, x))
        by_attack, by_noise = ((net(each).argmax(1) == y).float().mean() for each in (image, noisy))
    unmoved = size.flatten() == 0  # as some attacks leave what is wrong already
    assert ((attacked > disturbed) | unmoved).float().mean() > 0.95
    if name not in MINIMAL:  # they stop where the margin is 0
        assert attacked.mean() - clean.mean() > 3 * (disturbed.mean() - clean.mean())
    assert by_attack < by_noise


@every_pair
def test_in_float64_an_image_alone_is_the_same_as_in_a_batch(name: str, ball: Ball) -> None:
    net = make_net().double()
    assert_alone_as_in_a_batch(make(name, ball, steps=5), net, *batch(7, dtype=torch.float64), (0, 6))


@every_pair
def test_in_fp32_at_one_batch_size_an_image_is_the_same_bit_for_bit(name: str, ball: Ball) -> None:
    assert_the_same_at_one_batch_size(make(name, ball, steps=4), make_net(), *batch(11))


@pytest.mark.parametrize("name", ["PGD", "Square"])
def test_so_it_is_in_a_deeper_network(name: str) -> None:
    """With gradients and with queries; residual blocks and pooling run through other kernels."""
    assert_the_same_at_one_batch_size(make(name, BALLS["Linf"], steps=10), make_net("resnet_small"), *batch(11))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PGD", "Square"])
@pytest.mark.usefixtures("two_threads")
def test_so_it_is_on_two_threads(name: str) -> None:
    """Threads that wait for each other count as work, most of all on a machine that does other things too."""
    assert_the_same_at_one_batch_size(make(name, BALLS["Linf"], steps=10), make_net("resnet_small"), *batch(11))


# What a run remembers of an image does not depend on the ball, but for those whose projection sorts its values.
SLOTS = [(attack, name) for attack, name in SINGLE if not name.endswith("-L2") or name.partition("-")[0] in ONLY]


@pytest.mark.parametrize("attack", [attack for attack, _ in SLOTS], ids=[name for _, name in SLOTS])
def test_a_slot_filled_again_at_another_step_changes_nothing(attack: Attack, net: nn.Module) -> None:
    x, y = batch(10)
    for walk in attack.runs(net, x)[-1:]:  # a restart, or the last of several classes

        def begun(items: range, walk: AttackRun = walk) -> State:
            return walk.start(net, x[items.start : items.stop], y[items.start : items.stop], streams(items))

        def verdicts(state: State, slot: int) -> list[object]:
            return [state[key][slot].tolist() for key in ("step", "misclassified", "correct", "loss", "best", "best_loss")]

        with evaluating(net):
            expected = {}
            for items in (range(5), range(5, 10)):
                state = begun(items)
                for _ in range(walk.steps + 1):
                    walk.step(net, state)
                expected |= {item: verdicts(state, slot) for slot, item in enumerate(items)}
            # Slots 1 and 3 are given to the images 5 and 9 after two steps, the others to image 7 when they are done.
            state, fresh, seen = begun(range(5)), begun(range(5, 10)), {}
            items, change = list(range(5)), {min(2, walk.steps): {1: 5, 3: 9}, walk.steps + 1: {0: 7, 2: 7, 4: 7}}
            for t in range(walk.steps + 3):
                for slot, item in change.get(t, {}).items():
                    items[slot] = item
                    for key, value in fresh.items():
                        state[key] = state[key].index_copy(0, torch.tensor([slot]), value[item - 5 : item - 4])
                walk.step(net, state)
                seen |= {item: verdicts(state, slot) for slot, item in enumerate(items) if state["step"][slot] == walk.steps + 1}
        assert {0, 2, 4, 5, 9} <= seen.keys()
        assert seen == {item: expected[item] for item in seen}
