"""Contract: every attack refuses what are no images, takes eps and norm for its ball, and bears non-finite numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import make_net
from tests.contracts.test_attacks import AROUND, BALLS, ONLY, SPARSE, make
from vizrobust.attacks import ATTACKS, NAMES, PGD, UNFORESEEN, Attack, Linf, input_gradient, parse_attack
from vizrobust.spec import vary

SHAPE, CLASSES, N = (1, 8, 9), 4, 6


def unforeseen(name: str) -> Attack:
    attack: Attack = UNFORESEEN[name](eps=0.2, steps=4)
    return attack


EVERY: dict[str, Attack] = {
    **{name: make(name, {**BALLS, **SPARSE}[ONLY.get(name, "Linf")]) for name in ATTACKS if name != "Transfer"},
    "PGD-L2": make("PGD", BALLS["L2"]),
    "APGD-L2": make("APGD", BALLS["L2"]),
    "FAB-L2": make("FAB", BALLS["L2"]),
    "FAB-untargeted": vary(make("FAB", BALLS["Linf"]), targeted=False),
    **{name: unforeseen(name) for name in UNFORESEEN},
}
# In a ball, what they meet outside of it decides nothing.
EVERY |= {name: vary(attack, eps=None) for name, attack in EVERY.items() if attack.minimum_norm}
every = pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)


def images(dark: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(N, *SHAPE, generator=generator)
    if dark:
        x[:, :, 2:6] = 0.0
    return x, torch.randint(CLASSES, (N,), generator=generator)


class Rooted(nn.Module):
    """A network whose gradient is infinite at black pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net(shape=SHAPE, classes=CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0.1 * x.sqrt().flatten(1)[:, :CLASSES] + x.norm(dim=(2, 3))


class Hole(nn.Module):
    """A network whose outputs are `value` for every image but those that it is given untouched; None of them is wrong."""

    def __init__(self, x: Tensor, y: Tensor, value: float, every: bool) -> None:
        super().__init__()
        self.net, self.value, self.every = make_net(shape=SHAPE, classes=CLASSES), value, every
        self.x, self.y = x, y

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        # Nearest clean image, whose label is the answer where the image is still itself.
        near = (x[:, None] - self.x[None]).abs().flatten(2).amax(2)
        far = near.amin(1) > (0.0 if self.every else 0.02)
        answer = 20 * nn.functional.one_hot(self.y[near.argmin(1)], CLASSES).to(logits) + 0.01 * logits
        answer[far] = self.value
        return answer


@every
def test_an_infinite_gradient_moves_the_other_pixels(attack: Attack) -> None:
    net, (x, _) = Rooted(), images(dark=True)
    found = attack(net, x, net(x).argmax(1))
    for image in (found.x, found.best):
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1  # noqa: PT018
    assert not found.undefined.any()
    assert not torch.equal(found.x, x)


@every
@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_a_point_with_undefined_outputs_breaks_nothing_and_is_not_right(attack: Attack, value: float) -> None:
    x, y = images()
    found = attack(Hole(x, y, value, every=True), x, y)
    for image in (found.x, found.best):
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1  # noqa: PT018
    # Wherever the attack went from the image itself, nothing is known.
    moved = (found.x != x).flatten(1).any(1)
    assert moved.any()
    assert found.undefined[moved].all()
    assert not found.robust[moved].any()
    assert torch.equal(found.best[moved].isfinite().flatten(1).all(1), torch.ones(int(moved.sum()), dtype=torch.bool))
    assert not found.loss.isnan().any()


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "PGD-L2", "APGD", "FAB", "CW", "DeepFool", "Square", "Noise", "Elastic"])
def test_a_misclassified_image_has_finite_outputs(name: str) -> None:
    x, y = images()
    net = Hole(x, y, math.nan, every=False)
    found = EVERY[name](net, x, y)
    broken = ~found.robust & ~found.undefined
    logits = net(found.best)
    assert logits[broken].isfinite().all()
    assert (logits[broken].argmax(1) != y[broken]).all()


