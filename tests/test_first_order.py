"""First-order analysis: exact on linear networks, loud on networks built to mask, quiet on sound ones."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.attacks.threat_models import L1, L2, Linf, dual_norm
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, head, load
from vizrobust.experiments.input_dimension import fit_growth, gradient_norms
from vizrobust.models import load_checkpoint
from vizrobust.rng import Streams
from vizrobust.robustness.first_order import FirstOrder, first_order

EPS = 0.05
SMALL = (2, 4, 3)


class TwoClass(nn.Module):
    """Class 0 wins by `margin(x)`."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        own = self.margin(x)
        return torch.stack((own, torch.zeros_like(own)), 1)


WEIGHT = torch.randn(SMALL, generator=torch.Generator().manual_seed(1))


def linear(x: Tensor) -> Tensor:
    return 3 + ((x - 0.5) * WEIGHT.to(x)).flatten(1).sum(1)


def confident(x: Tensor) -> Tensor:
    """Log p is flat at margin 12, and a margin of 1.2 at the worst point in the ball is not."""
    return 12 + 10 * ((x - 0.5) * WEIGHT.to(x)).flatten(1).sum(1)


def clamped(x: Tensor) -> Tensor:
    """Linear, but with the clamp in the forward pass that has no gradient at its bounds."""
    return linear(x.clamp(0, 1))


def bent(x: Tensor, turn: float = 0.6) -> Tensor:
    """Falls for `turn` of the way to FGSM's point of an image of mean 0.5, and rises again behind it."""
    return 20 * (x.flatten(1).mean(1) - (0.5 - turn * EPS)).abs() + 0.1


def inner(n: int = 9) -> ArraySplit:
    """Images of mean 0.5 that a step of EPS does not bring to the edge of [0, 1]."""
    x = 0.3 + 0.4 * torch.rand(n, *SMALL, generator=torch.Generator().manual_seed(0))
    return ArraySplit(x + (0.5 - x.flatten(1).mean(1)).reshape(-1, 1, 1, 1), torch.zeros(n, dtype=torch.int64))


def binary(n: int = 9) -> ArraySplit:
    """Black and white images, as MNIST's nearly are."""
    x = torch.rand(n, *SMALL, generator=torch.Generator().manual_seed(0)).round()
    return ArraySplit(x, torch.zeros(n, dtype=torch.int64))


def analysed(margin: Callable[[Tensor], Tensor], images: ArraySplit, compute: Compute, **options) -> FirstOrder:
    options = {"ball": Linf(eps=EPS), "steps": 10, **options}
    return first_order(TwoClass(margin), images, compute=compute, **options)


@pytest.mark.parametrize(("ball", "norm"), [(Linf(eps=EPS), 1), (L2(eps=EPS), 2)])
def test_on_a_linear_network_all_drops_are_the_predicted_one(ball, norm: int, compute: Compute) -> None:
    found = analysed(linear, inner(), compute, ball=ball)
    expected = EPS * np.linalg.norm(WEIGHT.flatten().double().numpy(), norm)
    for drops in (found.first_order_drop, found.linear, found.fgsm):
        assert drops.numpy() == pytest.approx(np.full(9, expected), rel=1e-4)
    assert found.pgd.numpy() == pytest.approx(np.full(9, expected), rel=5e-2)  # in L2 its random start fades slowly
    assert not found.gradient_underestimates.any()
    assert not found.fgsm_falls_short.any()


def test_with_cross_entropy_the_drop_is_that_of_log_p(compute: Compute) -> None:
    found = analysed(linear, inner(), compute, loss="ce")
    x, w = inner().pixels.double().flatten(1).numpy(), WEIGHT.double().flatten().numpy()
    margins = 3 + (x - 0.5) @ w
    log_p = -np.log1p(np.exp(-margins))
    after = -np.log1p(np.exp(-(margins - EPS * np.abs(w).sum())))
    assert found.fgsm.numpy() == pytest.approx(log_p - after, rel=1e-4)
    assert found.first_order_drop.numpy() == pytest.approx(EPS * (1 - np.exp(log_p)) * np.abs(w).sum(), rel=1e-4)


def test_where_pixels_end_fgsm_is_measured_by_what_it_could_reach(compute: Compute) -> None:
    images = binary()
    found = analysed(linear, images, compute)
    x, w = images.pixels.double().numpy(), WEIGHT.double().numpy()
    reached = np.clip(x - EPS * np.sign(w), 0, 1) - x
    assert found.linear.numpy() == pytest.approx(-(reached * w).sum((1, 2, 3)), rel=1e-4)
    assert found.fgsm.numpy() == pytest.approx(found.linear.numpy(), rel=1e-4)
    assert bool((found.linear < 0.9 * found.first_order_drop).all())
    assert not found.fgsm_falls_short.any()


