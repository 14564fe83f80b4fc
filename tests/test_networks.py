"""The built-in architectures: their sizes, their names, and downsampling that leaves no two-pixel grid."""

import re

import pytest
import torch
from torch import nn

from tests.conftest import make_net
from vizrobust.models import ARCHS, architecture, layers
from vizrobust.models.architectures import BlurPool, BlurredConv, ResNetSmall


def parameters(arch, shape, classes=10):
    return sum(weight.numel() for weight in architecture(arch, shape, classes)().parameters())


def test_small_cnn_is_the_documented_network():
    assert parameters("small_cnn", (1, 28, 28)) == 166_406
    # Counted by hand: two 4 x 4 convolutions, 7 x 7 maps, two linear layers.
    by_hand = (16 * 16 + 16) + (16 * 32 * 16 + 32) + (32 * 7 * 7 * 100 + 100) + (100 * 10 + 10)
    assert by_hand == 166_406


def test_resnet_small_has_the_sizes_its_docstring_states():
    small, large = parameters("resnet_small", (3, 32, 32)), parameters("resnet_small", (3, 64, 64))
    stated = [int(text.replace(",", "")) for text in re.findall(r"\d{3},\d{3}", ResNetSmall.__doc__)]
    assert stated == [small, large]
    assert 0.28e6 < small < 0.32e6
    assert 0.48e6 < large < 0.52e6


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 16), (2, 9, 13), (4, 51, 64)])
def test_any_channels_and_oblong_or_odd_images(arch, shape):
    net = make_net(arch, shape, classes=6)
    with torch.no_grad():
        assert net(torch.rand(5, *shape)).shape == (5, 6)


def test_layer_names_can_be_read():
    names = [layer.name for layer in layers(make_net("small_cnn"), (3, 20, 16))]
    assert names == ["conv1", "relu1", "conv2", "relu2", "flatten", "linear1", "relu3", "linear2", "logits"]
    three = [layer.name for layer in layers(make_net("resnet_small"), (3, 20, 16))]
    assert [name for name in three if name.startswith("stage") and "." not in name] == ["stage1", "stage2", "stage3"]
    assert three[0] == "stem"
    four = [layer.name for layer in layers(make_net("resnet_small", (3, 64, 48)), (3, 64, 48))]
    assert "stage4.conv2" in four


@pytest.mark.parametrize("arch", ["resnet_small", "vgg_small"])
def test_only_a_blurred_convolution_is_strided(arch):
    convolutions = [m for m in architecture(arch, (3, 64, 64), 10)().modules() if isinstance(m, nn.Conv2d)]
    assert [type(m) for m in convolutions if m.stride != (1, 1)] == [BlurredConv]


def test_a_blurred_convolution_is_a_convolution_and_a_blur():
    """The plain way: convolve the zero-padded image everywhere, also outside of it, blur, take every other one."""
    net = BlurredConv(3, 5)
    x = torch.rand(2, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    everywhere = nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2)), net.weight.detach())
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = nn.functional.conv2d(everywhere, (line[:, None] * line).expand(5, 1, 3, 3), groups=5)
    assert net(x).shape == (2, 5, 5, 7)
    assert torch.allclose(net(x), blurred[:, :, ::2, ::2], atol=1e-6)
    # Away from the edge it is the convolution that blur-pooling follows.
    same = BlurPool()(nn.functional.conv2d(x, net.weight.detach(), padding=1))
    assert torch.allclose(net(x)[:, :, 1:-1, 1:-1], same[:, :, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("pattern", ["checkerboard", "rows", "columns"])
def test_blurpool_removes_what_two_pixels_repeat(pattern):
    y, x = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    sign = (-1.0) ** {"checkerboard": y + x, "rows": y, "columns": x}[pattern]
    out = BlurPool()((0.5 + 0.5 * sign).expand(3, 2, 12, 10))
    assert out.shape == (3, 2, 6, 5)
    assert (out - 0.5).abs().max() < 1e-7


def test_blurpool_keeps_what_is_smooth():
    flat = torch.full((2, 3, 9, 12), 0.3)
    assert torch.allclose(BlurPool()(flat), torch.full((2, 3, 4, 6), 0.3))
    ramp = torch.arange(16.0).expand(1, 1, 4, 16)
    # [1, 2, 1] / 4 around every even position: the ramp itself, away from the mirrored edge.
    assert torch.allclose(BlurPool()(ramp)[0, 0, 1, 1:], torch.arange(2.0, 16.0, 2.0))


@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (3, 5, 9, 12), (1, 2, 7, 5)])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_blurpool_in_bfloat16_has_the_slopes_of_fp32(shape, memory):
    """Its own backward pass there, against autograd through fp32; and that pass differentiated once more."""
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=draws).bfloat16().contiguous(memory_format=memory).requires_grad_()
    wide = x.detach().float().requires_grad_()
    low, full = BlurPool()(x), BlurPool()(wide)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, full.bfloat16())
    slope = torch.randn(low.shape, generator=draws).bfloat16().requires_grad_()
    (found,) = torch.autograd.grad(low, x, slope, create_graph=True)
    (expected,) = torch.autograd.grad(full, wide, slope.float(), create_graph=True)
    # Rounded once behind the blur, and once more where the mirrored edge adds up.
    assert torch.allclose(found.float(), expected, atol=2**-8 * expected.detach().abs().max().item(), rtol=0)
    again = [torch.autograd.grad(one.float().square().sum(), slope, retain_graph=True)[0] for one in (found, expected)]
    assert torch.allclose(*(one.float() for one in again), atol=2**-6 * again[1].abs().max().item(), rtol=0)


def test_autocast_leaves_blurpool_in_bfloat16():
    """Autocast would have a processor pad in fp32: between the padding and the input nothing is cast."""
    x = torch.rand(2, 3, 8, 10).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        blur = BlurPool()(x).grad_fn
    ((padding, _),) = blur.next_functions
    ((before, _),) = padding.next_functions
    assert blur.name() == "_BlurredBackward"
    assert before.name() == "torch::autograd::AccumulateGrad"
    assert BlurPool()(x.float()).grad_fn.name() == "ConvolutionBackward0"


def nyquist_excess(net, size=64):
    """Power of the input gradient on its highest-frequency rows and columns, over that of their neighbours."""
    x = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net.eval()
    (grad,) = torch.autograd.grad(net(x).amax(1).sum(), x)
    power = torch.fft.fft2(grad - grad.mean((2, 3), keepdim=True)).abs().pow(2).mean((0, 1))
    half = size // 2
    near = torch.cat((power[half - 3 : half], power[half + 1 : half + 4]))
    rows = power[half, 4:-4].mean() / near[:, 4:-4].mean()
    power = power.T
    near = torch.cat((power[half - 3 : half], power[half + 1 : half + 4]))
    return float(torch.maximum(rows, power[half, 4:-4].mean() / near[:, 4:-4].mean()))


class StridedStem(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body
        with torch.random.fork_rng():
            torch.manual_seed(3)
            # As small as a stride allows, where the grid is plainest.
            self.body.stem = nn.Conv2d(3, self.body.stem.out_channels, 1, stride=2, bias=False)

    def forward(self, x):
        return self.body(x)


def test_the_input_gradient_of_resnet_small_has_no_two_pixel_grid():
    shape = (3, 64, 64)
    anti_aliased = [nyquist_excess(make_net("resnet_small", shape, 10, seed).net) for seed in range(2)]
    strided = [nyquist_excess(StridedStem(make_net("resnet_small", shape, 10, seed).net)) for seed in range(2)]
    assert max(anti_aliased) < 2
    assert min(strided) > 5 * max(anti_aliased)
