"""What every transform of the catalogue must do: nothing at strength 0, and each image by its own stream."""

from dataclasses import replace

import pytest
import torch

from vizrobust.features import NAMES, TRANSFORMS
from vizrobust.features.transforms import Affine, Crops, Noise, Rotate, transformed
from vizrobust.rng import Streams
from vizrobust.spec import parse

SHAPES = [(5, 3, 20, 16), (4, 1, 9, 13), (2, 4, 33, 28)]
# The fields that are a transform's strength, at none. A Pad by itself shows nothing: it is what others find at the edge.
NONE = {
    "Jitter": {"size": 0.0},
    "Scale": {"size": 0.0},
    "Rotate": {"degrees": 0.0},
    "Shift": {"size": 0.0},
    "Affine": {"scale": 0.0, "rotate": 0.0, "shift": 0.0},
    "Flip": {"share": 0.0},
    "Crops": {"count": 1, "low": 1.0, "high": 1.0},
    "Pad": {"mode": "reflect"},
    "Blur": {"sigma": 0.0},
    "Noise": {"deviation": 0.0},
}

pytestmark = [
    pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS),
    pytest.mark.parametrize("shape", SHAPES, ids=str),
]
STRONG = {"Flip": {"share": 1.0}, "Blur": {"sigma": 0.1}}


def still(make):
    return replace(make(), **NONE[make.__name__])


def copies(make):
    return getattr(make(), "count", 1)


def picture(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_zero_strength_is_the_identity(make, shape):
    x = picture(shape)
    assert torch.equal(still(make)(x, Streams(0, range(shape[0]))), x)
    assert torch.equal(transformed(x, (still(make),), Streams(0, range(shape[0]))), x)


def test_its_strength_can_be_seen(make, shape):
    x = picture(shape)
    out = transformed(x, (replace(make(), **STRONG.get(make.__name__, {})), Rotate(degrees=90.0)), Streams(0, range(shape[0])))
    plain = transformed(x, (still(make), Rotate(degrees=90.0)), Streams(0, range(shape[0])))
    assert out.shape != plain.shape or not torch.equal(out, plain)


def test_shape_and_range_are_kept(make, shape):
    out = transformed(picture(shape), (make(),), Streams(0, range(shape[0])))
    assert out.shape == (copies(make) * shape[0], *shape[1:])
    if make.__name__ != "Noise":
        assert out.min() >= -1e-6
        assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("behind", [(), (Affine(), Noise())], ids=["alone", "before others"])
def test_every_image_has_its_own_stream(make, shape, behind):
    """Bit for bit, whatever the other images and their order; also in the second step."""
    x, n = picture(shape), shape[0]
    order = list(range(n))[::-1]

    def second(x, items):
        streams = Streams(0, items)
        transformed(x, (make(), *behind), streams)
        return transformed(x, (make(), *behind), streams).reshape(copies(make), n, *shape[1:])

    out = second(x, range(n))
    assert torch.equal(second(x[order], order), out[:, order])
    others = torch.cat((x[:1], torch.rand_like(x[1:])))
    assert torch.equal(second(others, [0, *range(50, 49 + n)])[:, 0], out[:, 0])


def test_as_many_numbers_are_drawn_whatever_the_strength(make, shape):
    """Otherwise the transforms behind it would change with it."""
    one, two = Streams(0, range(shape[0])), Streams(0, range(shape[0]))
    make()(picture(shape), one)
    still(make)(picture(shape), two)
    if make is not Crops:  # whose crops each draw their own
        assert one.drawn == two.drawn


def test_is_differentiable(make, shape):
    x = picture(shape).requires_grad_()
    out = make()(x, Streams(0, range(shape[0])))
    (grad,) = torch.autograd.grad(out[1].sum(), x)
    assert (grad[1] != 0).any()
    assert (grad[0] == 0).all()


def test_its_gradient_is_that_of_finite_differences(make, shape):
    x = picture(shape).double()
    inner = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.rand(copies(make) * shape[0], *shape[1:], generator=torch.Generator().manual_seed(2)).double()

    def value(x):
        return (make()(x, Streams(0, range(shape[0]))) * weights).sum()

    (grad,) = torch.autograd.grad(value(x.requires_grad_()), x)
    with torch.no_grad():
        difference = (value(x + 1e-4 * inner) - value(x - 1e-4 * inner)) / 2e-4
    assert float(difference) == pytest.approx(float((grad * inner).sum()), rel=1e-6)


def test_channels_last_is_the_same(make, shape):
    x = picture(shape)
    out = make()(x, Streams(0, range(shape[0])))
    other = make()(x.contiguous(memory_format=torch.channels_last), Streams(0, range(shape[0])))
    assert torch.allclose(out, other, atol=1e-6)


def test_float64_stays_float64(make, shape):
    assert make()(picture(shape).double(), Streams(0, range(shape[0]))).dtype == torch.float64


def test_is_written_as_it_is_read(make, shape):
    assert parse(repr(make()), NAMES) == make()