def test_a_clamp_in_the_forward_pass_hides_the_drop(compute: Compute) -> None:
    found = analysed(clamped, binary(), compute)
    assert bool((found.first_order_drop == 0).all())
    assert bool((found.pgd > 0.05).all())
    assert found.gradient_underestimates.all()
    about = found.summary()
    assert (about["hidden"], about["no_gradient"], about["pgd_over_predicted"]) == (1, 1, None)
    # On the same images the network without the clamp is not accused.
    assert not analysed(linear, binary(), compute).gradient_underestimates.any()


def test_a_network_that_only_is_sure_of_itself_is_accused_by_cross_entropy_alone(compute: Compute) -> None:
    assert analysed(confident, inner(), compute, loss="ce").gradient_underestimates.double().mean() > 0.8
    assert not analysed(confident, inner(), compute, loss="margin").gradient_underestimates.any()


def test_a_network_bent_against_one_step_is_short_and_hides_nothing(compute: Compute) -> None:
    found = analysed(bent, inner(), compute)
    assert found.linear.numpy() == pytest.approx(np.full(9, 20 * EPS), rel=1e-3)
    assert found.fgsm.numpy() == pytest.approx(np.full(9, 0.2 * 20 * EPS), rel=1e-2)
    assert bool((found.pgd > 0.5 * 20 * EPS).all())
    assert found.fgsm_falls_short.all()
    assert not found.gradient_underestimates.any()
    # Where many steps get no further than half the promise either, one step has not been singled out.
    early = analysed(lambda x: bent(x, 0.4), inner(), compute)
    assert bool((early.fgsm < 0).all())
    assert not early.fgsm_falls_short.any()


def test_without_any_slope_nothing_is_hidden_and_nothing_promised(compute: Compute) -> None:
    found = analysed(lambda x: 1 + 0 * x.flatten(1).sum(1), inner(), compute)
    about = found.summary()
    assert (about["hidden"], about["short"], about["no_gradient"]) == (0, 0, 1)
    assert about["rank_pgd"] is None
    assert about["fgsm_over_linear"] is None


def test_only_images_that_are_right_count_and_keep_their_places(compute: Compute) -> None:
    images = ArraySplit(inner().pixels, torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0]))
    found = analysed(linear, images, compute, batch_size=4)
    assert (found.image.tolist(), found.n_all, len(found)) == ([0, 2, 3, 5, 6, 8], 9, 6)
    assert [row["image"] for row in found.rows()] == found.image.tolist()
    assert json.loads(json.dumps(found.summary()))["n"] == 6
    assert json.dumps(list(found.rows()))


def test_an_images_numbers_do_not_depend_on_the_other_images(compute: Compute) -> None:
    net, x = make_net(), torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        split = ArraySplit(x, net(x).argmax(1))
    whole = first_order(net, split, Linf(eps=8 / 255), compute, steps=3, batch_size=4)
    part = first_order(net, head(split, 3), Linf(eps=8 / 255), compute, steps=3, batch_size=4)
    for name in ("first_order_drop", "linear", "fgsm", "pgd"):
        assert torch.equal(getattr(whole, name)[:3], getattr(part, name))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    about = whole.summary()
    assert about["hidden"] == about["short"] == 0
    assert about["rank_fgsm"] > 0.5


def test_errors_say_what_is_wrong(compute: Compute) -> None:
    wrong = ArraySplit(inner().pixels, torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="none of the 9 images correctly"):
        analysed(linear, wrong, compute)
    with pytest.raises(ValueError, match="no loss 'margn'; did you mean margin"):
        analysed(linear, inner(), compute, loss="margn")


