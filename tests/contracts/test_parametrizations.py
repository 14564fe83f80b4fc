"""What every parametrization of the catalogue must do, for one, three and four channels at odd and even sizes."""

import pytest
import torch

from vizrobust.features import NAMES, PARAMETRIZATIONS
from vizrobust.rng import Streams
from vizrobust.spec import parse

SHAPES = [(1, 8, 6), (3, 9, 13), (4, 7, 10), (3, 12, 5)]
ITEMS = ["a", "b", "c", "d", "e"]

pytestmark = [
    pytest.mark.parametrize("make", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS),
    pytest.mark.parametrize("shape", SHAPES, ids=str),
]


def start(make, shape, items=ITEMS):
    return make().init(shape, Streams(0, items, "start"))


def test_images_are_in_0_1_wherever_z_goes(make, shape):
    param, z = make(), start(make, shape)
    for moved in (z, z + 0.3, z - 5 * torch.randn_like(z), 100 * z):
        image = param(param.constrain(moved, z))
        assert image.shape == (5, *shape)
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1


def test_the_same_stream_gives_the_same_image_whoever_its_mates(make, shape):
    param, z = make(), start(make, shape)
    order = [3, 0, 4, 1, 2]
    assert torch.equal(start(make, shape), z)
    assert torch.equal(start(make, shape, [ITEMS[i] for i in order]), z[order])
    assert torch.equal(start(make, shape, ["c"]), z[2:3])
    # Away from the start, where rounding has something to do.
    z = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(param(z[order]), param(z)[order])
    others = torch.cat((z[:2], torch.rand_like(z[2:])))
    assert torch.equal(param(others)[:2], param(z)[:2])
    assert not torch.equal(param(z)[0], param(z)[1])


def test_a_gradient_reaches_every_number_and_only_the_image_s_own(make, shape):
    param = make()
    z = start(make, shape).requires_grad_()
    image = param(z)
    weights = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((image[1] * weights).sum(), z)
    assert (grad[1] != 0).all()
    assert (grad[[0, 2, 3, 4]] == 0).all()


def test_float64_stays_float64(make, shape):
    param, z = make(), start(make, shape).to(torch.float64)
    assert param(param.constrain(z, z)).dtype == torch.float64


def test_is_written_as_it_is_read(make, shape):
    assert parse(repr(make()), NAMES) == make()
