"""What every transform of the catalogue must do: nothing at strength 0, and each image by its own stream."""

from dataclasses import fields, replace

import pytest
import torch

from vizrobust.features import NAMES, TRANSFORMS
from vizrobust.features.transforms import transformed
from vizrobust.rng import Streams
from vizrobust.spec import parse

SHAPES = [(5, 3, 20, 16), (4, 1, 9, 13), (2, 4, 33, 28)]
# What a transform fills in is no measure of its strength.
NO_STRENGTH = {"value"}

pytestmark = [
    pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS),
    pytest.mark.parametrize("shape", SHAPES, ids=str),
]


def picture(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_zero_strength_is_the_identity(make, shape):
    still = replace(make(), **{field.name: 0.0 for field in fields(make) if field.name not in NO_STRENGTH})
    x = picture(shape)
    assert torch.equal(still(x, Streams(0, range(shape[0]))), x)


def test_its_strength_can_be_seen(make, shape):
    x = picture(shape)
    out = make()(x, Streams(0, range(shape[0])))
    assert out.shape != x.shape or not torch.equal(out, x)


def test_the_network_sees_the_image_s_own_shape_in_0_1(make, shape):
    out = transformed(picture(shape), (make(),), Streams(0, range(shape[0])))
    assert out.shape == shape
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6


def test_every_image_has_its_own_stream(make, shape):
    x = picture(shape)
    items = list(range(shape[0]))
    order = items[::-1]
    out = make()(x, Streams(0, items))
    assert torch.equal(make()(x[order], Streams(0, order)), out[order])
    mates = torch.cat((x[:1], torch.rand_like(x[1:])))
    assert torch.equal(make()(mates, Streams(0, [0, *range(50, 50 + len(items) - 1)]))[0], out[0])


def test_as_many_numbers_are_drawn_whatever_the_strength(make, shape):
    """Otherwise the transforms behind it would change with it."""
    still = replace(make(), **{field.name: 0.0 for field in fields(make) if field.name not in NO_STRENGTH})
    one, two = Streams(0, range(shape[0])), Streams(0, range(shape[0]))
    make()(picture(shape), one)
    still(picture(shape), two)
    assert one.drawn == two.drawn


def test_is_differentiable(make, shape):
    x = picture(shape).requires_grad_()
    out = make()(x, Streams(0, range(shape[0])))
    (grad,) = torch.autograd.grad(out[1].sum(), x)
    assert (grad[1] != 0).any()
    assert (grad[0] == 0).all()


def test_float64_stays_float64(make, shape):
    assert make()(picture(shape).double(), Streams(0, range(shape[0]))).dtype == torch.float64


def test_is_written_as_it_is_read(make, shape):
    assert parse(repr(make()), NAMES) == make()
