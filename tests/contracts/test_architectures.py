"""What every architecture of the catalogue must do: any image shape, images apart, layers that can be shown."""

import pytest
import torch

from tests.conftest import CLASSES, make_net
from vizrobust.models import ARCHS, architecture, layers
from vizrobust.models.checkpoints import load_strictly

SHAPES = [(3, 20, 16), (1, 28, 28), (4, 9, 13), (3, 50, 64)]

pytestmark = [pytest.mark.parametrize("arch", ARCHS), pytest.mark.parametrize("shape", SHAPES, ids=str)]


def pictures(shape, n=5):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gives_one_number_per_class(arch, shape, dtype):
    with torch.no_grad():
        out = make_net(arch, shape).to(dtype)(pictures(shape).to(dtype))
    assert out.shape == (5, CLASSES)
    assert out.dtype == dtype
    assert out.std() > 0


def test_in_evaluation_images_do_not_meet(arch, shape):
    x = pictures(shape).requires_grad_()
    (grad,) = torch.autograd.grad(make_net(arch, shape)(x)[2].sum(), x)
    assert (grad[2] != 0).any()
    assert (grad[[0, 1, 3, 4]] == 0).all()


def test_every_pixel_that_strides_reach_has_a_gradient(arch, shape):
    x = pictures(shape, 1).requires_grad_()
    (grad,) = torch.autograd.grad(make_net(arch, shape)(x).square().sum(), x)
    height, width = shape[1] // 4 * 4, shape[2] // 4 * 4
    assert (grad[0].abs().amax(0)[:height, :width] > 0).float().mean() > 0.95


def test_its_weights_fit_another_copy_and_every_one_of_them_learns(arch, shape):
    one, two = (architecture(arch, shape, CLASSES)() for _ in range(2))
    load_strictly(two, one.state_dict(), arch)
    x = pictures(shape)
    one.eval()
    two.eval()
    with torch.no_grad():
        assert torch.equal(one(x), two(x))
    one.train()
    torch.nn.functional.cross_entropy(one(x), torch.arange(5)).backward()
    assert all(weight.grad is not None and (weight.grad != 0).any() for weight in one.parameters())


def test_its_layers_can_be_shown(arch, shape):
    listed = layers(make_net(arch, shape), shape)
    assert listed[-1].name == "logits"
    assert listed[-1].units == CLASSES
    assert all(layer.visualizable and layer.units > 0 for layer in listed)


def test_nothing_is_drawn_when_it_runs(arch, shape):
    net, x = make_net(arch, shape), pictures(shape)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = net(x)
        assert torch.equal(net(x), first)
    assert torch.equal(torch.get_rng_state(), state)
