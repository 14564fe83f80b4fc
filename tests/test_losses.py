"""The losses an attack climbs, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from vizrobust.attacks import LOSSES, fallback
from vizrobust.attacks.losses import TARGETED_LOSSES, ce, dlr, dlr_targeted, kl, log_probabilities, margin, pm, standard_ce

LOGITS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
Y = torch.tensor([0, 3, 2, 1, 1, 0])


def test_ce_is_the_negative_log_probability() -> None:
    logits = LOGITS.numpy()
    expected = logsumexp(logits, axis=1) - logits[np.arange(6), Y.numpy()]
    np.testing.assert_allclose(ce(LOGITS, Y), expected, rtol=1e-13)


def test_margin_is_the_lead_of_the_best_other_class() -> None:
    expected = [
        max(value for k, value in enumerate(row) if k != y) - row[y] for row, y in zip(LOGITS.tolist(), Y.tolist(), strict=True)
    ]
    np.testing.assert_allclose(margin(LOGITS, Y), expected, rtol=1e-15)


def test_pm_is_one_and_the_lead_of_the_most_probable_other_class() -> None:
    probabilities = LOGITS.softmax(1)
    assert torch.allclose(pm(LOGITS, Y), 1 + margin(probabilities, Y), rtol=1e-13)
    assert torch.equal(pm(LOGITS, Y) > 1, LOGITS.argmax(1) != Y)
    logits = torch.tensor([[gap, 0.0, -1.0] for gap in (5.0, 17.0, 40.0, 59.9, 62.0, 500.0)])
    values = pm(logits.requires_grad_(), torch.zeros(6, dtype=torch.int64))
    assert (values.diff() < 0).all()
    assert (torch.autograd.grad(values.sum(), logits)[0][:, 0] < 0).all()


def test_margin_above_zero_means_wrong() -> None:
    assert torch.equal(margin(LOGITS, Y) > 0, LOGITS.argmax(1) != Y)


def log_odds(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log of p(wrong) / p(right), in numpy."""
    others = np.array([np.delete(row, label) for row, label in zip(logits, y, strict=True)], dtype=np.float64)
    return logsumexp(others, axis=1) - logits[np.arange(len(y)), y]


GAPS = torch.cat((torch.linspace(-5, 30, 351), torch.linspace(30, 500, 95)))


