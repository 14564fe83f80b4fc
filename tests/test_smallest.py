"""FMN, DDN, ALMA and sigma-zero: nearly exact on linear networks, beside adv-lib on a trained one; and their optimality."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.digits import digits, digits_net
from tests.test_fab import case, exact, linear_net, smallest
from vizrobust.attacks import ALMA, DDN, FMN, L0, L1, Attack, SigmaZero
from vizrobust.robustness.smallest_eps import Optimality, optimality
from vizrobust.spec import vary


def sparsest(norm: str, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The smallest L1 or L0 perturbations of a linear network: values are moved one after the other, the most useful first."""
    weight, logits = net[1].weight, net(x)
    best = []
    for k, label in enumerate(y.tolist()):
        costs = []
        for other in set(range(len(weight))) - {label}:
            slope, rest = (weight[other] - weight[label]).tolist(), float(logits[k, label] - logits[k, other])
            point = x[k].flatten().tolist()
            room = [1 - value if w > 0 else value for value, w in zip(point, slope, strict=True)]
            gain = [abs(w) * r for w, r in zip(slope, room, strict=True)]
            useful = [abs(w) for w in slope] if norm == "L1" else gain
            cost = 0.0
            for i in sorted(range(len(slope)), key=lambda i: -useful[i]):
                share = min(1.0, rest / gain[i]) if gain[i] else 0.0
                cost += (share * room[i]) if norm == "L1" else float(share > 0)
                rest -= share * gain[i]
                if rest <= 1e-12:
                    break
            costs.append(cost if rest <= 1e-12 else float("inf"))
        best.append(min(costs))
    return torch.tensor(best, dtype=torch.float64)


# Each attack, and how far above the smallest its median may be.
ON_LINEAR: list[tuple[Attack, float]] = [
    (FMN(steps=60), 1.03),
    (FMN(steps=60, steepest=True), 1.03),
    (FMN(steps=60, norm="L2"), 1.02),
    (FMN(steps=60, norm="L2", steepest=True), 1.02),
    (FMN(steps=60, norm="L1", steepest=True, alpha=0.3), 1.05),
    (FMN(steps=60, norm="L0"), 1.01),
    (FMN(steps=60, norm="L0", steepest=True), 1.01),
    (DDN(steps=60), 1.12),
    (ALMA(steps=100), 1.03),
    (ALMA(steps=100, norm="L1", lr=0.03), 1.1),
    (SigmaZero(steps=60), 1.01),
]


@pytest.mark.parametrize(("attack", "above"), ON_LINEAR, ids=lambda value: repr(value))
def test_on_a_linear_network_it_comes_near_the_smallest_perturbation(attack: Attack, above: float) -> None:
    net = linear_net(3)
    x, y = case(net, 20)
    ball = attack.ball
    best = sparsest(type(ball).__name__, net, x, y) if isinstance(ball, L1 | L0) else exact(ball, net, x, y)
    found = smallest(attack, net, x, y)
    assert (found >= best * (1 - 1e-9)).all()
    assert (found / best).median() <= above