def test_gradient_entries_that_are_not_finite_count_as_zero() -> None:
    x = torch.tensor([[0.0, 0.25], [1.0, 4.0]], requires_grad=True)
    assert input_gradient(x.sqrt().sum(1), x).tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert input_gradient((x * math.nan).sum(1), x).tolist() == [[0.0, 0.0], [0.0, 0.0]]


BAD = {
    "whole numbers": (lambda x: (255 * x).to(torch.uint8), "images are torch.uint8; expected floating point in [0, 1]"),
    "0 to 255": (lambda x: 255 * x, "expected values in [0, 1]: divide pixels of 0 to 255 by 255"),
    "normalized": (lambda x: (x - 0.5) / 0.25, "images range from -2 to 2"),
    "NaN": (lambda x: x.masked_fill(x > 0.9, torch.nan), "images hold NaN or infinite values"),
    "infinite": (lambda x: x.masked_fill(x > 0.9, torch.inf), "images hold NaN or infinite values"),
    "no batch": (lambda x: x[0], "images have shape (1, 8, 9); expected (N, C, H, W)"),
}


@pytest.mark.parametrize("name", ["PGD", "Noise", "FAB", "EOT", "AutoAttack", "Elastic"])
@pytest.mark.parametrize("bad", BAD)
def test_what_are_no_images_is_refused(name: str, bad: str) -> None:
    x, y = images()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    change, said = BAD[bad]
    with pytest.raises(ValueError, match=r"\S") as error:
        EVERY[name](make_net(shape=SHAPE, classes=CLASSES), change(x), y)
    assert said in str(error.value)


@pytest.mark.parametrize("y", [torch.zeros(N), torch.zeros(N - 1, dtype=torch.int64), torch.zeros(N, 2, dtype=torch.int64)])
def test_what_are_no_labels_is_refused(y: Tensor) -> None:
    with pytest.raises(ValueError, match=f"labels must be {N} whole numbers, one per image"):
        PGD(eps=0.1)(make_net(shape=SHAPE, classes=CLASSES), images()[0], y)


@pytest.mark.parametrize("name", [name for name in NAMES if name in ATTACKS and name not in AROUND])
def test_eps_and_norm_stand_for_the_ball(name: str) -> None:
    norm = ONLY.get(name, "Linf")
    made = ATTACKS[name](eps=0.25, norm=norm)
    assert made == ATTACKS[name](ball=type({**BALLS, **SPARSE}[norm])(0.25))
    assert parse_attack(repr(made)) == made
    assert parse_attack(f"{name}(eps=1/4, norm='{norm.lower()}')") == made
    usual = ATTACKS[name]().ball
    assert ATTACKS[name](eps=0.25).ball == type(usual)(0.25)
    with pytest.raises(ValueError, match=f"{name}: give eps and norm, or a ball, not both"):
        ATTACKS[name](eps=0.25, ball=Linf(0.1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pgd(norm='L3')", "no norm 'L3'; did you mean"),
        ("pgd(norm=2)", "PGD: norm must be one of Linf, L2, L1, L0, got 2"),
        ("pgd(eps=8)", "images are in [0, 1], so write 8/255"),
        ("pgd(eps='a')", "eps must be a number"),
        ("standard(eps=0.1, ball=Linf())", "standard: give eps and norm, or a ball, not both"),
        ("transfer(eps=0.1)", "no field of Transfer 'eps'"),
    ],
)
def test_a_wrong_eps_or_norm_gets_one_clear_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse_attack(text)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["FGSM", "PGD", "APGD", "FAB", "DeepFool", "CW", "EOT", "AutoAttack", "Elastic"])
def test_images_with_gradients_that_are_not_finite_are_marked(name: str) -> None:
    net, (x, _) = Rooted(), images(dark=True)
    x[3:] = x[3:].clamp_min(0.3)
    attack = EVERY[name]
    if not attack.minimum_norm and name != "Elastic":
        attack = vary(attack, eps=0.01)  # no pixel of the last three images becomes black
    found = attack(net, x, net(x).argmax(1))
    assert found.nonfinite_gradient[:3].all()
    if not attack.minimum_norm and name not in ("Elastic", "AutoAttack"):
        assert not found.nonfinite_gradient[3:].any()
