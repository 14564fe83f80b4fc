"""FGSM and PGD give the images that torchattacks and foolbox give, where those are installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.attacks import FGSM, L2, PGD, Linf
from vizrobust.rng import Streams

pytestmark = pytest.mark.peers
# A power of two: torchattacks divides the loss by it, which then changes no bit of a sign.
N = 4
EPS = 8 / 255


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The peers warn on import and in use; that is theirs to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peer(name: str) -> ModuleType:
    reason = f"{name} is not here: pip install --no-deps -r tests/peers.txt"
    return pytest.importorskip(name, reason=reason, exc_type=ImportError)


def case(arch: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(N, *SHAPE, generator=generator, dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    return make_net(arch).to(dtype), x.to(dtype), torch.randint(CLASSES, (N,), generator=generator)


def ours(attack: FGSM | PGD, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return attack(net, x, y, streams=Streams(0, range(N))).x


def by_foolbox(name: str, net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, alpha: float) -> Tensor:
    foolbox = peer("foolbox")
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = getattr(foolbox.attacks, name)(abs_stepsize=alpha, steps=steps, random_start=False)
    return attack(model, x, y, epsilons=eps)[0]


archs = pytest.mark.parametrize("arch", ["small_cnn", "resnet_small"])


@archs
def test_fgsm_is_that_of_torchattacks(arch: str) -> None:
    net, x, y = case(arch)
    theirs = peer("torchattacks").FGSM(net, eps=EPS)(x, y)
    mine = ours(FGSM(Linf(EPS)), net, x, y)
    assert (mine - x).abs().max() > EPS / 2
    assert (mine - theirs).abs().max() <= 1e-6


@archs
@pytest.mark.parametrize("steps", [10])
def test_pgd_is_foolboxs_linfpgd(arch: str, steps: int) -> None:
    net, x, y = case(arch)
    alpha = EPS / 4
    theirs = by_foolbox("LinfPGD", net, x, y, EPS, steps, alpha)
    mine = ours(PGD(steps=steps, ball=Linf(EPS), alpha=alpha, random_start=False), net, x, y)
    assert (mine - theirs).abs().max() <= 1e-6


@archs
@pytest.mark.parametrize(("steps", "eps"), [(1, 0.3), (10, 2.0)])
def test_pgd_is_foolboxs_l2pgd_in_float64(arch: str, steps: int, eps: float) -> None:
    net, x, y = case(arch, torch.float64)
    alpha = eps / 4
    theirs = by_foolbox("L2PGD", net, x, y, eps, steps, alpha)
    mine = ours(PGD(steps=steps, ball=L2(eps), alpha=alpha, random_start=False), net, x, y)
    assert mine.dtype == theirs.dtype == torch.float64
    assert (mine - theirs).abs().max() <= 1e-9


def test_the_comparison_can_fail() -> None:
    net, x, y = case("small_cnn")
    theirs = by_foolbox("LinfPGD", net, x, y, EPS, 10, EPS / 4)
    other = ours(PGD(steps=9, ball=Linf(EPS), alpha=EPS / 4, random_start=False), net, x, y)
    assert (other - theirs).abs().max() > 1e-3