def rows(gaps: torch.Tensor, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose label 1 leads by these gaps; the others differ a little."""
    logits = torch.linspace(-1, 1, classes, dtype=gaps.dtype).repeat(len(gaps), 1)
    logits[:, 1] = 1 + gaps
    return logits, torch.ones(len(gaps), dtype=torch.int64)


@pytest.mark.parametrize(("dtype", "switch"), [(torch.float32, -15.942), (torch.float64, -36.044)])
def test_ce_is_torchs_bit_for_bit_until_its_digits_end(dtype: torch.dtype, switch: float) -> None:
    logits, y = rows(GAPS.to(dtype))
    plain = F.cross_entropy(logits, y, reduction="none")
    above = torch.from_numpy(log_odds(logits.numpy(), y.numpy())) > switch + 0.01
    assert 0 < above.sum() < len(y)
    assert torch.equal(ce(logits, y)[above], plain[above])
    assert (ce(logits, y)[~above] != plain[~above]).any()
    (of_ours,) = torch.autograd.grad(ce(logits.requires_grad_(), y).sum(), logits)
    (of_torchs,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    assert torch.equal(of_ours[above], of_torchs[above])


@pytest.mark.parametrize("classes", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ce_falls_with_the_gap_without_end(dtype: torch.dtype, classes: int) -> None:
    value = ce(*rows(GAPS.to(dtype), classes))
    # Cross entropy's own values become level, or even rise by a digit, just before they end.
    assert (value.diff() <= 2 * torch.finfo(dtype).eps).all()
    sure = GAPS.gt(60 if dtype == torch.float64 else 30)
    assert (value[sure].diff() < 0).all()
    assert value[sure].max() < value[~sure].min()
    assert value.min() > -1e-4, "the mean over images is not moved"


@pytest.mark.parametrize("gap", [17, 30, 120, 5000])
def test_ce_keeps_the_direction_of_its_gradient(gap: float) -> None:
    logits, y = rows(torch.tensor([float(gap)]))
    (grad,) = torch.autograd.grad(ce(logits.requires_grad_(), y).sum(), logits)
    # Cross entropy's gradient over p(wrong): -1 for the label, for the others their share among themselves.
    others = torch.softmax(torch.tensor([-1.0, 0.0, 0.5, 1.0]), 0).tolist()
    expected = torch.tensor([others[0], -1.0, *others[1:]])
    assert torch.allclose(grad[0] / grad[0].abs().max(), expected, atol=1e-5)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, y), logits)
    assert plain[0, 1] == 0, "torch's own has lost the label"


def test_dlr_is_its_formula_in_numpy() -> None:
    assert (LOGITS.argmax(1) == Y).any()
    assert (LOGITS.argmax(1) != Y).any()
    for row, label, value in zip(LOGITS.tolist(), Y.tolist(), dlr(LOGITS, Y).tolist(), strict=True):
        first, second, third = sorted(row, reverse=True)[:3]
        rival = second if row[label] == first else first
        assert value == pytest.approx(-(row[label] - rival) / (first - third), rel=1e-9)


def test_targeted_dlr_is_its_formula_in_numpy() -> None:
    target = torch.tensor([1, 0, 3, 2, 3, 2])
    for row, label, goal, value in zip(LOGITS, Y, target, dlr_targeted(LOGITS, Y, target), strict=True):
        first, _, third, fourth = sorted(row.tolist(), reverse=True)[:4]
        assert value.item() == pytest.approx(-(row[label] - row[goal]).item() / (first - (third + fourth) / 2), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 1, 1e4])
def test_dlr_is_the_same_for_scaled_logits(factor: float) -> None:
    target = (Y + 1) % 4
    assert torch.allclose(dlr(factor * LOGITS, Y), dlr(LOGITS, Y))
    assert torch.allclose(dlr_targeted(factor * LOGITS, Y, target), dlr_targeted(LOGITS, Y, target))


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("sort", ["distinct", "alike"])
def test_few_classes_and_equal_logits_crash_nothing(classes: int, sort: str) -> None:
    logits = torch.randn(6, classes) if sort == "distinct" else torch.full((6, classes), 0.5)
    y = torch.zeros(6, dtype=torch.int64)
    target = y if classes == 1 else y + 1
    values = [loss(logits, y) for loss in LOSSES.values()] + [loss(logits, y, target) for loss in TARGETED_LOSSES.values()]
    for value in values:
        assert value.shape == (6,)
        assert not value.isnan().any()
        assert classes == 1 or value.isfinite().all()


def test_with_too_few_classes_the_fallback_still_climbs() -> None:
    logits = torch.tensor([[30.0, -30.0], [1.0, 2.0]], requires_grad=True)
    y = torch.tensor([0, 1])
    assert torch.equal(dlr(logits, y), margin(logits, y))
    assert torch.equal(dlr_targeted(logits, y, 1 - y), margin(logits, y))
    three = torch.tensor([[5.0, 3.0, -1.0]], requires_grad=True)
    # Towards the third of three: over first minus third it would be -1 whatever the image.
    (grad,) = torch.autograd.grad(dlr_targeted(three, torch.tensor([0]), torch.tensor([2])).sum(), three)
    assert grad.tolist() == [[-1.0, 0.0, 1.0]]


def test_an_attack_can_say_that_it_falls_back() -> None:
    said = {(loss, n, t): fallback(loss, n, t) for loss in LOSSES for n in (2, 3, 4, 10) for t in (False, True)}
    assert {key for key, text in said.items() if text} == {("dlr", 2, False), ("dlr", 2, True), ("dlr", 3, True)}


def test_margin_takes_two_classes_and_half_precision() -> None:
    assert margin(torch.tensor([[1.0, 3.0], [2.0, 0.5]]), torch.tensor([0, 0])).tolist() == [2.0, -1.5]
    assert margin(LOGITS.to(torch.bfloat16), Y).dtype == torch.float32  # bf16 cannot resolve small differences


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_one_number_per_image_and_larger_is_more_wrong(loss) -> None:
    value = loss(LOGITS, Y)
    assert value.shape == (6,)
    for k in range(6):
        assert torch.allclose(loss(LOGITS[k : k + 1], Y[k : k + 1])[0], value[k], rtol=1e-14), "images do not meet"
    own = torch.zeros_like(LOGITS).scatter_(1, Y[:, None], 1.0)
    assert (loss(LOGITS + own, Y) < value).all()
    assert (loss(LOGITS - own, Y) > value).all()


SHARP = torch.tensor(
    [[1e4, -1e4, 0.0, 1.0, -3.0], [-1e4, 1e4, 0.0, 1.0, -3.0], [1e4, 1e4, 1e4, 1e4, 1e4], [-1e4, 0.0, -1e4, -1e4, 1e4]]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*LOSSES, *TARGETED_LOSSES, "standard_ce", "kl"])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_and_its_gradient_stay_finite_for_large_logits(name: str, targeted: bool, dtype: torch.dtype) -> None:
    for label in range(5):
        logits = SHARP.to(dtype).requires_grad_()
        y, target = torch.full((4,), label), torch.full((4,), (label + 1) % 5)
        if name == "kl":
            clean = SHARP.flip(1).to(dtype).requires_grad_()
            value = kl(logits, log_probabilities(clean))
            (of_clean,) = torch.autograd.grad(value.sum(), clean, retain_graph=True)
            assert of_clean.isfinite().all(), "TRADES follows this gradient too"
            assert (value >= 0).all()
        elif name == "standard_ce":
            value = standard_ce(logits, y)
        else:
            value = TARGETED_LOSSES[name](logits, y, target) if targeted else LOSSES[name](logits, y)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isfinite().all()


def test_a_loss_of_bfloat16_logits_is_that_of_their_values() -> None:
    logits = LOGITS.to(torch.bfloat16)
    for loss in LOSSES.values():
        assert torch.equal(loss(logits, Y), loss(logits.float(), Y))


def test_kl_is_the_divergence_of_the_probabilities() -> None:
    clean = LOGITS.flip(0)
    expected = (clean.softmax(1) * (clean.softmax(1) / LOGITS.softmax(1)).log()).sum(1)
    assert torch.allclose(kl(LOGITS, log_probabilities(clean)), expected, rtol=1e-12)
