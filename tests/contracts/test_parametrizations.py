"""What every parametrization of the catalogue must do, for one, three and four channels at odd and even sizes.

One with `group_size` couples the rows of each group of so many images; for it, a group stands for an image. One with `composite`
makes pictures with an opacity behind their colours; what a network sees of them must then be as good as an image.
"""

import pytest
import torch

from vizrobust.features import NAMES, PARAMETRIZATIONS, Parametrization, for_shape
from vizrobust.features.parametrizations import alpha_penalized, composited
from vizrobust.rng import Streams
from vizrobust.spec import parse

SHAPES = [(1, 8, 6), (3, 9, 13), (4, 7, 10), (3, 12, 5)]
GROUPS = 5

pytestmark = [
    pytest.mark.parametrize("make", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS),
    pytest.mark.parametrize("shape", SHAPES, ids=str),
]


def group_size_of(make):
    return getattr(make(), "group_size", 1)


def begun(make, shape, groups=range(GROUPS)):
    """The parametrization for this shape, and where the z of these groups start."""
    param, group_size = for_shape(make(), shape), group_size_of(make)
    assert isinstance(param, Parametrization)
    return param, param.init(shape, Streams(0, [g * group_size + k for g in groups for k in range(group_size)], "start"))


def pictured(make, shape):
    """The shape of a picture: an opacity is one plane more."""
    return (shape[0] + hasattr(make, "composite"), *shape[1:])


def rows(make, groups):
    group_size = group_size_of(make)
    return [g * group_size + k for g in groups for k in range(group_size)]


def test_images_are_in_0_1_wherever_z_goes(make, shape):
    param, z = begun(make, shape)
    for moved in (z, z + 0.3, z - 5 * torch.randn_like(z), 100 * z):
        image = param(param.constrain(moved, z))
        assert image.shape == (len(z), *pictured(make, shape))
        for shown in (image, composited(param, image), composited(param, image, Streams(0, range(len(z)), "grounds"))):
            assert shown.dtype == torch.float32
            assert shown.min() >= 0
            assert shown.max() <= 1
            assert shown is image or shown.shape == (len(z), *shape)


def test_the_same_stream_gives_the_same_image_whatever_the_other_images(make, shape):
    param, z = begun(make, shape)
    order = [3, 0, 4, 1, 2]
    assert torch.equal(begun(make, shape)[1], z)
    assert torch.equal(begun(make, shape, order)[1], z[rows(make, order)])
    assert torch.equal(begun(make, shape, [2])[1], z[rows(make, [2])])
    # Away from the start, where rounding has something to do.
    z = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(param(z[rows(make, order)]), param(z)[rows(make, order)])
    kept = rows(make, [0, 1])
    others = torch.cat((z[kept], torch.rand_like(z[len(kept) :])))
    assert torch.equal(param(others)[kept], param(z)[kept])
    assert not torch.equal(param(z)[0], param(z)[1])


def test_the_gradient_too_is_the_same_whatever_the_other_images(make, shape):
    param, z = begun(make, shape)
    z = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(len(z), *pictured(make, shape), generator=torch.Generator().manual_seed(1))
    order = rows(make, [3, 0, 4, 1, 2])

    def gradient(z, weights):
        z = z.clone().requires_grad_()
        return torch.autograd.grad((param(z) * weights).sum(), z)[0]

    assert torch.equal(gradient(z[order], weights[order]), gradient(z, weights)[order])


def test_what_a_network_sees_and_what_that_is_worth_is_the_same_whatever_the_other_images(make, shape):
    param, z = begun(make, shape)
    z = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(len(z), *shape, generator=torch.Generator().manual_seed(1))
    order = rows(make, [3, 0, 4, 1, 2])

    def optimized(keep):
        """The network's view, a score of it, what that is worth and its gradient, for these rows together."""
        x = z[keep].requires_grad_()
        image = param(x)
        view = composited(param, image, Streams(0, keep, "grounds"))
        scores = (view * weights[keep]).flatten(1).sum(1)
        value = alpha_penalized(param, scores, image)
        return view.detach(), scores.detach(), value.detach(), torch.autograd.grad(value.sum(), x)[0]

    for one, other in zip(optimized(list(range(len(z)))), optimized(order), strict=True):
        assert torch.equal(one[order], other)


def test_alone_is_as_in_a_batch_in_float64(make, shape):
    param, z = begun(make, shape)
    z = z.to(torch.float64)
    kept = rows(make, [3])
    assert torch.allclose(param(z[kept]), param(z)[kept], atol=1e-12, rtol=0)


def test_a_gradient_reaches_every_number_and_only_the_image_s_own(make, shape):
    param, z = begun(make, shape)
    z.requires_grad_()
    weights = torch.randn(pictured(make, shape), generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((param(z)[1] * weights).sum(), z)
    own = rows(make, [1 // group_size_of(make)])
    assert (grad[1] != 0).all()
    for row in range(len(z)):
        if row not in own:
            assert (grad[row] == 0).all()
        elif row != 1:
            # Some numbers of a group are shared, the others each image's own.
            assert 0 < (grad[row] != 0).float().mean() < 1


def test_float64_stays_float64(make, shape):
    param, z = begun(make, shape)
    z = z.to(torch.float64)
    assert param(param.constrain(z, z)).dtype == torch.float64


def test_is_written_as_it_is_read(make, shape):
    assert parse(repr(make()), NAMES) == make()
    assert parse(repr(for_shape(make(), shape)), NAMES) == for_shape(make(), shape)