@pytest.mark.parametrize("attack", [FMN(steps=30), DDN(steps=30), ALMA(steps=30), SigmaZero(steps=30)], ids=repr)
def test_with_a_radius_only_what_is_inside_counts(attack: Attack) -> None:
    net = linear_net(3)
    x, y = case(net, 20)
    free = smallest(attack, net, x, y)
    limit = float(free[free > 0].median())
    assert torch.equal(smallest(vary(attack, eps=limit), net, x, y).isfinite(), free <= limit)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DDN(norm="Linf"), "DDN: the ball must be L2, got Linf"),
        (lambda: ALMA(norm="L0"), "ALMA: the ball must be L2 or L1, got L0"),
        (lambda: SigmaZero(norm="L1"), "SigmaZero: the ball must be L0, got L1"),
        (lambda: FMN(gamma=1.0), "FMN: gamma must be between 0 and 1, got 1"),
        (lambda: FMN(alpha=0.0), "FMN: alpha must be above 0, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.fixture(scope="module")
def adv_lib() -> ModuleType:
    # It imports a plotting server at its start, which these attacks do not use.
    sys.modules.setdefault("visdom", ModuleType("visdom"))
    sys.modules["visdom"].__dict__.setdefault("Visdom", object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(
            "adv_lib", reason="adv-lib is not here: pip install --no-deps -r tests/peers.txt", exc_type=ImportError
        )
        import adv_lib.attacks
        import adv_lib.attacks.fast_minimum_norm as theirs

    def into_the_ball(δ: Tensor, ε: Tensor) -> Tensor:
        """The projection of the paper; theirs brings points inside the ball out to its sphere."""
        δ = δ.flatten(1)
        return δ.mul_((ε[:, None] / δ.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1))

    theirs.l2_projection_ = into_the_ball
    return adv_lib.attacks


STEPS = 60
# Where theirs may stop in front of the boundary and find nothing at all; see `FMNRun._radius`.
STUCK = ("FMN-L2", "FMN-L1")
# Other balls of attacks that are compared in one.
AGAIN = ("FMN-L2", "FMN-L0", "ALMA-L1")
PEERS = {
    "FMN-Linf": (FMN(steps=STEPS), lambda lib, *case: lib.fmn(*case, norm=float("inf"), steps=STEPS)),
    "FMN-L2": (FMN(steps=STEPS, norm="L2"), lambda lib, *case: lib.fmn(*case, norm=2, steps=STEPS)),
    "FMN-L1": (FMN(steps=STEPS, norm="L1"), lambda lib, *case: lib.fmn(*case, norm=1, steps=STEPS)),
    "FMN-L0": (FMN(steps=STEPS, norm="L0"), lambda lib, *case: lib.fmn(*case, norm=0, steps=STEPS)),
    "DDN": (DDN(steps=STEPS), lambda lib, *case: lib.ddn(*case, steps=STEPS, levels=None)),
    "ALMA-L2": (ALMA(steps=STEPS), lambda lib, *case: lib.alma(*case, num_steps=STEPS)),
    "ALMA-L1": (ALMA(steps=STEPS, norm="L1"), lambda lib, *case: lib.alma(*case, num_steps=STEPS, distance="l1")),
    "SigmaZero": (SigmaZero(steps=STEPS), lambda lib, *case: lib.sigma_zero(*case, num_steps=STEPS)),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in AGAIN else name for name in PEERS])
def test_it_is_adv_libs(adv_lib: ModuleType, name: str) -> None:
    """At as many passes: the median within 1 %, and 95 % of the images within 5 %, or smaller."""
    attack, peer = PEERS[name]
    net, (x, y) = digits_net(), digits(100)
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    adv = peer(adv_lib, net, x, y).detach()
    theirs = torch.where(net(adv).argmax(1) != y, attack.ball.norm(adv - x), torch.inf)
    mine = smallest(attack, net, x, y)
    assert mine.median() <= theirs.median() * 1.01
    # The signs in which ALMA goes in L1 turn at the last bit of a value, and with them the images apart.
    assert (mine <= theirs * 1.05).float().mean() >= (0.8 if name == "ALMA-L1" else 0.95)
    if name in STUCK:
        return
    assert (theirs <= mine * 1.05).float().mean() >= (0.8 if name == "ALMA-L1" else 0.95)
    assert mine.median() >= theirs.median() * (0.95 if name == "ALMA-L1" else 0.99)


class TestOptimality:
    def test_it_is_the_ratio_of_the_areas_over_the_curves(self) -> None:
        generator = torch.Generator().manual_seed(0)
        best = torch.rand(300, generator=generator, dtype=torch.float64)
        best[:30] = 0
        eps = best * (1 + torch.rand(300, generator=generator, dtype=torch.float64))
        eps[250:] = torch.inf
        radii = torch.linspace(0, float(best.max()), 4001, dtype=torch.float64)
        clean = (best > 0).double().mean()
        lost = [
            torch.trapezoid(clean - torch.stack([(one > radius).double().mean() for radius in radii]), radii)
            for one in (eps, best)
        ]
        found = optimality(eps, best)
        assert found is not None
        assert found.value == pytest.approx(float(lost[0] / lost[1]), abs=1e-3)
        assert 0 < found.low < found.value < found.high < 1

    def test_the_interval_covers_it_as_often_as_it_says(self) -> None:
        generator = torch.Generator().manual_seed(1)
        inside, truth = 0, None
        for n in (200_000, *[200] * 400):
            best = torch.rand(n, generator=generator, dtype=torch.float64)
            best[0] = 1.0
            found = optimality(best * (1 + torch.rand(n, generator=generator, dtype=torch.float64)), best)
            assert found is not None
            truth = found.value if truth is None else truth
            inside += found.low <= truth <= found.high
        assert (inside - 1) / 400 >= 0.9

    def test_the_best_is_optimal_and_what_fails_is_not(self) -> None:
        best = torch.tensor([0.0, 0.1, 0.3, torch.inf])
        assert optimality(best, best) == Optimality(1.0, 1.0, 1.0)
        assert optimality(torch.tensor([0.0, torch.inf, torch.inf, torch.inf]), best) == Optimality(0.0, 0.0, 0.0)
        assert optimality(best, torch.tensor([0.0, torch.inf, torch.inf, torch.inf])) is None
