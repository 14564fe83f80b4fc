"""The losses an attack climbs, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from vizrobust.attacks import LOSSES
from vizrobust.attacks.losses import ce, margin

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


def test_margin_above_zero_means_wrong() -> None:
    assert torch.equal(margin(LOGITS, Y) > 0, LOGITS.argmax(1) != Y)


def test_margin_keeps_its_gradient_where_ce_has_none() -> None:
    sure = torch.tensor([[500.0, 0.0, -1.0]], requires_grad=True)
    y = torch.tensor([0])
    (of_ce,) = torch.autograd.grad(ce(sure, y).sum(), sure)
    (of_margin,) = torch.autograd.grad(margin(sure, y).sum(), sure)
    assert of_ce.abs().max() == 0
    assert of_margin.tolist() == [[-1.0, 1.0, 0.0]]


def test_margin_takes_two_classes_and_half_precision() -> None:
    assert margin(torch.tensor([[1.0, 3.0], [2.0, 0.5]]), torch.tensor([0, 0])).tolist() == [2.0, -1.5]
    assert margin(LOGITS.to(torch.bfloat16), Y).dtype == torch.bfloat16


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_one_number_per_image_and_larger_is_more_wrong(loss) -> None:
    value = loss(LOGITS, Y)
    assert value.shape == (6,)
    for k in range(6):
        assert torch.allclose(loss(LOGITS[k : k + 1], Y[k : k + 1])[0], value[k], rtol=1e-14), "images do not meet"
    own = torch.zeros_like(LOGITS).scatter_(1, Y[:, None], 1.0)
    assert (loss(LOGITS + own, Y) < value).all()
    assert (loss(LOGITS - own, Y) > value).all()
