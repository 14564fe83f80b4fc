"""HopSkipJump: nearly exact on linear networks, from predicted classes alone, in as many queries as it says, beside foolbox's."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import on_network
from tests.digits import digits, digits_net
from tests.test_fab import balls, case, exact, linear_net, smallest
from vizrobust.attacks import L2, PGD, Ball, HopSkipJump
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, load
from vizrobust.models import load_checkpoint
from vizrobust.models.forward import NoLogits, logits_of
from vizrobust.spec import vary


class Labels(nn.Module):
    """A network that answers with a class and nothing else, and has no gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        assert not (x.requires_grad and torch.is_grad_enabled()), "nobody asks for a gradient"
        logits = self.net(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


@balls
def test_on_a_linear_network_it_comes_near_the_smallest_perturbation(ball: Ball) -> None:
    net = linear_net(3)
    x, y = case(net, 20)
    best = exact(ball, net, x, y)
    found = smallest(HopSkipJump(queries=1200, ball=ball, samples=60), net, x, y)
    assert (found >= best * (1 - 1e-9)).all()
    assert (found / best).median() <= 1.05


@balls
def test_it_sees_the_predicted_class_alone(ball: Ball) -> None:
    net, (x, y) = digits_net(), digits(5)
    attack = HopSkipJump(queries=100, ball=ball, samples=30)
    seen, blind = attack(net, x, y), attack(Labels(net), x, y)
    assert torch.equal(seen.best, blind.best)
    assert torch.equal(seen.correct, blind.correct)
    assert not blind.nonfinite_gradient.any()


def test_with_a_radius_only_what_is_inside_counts() -> None:
    net, attack = linear_net(3), HopSkipJump(queries=150, samples=30)
    x, y = case(net, 20)
    free = smallest(attack, net, x, y)
    limit = float(free.median())
    assert torch.equal(smallest(vary(attack, eps=limit), net, x, y).isfinite(), free <= limit)


def test_it_breaks_a_network_that_hides_its_gradients_in_as_many_queries_as_it_says() -> None:
    net, (x, y) = digits_net(), digits(10)
    images = ArraySplit(x, y)

    class Rounded(Labels):
        """One-hot outputs with a gradient of zeros."""

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                answer = super().forward(x)
            return answer + 0 * x.flatten(1).sum(1, keepdim=True)

    evaluated = on_network(Rounded(net), images, Compute("cpu"))
    assert evaluated(PGD(eps=0.3, steps=10, random_start=False)).robust.all()
    found = evaluated(HopSkipJump(eps=0.3, queries=400, samples=30))
    assert not found.robust.any()
    assert found.gradient_passes == 0
    whole = evaluated(HopSkipJump(queries=50), stop="end")
    assert whole.forward_passes == len(x) * (1 + 50 + 1), "the unchanged image, the start point, the queries"


def test_labels_in_place_of_logits_are_refused_with_a_way_out() -> None:
    with pytest.raises(NoLogits, match="returned a label for each"):
        logits_of(torch.tensor([3, 1, 4]))


def queries_and_norms(net: nn.Module, x: Tensor, y: Tensor, ball: Ball, steps: int) -> tuple[int, Tensor]:
    """Foolbox's attack with its defaults but for the number of rounds: queries for each image, and the norms it found."""
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not here: pip install --no-deps -r tests/peers.txt")
    queries = 0

    def count(_net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal queries
        queries += len(inputs[0])

    handle = net.register_forward_pre_hook(count)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            attack = foolbox.attacks.HopSkipJumpAttack(steps=steps, constraint="l2" if isinstance(ball, L2) else "linf")
            adv = attack.run(foolbox.PyTorchModel(net, bounds=(0, 1)), x, foolbox.criteria.Misclassification(y))
    finally:
        handle.remove()
    return queries // len(x), ball.norm(adv - x)


def foolbox_case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and images that foolbox can attack: it fails as a whole where plain noise is always of one image's class."""
    if name == "digits":
        net, (x, y) = digits_net(), digits(10)
    else:
        net, test = load_checkpoint(name).net().eval().requires_grad_(False), load("mnist5k").test
        x, y = test.take(torch.arange(20)).contiguous(), test.labels[:20]
    noise = net(torch.rand(500, *x.shape[1:], generator=torch.Generator().manual_seed(0))).argmax(1)
    able = (net(x).argmax(1) == y) & (noise[:, None] != y).any(0)
    return net, x[able], y[able]


@pytest.mark.peers
@balls
@pytest.mark.parametrize(
    "name", ["digits", pytest.param("mnist-k8", marks=pytest.mark.slow), pytest.param("mnist-k0", marks=pytest.mark.slow)]
)
def test_it_finds_no_larger_perturbations_than_foolbox_in_as_many_queries(name: str, ball: Ball) -> None:
    """The median within 5 %, or smaller: both are searches by chance."""
    net, x, y = foolbox_case(name)
    queries, theirs = queries_and_norms(net, x, y, ball, 2 if name == "digits" else 12)
    found = HopSkipJump(queries=queries, ball=ball)(net, x, y)
    assert not found.robust.any()
    assert ball.norm(found.best - x).median() <= 1.05 * theirs.median()
