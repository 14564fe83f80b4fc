"""ReLU redirection: dead units wake up, living images keep their gradient bit for bit, nothing stays behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vizrobust.features.scorer import redirected_relu

RELUS = {
    "nn.ReLU": lambda: nn.ReLU(),
    "nn.ReLU in place": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "F.relu in place": lambda: lambda x: F.relu(x, inplace=True),
    "F.relu_": lambda: F.relu_,
    "torch.relu": lambda: torch.relu,
    "torch.relu_": lambda: torch.relu_,
    "Tensor.relu": lambda: lambda x: x.relu(),
    "Tensor.relu_": lambda: lambda x: x.relu_(),
    "nn.ReLU6": lambda: nn.ReLU6(),
    "nn.ReLU6 in place": lambda: nn.ReLU6(inplace=True),
    "F.relu6": lambda: F.relu6,
}
SHAPE = (2, 6, 5)


class Net(nn.Module):
    """Three convolutions with a ReLU behind each; whose `dead` one is shut for every image, but for a few that shine."""

    def __init__(self, relu, dead):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.convs = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 2, 1)])
        for conv in self.convs:
            conv.weight.data.abs_()
            conv.bias.data[:] = 0.1
        # In [0, 1] the way to the dead ReLU is open only for images above some brightness.
        self.relu, (before, after) = relu, self.level(dead)
        self.convs[dead].bias.data -= before + 0.55 * (after - before)

    @torch.no_grad()
    def level(self, dead):
        found = []
        for value in (0.0, 1.0):
            x = torch.full((1, *SHAPE), value)
            for conv in self.convs[:dead]:
                x = conv(x).relu()
            found.append(self.convs[dead](x).amax())
        return found

    def forward(self, x):
        for conv in self.convs:
            # Not the convolution's own output, which nothing else would want to read.
            x = self.relu(conv(x) * 1)
        return x


def score(net, x):
    return net(x).flatten(1).sum(1)


def gradient(net, x, context=True):
    x = x.clone().requires_grad_()
    scores = score(net, x)
    if not context:
        return scores.detach(), torch.autograd.grad(scores.sum(), x)[0], None
    with redirected_relu() as seen:
        (grad,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), grad, seen.redirected


def pictures():
    """Dark, bright, dark, bright, middling."""
    noise = 0.1 * torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    return torch.tensor([0.0, 0.9, 0.2, 0.85, 0.1])[:, None, None, None] + noise


DEAD = torch.tensor([True, False, True, False, True])


@pytest.mark.parametrize("dead", [0, 1, 2])
@pytest.mark.parametrize("relu", RELUS)
def test_a_dead_image_gets_a_gradient_and_the_others_keep_theirs(relu, dead):
    net, x = Net(RELUS[relu](), dead), pictures()
    plain_scores, plain, _ = gradient(net, x, context=False)
    assert torch.equal(plain.flatten(1).abs().sum(1) == 0, DEAD)
    scores, grad, seen = gradient(net, x)
    assert torch.equal(scores, plain_scores)
    assert torch.equal(seen, DEAD)
    assert torch.equal(grad[~DEAD], plain[~DEAD])
    assert (grad[DEAD].flatten(1).abs().sum(1) > 0).all()
    # All weights are positive: up is brighter.
    assert (grad[DEAD] >= 0).all()


class Chain(nn.Module):
    """One unit behind another, so that the optimum in [0, 1] is where `weights` are positive; the `dead` one shuts at `level`."""

    def __init__(self, dead, inplace, level):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(SHAPE, generator=generator)
        self.shift = [0.0, 0.0, 0.0]
        self.shift[dead] = -level
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        x = (x - 0.5).mul(self.weights).flatten(1).sum(1, keepdim=True)
        for shift in self.shift:
            x = self.relu(x + shift)
        return x


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dead", [0, 1, 2])
def test_with_it_the_optimum_is_reached_and_without_it_nothing_moves(dead, inplace):
    net = Chain(dead, inplace, level=3.0)
    best = (net.weights > 0).float()
    starts = torch.stack((torch.full(SHAPE, 0.5), 0.2 + 0.6 * best, torch.full(SHAPE, 0.4)))
    assert (score(net, starts) > 0).tolist() == [False, True, False]
    for context in (False, True):
        x = starts
        for _ in range(60):
            x = (x + 0.05 * gradient(net, x, context)[1].sign()).clamp(0, 1)
        assert torch.equal(x[1], best)
        for one in (0, 2):
            assert torch.equal(x[one], best if context else starts[one])


@pytest.mark.parametrize("layout", ["float32", "float64", "channels_last", "autocast"])
def test_an_image_never_depends_on_the_other_images(layout):
    net = Net(nn.ReLU(inplace=True), 1)
    x = pictures()
    if layout == "float64":
        net, x = net.double(), x.double()
    if layout == "channels_last":
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=layout == "autocast"):
        _, grad, seen = gradient(net, x)
        assert grad.dtype == x.dtype
        assert torch.equal(seen, DEAD)
        assert (grad.flatten(1).abs().sum(1) > 0).all()
        order = torch.tensor([3, 0, 4, 1, 2])
        assert torch.equal(gradient(net, x[order])[1], grad[order])
        for others in (x[1:2], x[2:3]):  # all alive, all dead
            batch = torch.cat((x[:1], others.expand(3, *SHAPE), x[4:]))
            assert torch.equal(gradient(net, batch)[1][[0, 4]], grad[[0, 4]])


def test_only_what_would_raise_a_negative_input_passes():
    x = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, 5.0], [-1.0, -2.0, 5.0], [-1.0, -2.0, -3.0]], requires_grad=True)
    weight = torch.tensor([[2.0, -3.0, 0.0], [2.0, -3.0, 4.0], [2.0, -3.0, 0.0], [-2.0, -3.0, 0.0]])
    with redirected_relu() as seen:
        (grad,) = torch.autograd.grad((F.relu(x) * weight).sum(), x)
    assert grad.tolist() == [[2, 0, 0], [0, 0, 4], [2, 0, 0], [0, 0, 0]]
    assert seen.redirected.tolist() == [True, False, True, False]


def test_a_relu6_stuck_at_either_end_is_brought_back():
    x = torch.tensor([[-1.0, 7.0, 3.0], [-1.0, 7.0, 3.0], [-1.0, 7.0, 3.0]], requires_grad=True)
    weight = torch.tensor([[2.0, -3.0, 1.0], [2.0, -3.0, 0.0], [-2.0, 3.0, 0.0]])
    with redirected_relu() as seen:
        (grad,) = torch.autograd.grad((F.relu6(x) * weight).sum(), x)
    assert grad.tolist() == [[0, 0, 1], [2, -3, 0], [0, 0, 0]]
    assert seen.redirected.tolist() == [False, True, False]


def test_other_nonlinearities_keep_their_gradient():
    x = torch.full((2, 3), -4.0, requires_grad=True)
    for function in (F.hardtanh, F.hardswish, F.threshold_, lambda x: x.clamp(min=0), torch.sigmoid, F.gelu):
        call = (lambda x: F.threshold(x, 1.0, 0.0)) if function is F.threshold_ else function
        (plain,) = torch.autograd.grad(call(x).sum(), x)
        with redirected_relu() as seen:
            (grad,) = torch.autograd.grad(call(x).sum(), x)
        assert torch.equal(grad, plain)
        assert seen.redirected is None


def test_the_record_is_of_the_passes_since_its_reset():
    net, x = Net(nn.ReLU(), 0), pictures().requires_grad_()
    with redirected_relu() as seen:
        assert seen.redirected is None
        torch.autograd.grad(score(net, x).sum(), x)
        assert torch.equal(seen.redirected, DEAD)
        seen.reset()
        assert seen.redirected is None
        torch.autograd.grad(score(net, x)[1], x)
        assert seen.redirected.tolist() == [False] * 5  # nothing was asked of the dark ones
    assert torch.equal(seen.redirected, torch.zeros(5, dtype=torch.bool))


def test_patches_folded_into_the_batch_count_with_their_image():
    """Image by image, as windowed attention folds them; the ReLU behind has a row for each image."""
    x = torch.ones(3, 4, 2)
    x[1, 2] = -1
    x.requires_grad_()
    with redirected_relu() as seen:
        inner = F.relu(x.flatten(0, 1)).reshape(3, 8)
        torch.autograd.grad(F.relu(inner + 1).sum(), x)
    assert seen.redirected.tolist() == [False, True, False]


def test_nothing_is_left_behind_also_after_an_exception():
    net, x = Net(nn.ReLU(), 1), pictures()
    plain = gradient(net, x, context=False)[1]
    with pytest.raises(RuntimeError, match="stop"), redirected_relu():
        raise RuntimeError("stop")
    assert _get_current_dispatch_mode() is None
    gradient(net, x)
    assert torch.equal(gradient(net, x, context=False)[1], plain)
    assert all(not module._forward_hooks and not module._backward_hooks for module in net.modules())
    assert all(weight.grad is None for weight in net.parameters())


def test_a_context_in_a_context_does_the_same_and_both_record():
    net, x = Net(nn.ReLU(), 1), pictures()
    grad = gradient(net, x)[1]
    z = x.clone().requires_grad_()
    with redirected_relu() as outer:
        with redirected_relu() as inner:
            (twice,) = torch.autograd.grad(score(net, z).sum(), z)
        assert torch.equal(outer.redirected, DEAD)
        assert torch.equal(inner.redirected, DEAD)
        (once,) = torch.autograd.grad(score(net, z).sum(), z)
    assert torch.equal(twice, grad)
    assert torch.equal(once, grad)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_an_untrained_network_of_torchvision_with_a_dead_unit(name):
    """In-place ReLUs and ReLU6s, skip connections: the last block's unit is shut by its normalization."""
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(models, name)(weights=None).eval().requires_grad_(False)
    layer, norm = (net.layer1, net.layer1[1].bn2) if name == "resnet18" else (net.features[1], net.features[1].conv[0][1])
    norm.bias[:] = -30.0
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    stem = net.maxpool(net.relu(net.bn1(net.conv1(x)))) if name == "resnet18" else net.features[0](x)
    target = layer(stem) if name == "resnet18" else layer.conv[0](stem)
    (plain,) = torch.autograd.grad(target[:, 3].sum(), x, retain_graph=True)
    assert (plain == 0).all()
    with redirected_relu() as seen:
        (grad,) = torch.autograd.grad(target[:, 3].sum(), x)
    assert (grad.flatten(1).abs().sum(1) > 0).all()
    assert seen.redirected.all()