@pytest.mark.parametrize("ball", [Linf(eps=0.3), L2(eps=0.3), L1(eps=0.3)])
def test_the_dual_norm_is_the_steepest_rise_of_a_linear_function(ball) -> None:
    gradient = torch.randn(5, *SMALL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = dual_norm(ball, gradient)
    # (of 24 values, L1's sparse step moves the largest alone)
    assert (gradient * ball.steepest_direction(gradient)).flatten(1).sum(1).numpy() == pytest.approx(bound.numpy())
    for draw in range(20):
        delta = ball.sample(gradient, Streams(draw, range(5)))
        assert bool(((gradient * delta).flatten(1).sum(1) <= 0.3 * bound + 1e-9).all())


def test_the_built_in_sweep_bends_where_it_was_trained_with_few_steps(compute: Compute) -> None:
    data = load("mnist5k")
    short = {}
    for name in ("mnist-k0", "mnist-k1", "mnist-k8"):
        about = first_order(load_checkpoint(name).net(), head(data.test, 40), Linf(eps=0.3), compute, steps=10).summary()
        assert about["hidden"] == 0, name
        short[name] = about["short"]
    assert short["mnist-k1"] > 0.7
    assert max(short["mnist-k0"], short["mnist-k8"]) < 0.2


def plane(side: int) -> tuple[int, nn.Module, ArraySplit]:
    """A linear network whose weights shrink as 1/sqrt(d), as an initialisation makes them."""
    d = 2 * side * side
    signs = torch.rand(2, side, side, generator=torch.Generator().manual_seed(side)).round() * 2 - 1
    net = TwoClass(lambda x: (x * signs.to(x)).flatten(1).sum(1) / d**0.5)
    return d, net, ArraySplit(torch.rand(6, 2, side, side), torch.zeros(6, dtype=torch.int64))


def test_weights_that_shrink_as_one_over_sqrt_d_grow_as_sqrt_d(compute: Compute) -> None:
    planes = [plane(side) for side in (4, 7, 15)]
    norms = [float(gradient_norms(net, images, compute, batch_size=4).l1.mean()) for _, net, images in planes]
    growth = fit_growth([d for d, _, _ in planes], norms)
    assert growth.d == (32, 98, 450)
    assert growth.mean_l1 == pytest.approx([d**0.5 for d in growth.d], rel=1e-4)
    assert (growth.slope, growth.ci_low, growth.ci_high, growth.factor) == pytest.approx((0.5, 0.5, 0.5, 1), rel=1e-3)
    assert "slope 0.50 [0.50, 0.50] over d = 32, 98, 450" in str(growth)


def test_gradient_norms_are_those_of_each_image(compute: Compute) -> None:
    net, images = make_net(), ArraySplit(torch.rand(7, *SHAPE), torch.arange(7) % CLASSES)
    found = gradient_norms(net, images, compute, loss="ce", batch_size=4)
    assert len(found.l1) == len(found.l2) == len(found.correct) == 7
    for i in range(7):
        x = images.pixels[i : i + 1].clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(x), images.labels[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, x)
        assert float(found.l1[i]) == pytest.approx(float(gradient.abs().sum()), rel=1e-4)
        assert float(found.l2[i]) == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_a_fit_has_an_interval_from_three_points_on() -> None:
    two = fit_growth([10, 1000], [1.0, 10.0])
    assert (two.slope, two.ci_low, two.ci_high) == (pytest.approx(0.5), None, None)
    noisy = fit_growth([10, 100, 1000, 10000], [1.0, 4.0, 9.0, 33.0])
    assert noisy.ci_low is not None
    assert noisy.ci_high is not None
    assert noisy.ci_low < noisy.slope < noisy.ci_high
    slope, intercept = np.polyfit(np.log([10, 100, 1000, 10000]), np.log([1, 4, 9, 33]), 1)
    assert (noisy.slope, noisy.factor) == pytest.approx((slope, np.exp(intercept)))
    with pytest.raises(ValueError, match="two or more different d, got \\[784\\]"):
        fit_growth([784, 784], [1.0, 2.0])
    with pytest.raises(ValueError, match="without any gradient"):
        fit_growth([49, 784], [0.0, 2.0])


def test_a_point_without_finite_outputs_shows_no_drop_and_is_counted(compute: Compute) -> None:
    net = nn.Sequential(Undefined(), nn.Flatten())
    images = ArraySplit(torch.tensor([1.0, 0.0, 0.9, 0.1]).reshape(2, 1, 1, 2), torch.tensor([0, 0]))
    found = first_order(net, images, Linf(eps=0.2), compute, steps=3)
    summary = found.summary()
    assert (summary["n"], summary["n_all"], summary["undefined"]) == (1, 2, 1), "the second image has no answer at all"
    assert found.first_order_drop.isfinite().all()
    assert (found.fgsm.tolist(), found.pgd.tolist()) == ([0.0], [0.0])


class Undefined(nn.Module):
    """No answer where the first pixel is neither black nor white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x.flatten(1)[:, 0].reshape(-1, 1, 1, 1)
        return x.masked_fill((first > 0) & (first < 1), torch.nan)
