"""Activations by a forward pass that stops early, and the list of layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.models import LOGITS, activations, layer, layers


def count_runs(net):
    runs = {}
    body = net.net if hasattr(net, "net") else net
    for name, module in body.named_modules():
        if name:
            module.register_forward_hook(lambda _m, _i, _o, name=name: runs.update({name: runs.get(name, 0) + 1}))
    return runs


def hooks(net):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def manual(net, x):
    """The layers of small_cnn from its weights, written out."""
    w = dict(net.net.named_parameters())
    z = (x - 0.4) / 0.3
    out = {"conv1": F.conv2d(z, w["conv1.weight"], w["conv1.bias"], stride=2, padding=1)}
    out["relu1"] = out["conv1"].clamp_min(0)
    out["conv2"] = F.conv2d(out["relu1"], w["conv2.weight"], w["conv2.bias"], stride=2, padding=1)
    out["relu2"] = out["conv2"].clamp_min(0)
    out["flatten"] = out["relu2"].reshape(len(x), -1)
    out["linear1"] = out["flatten"] @ w["linear1.weight"].T + w["linear1.bias"]
    out["relu3"] = out["linear1"].clamp_min(0)
    out["linear2"] = out["relu3"] @ w["linear2.weight"].T + w["linear2.bias"]
    out["logits"] = out["linear2"]
    return out


def test_activations_are_those_of_a_plain_forward_pass(net, images):
    x, _ = images
    expected = manual(net, x)
    for wanted in (["conv1"], ["conv2", "linear1"], ["linear1", "relu1"], list(expected)):
        found = activations(net, x, wanted)
        assert set(found) == set(wanted)
        for name in wanted:
            assert torch.allclose(found[name], expected[name], atol=1e-5), name


def test_layers_lists_every_module_with_its_shape_in_the_order_of_the_forward_pass(net, images):
    x, _ = images
    expected = manual(net, x)
    listed = layers(net, SHAPE)
    assert [item.name for item in listed] == list(expected)
    for item in listed:
        assert item.shape == tuple(expected[item.name].shape[1:])
        assert item.units == item.shape[0]
        assert item.visualizable
    assert layer(net, SHAPE, "conv2").shape == (32, 5, 4)
    assert layer(net, SHAPE, "conv2").kind == "Conv2d"
    assert layer(net, SHAPE, LOGITS).units == CLASSES


def test_layers_works_in_float64_and_leaves_the_network_alone():
    net = make_net("resnet_small").double().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.net.bn.eval()
    assert layer(net, SHAPE, "logits").shape == (CLASSES,)
    assert net.training
    assert not net.net.bn.training
    assert hooks(net) == 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_forward_pass_stops_at_the_deepest_layer(net, images):
    runs = count_runs(net)
    activations(net, images[0], ["conv2", "conv1"])
    assert runs == {"conv1": 1, "relu1": 1, "conv2": 1}
    runs.clear()
    activations(net, images[0], [LOGITS, "conv1"])
    assert set(runs) == {"conv1", "relu1", "conv2", "relu2", "flatten", "linear1", "relu3", "linear2"}
    assert set(runs.values()) == {1}


def test_values_are_those_before_an_in_place_relu():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from torchvision.models import resnet18

        net = resnet18(weights=None, num_classes=7).eval()
    x = torch.rand(2, 3, 40, 36)
    for wanted in (["layer1.0.bn1"], ["layer1.0.bn1", "layer2"], ["layer1.0.bn1", LOGITS]):
        assert activations(net, x, wanted)["layer1.0.bn1"].min() < -0.01
    with torch.no_grad():
        assert torch.equal(activations(net, x, [LOGITS, "layer1.0.bn1"])[LOGITS], net(x))


def test_an_unknown_layer_names_the_nearest(net, images):
    with pytest.raises(ValueError, match=r"no layer 'conv9'; did you mean .*conv[12]"):
        activations(net, images[0], ["conv9"])
    with pytest.raises(ValueError, match=r"no layer 'logit'; did you mean logits"):
        layer(net, SHAPE, "logit")


class Odd(nn.Module):
    """One module that never runs, one that runs twice, one that fails, one whose output is a pair."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.spare = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.last = nn.Linear(4, 6)
        self.fail = False

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.act(x - 1)
        if self.fail:
            raise RuntimeError("broken half-way")
        return self.last(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x, x.sum()


def test_a_layer_that_is_never_used_is_an_error_and_leaves_no_hook():
    net = Odd().eval()
    with pytest.raises(ValueError, match=r"layer 'spare' is not used"):
        activations(net, torch.rand(2, 3, 5, 4), ["first", "spare"])
    assert hooks(net) == 0


def test_hooks_are_gone_after_success_early_exit_and_exceptions():
    net = Odd().eval()
    for wanted in (["first"], ["pair", LOGITS]):
        activations(net, torch.rand(2, 3, 5, 4), wanted)
        assert hooks(net) == 0
    net.fail = True
    with pytest.raises(RuntimeError, match="half-way"):
        activations(net, torch.rand(2, 3, 5, 4), ["last"])
    with pytest.raises(RuntimeError, match="half-way"):
        layers(net, (3, 5, 4))
    assert hooks(net) == 0


def test_a_module_that_runs_twice_counts_at_its_first_run():
    net, x = Odd().eval(), torch.rand(2, 3, 5, 4)
    expected = net.first(x).clamp_min(0)
    for wanted in (["act"], ["act", "last"]):
        assert torch.equal(activations(net, x, wanted)["act"], expected)
    assert expected.max() > 0


def test_a_pair_counts_with_its_first_tensor():
    net, x = Odd().eval(), torch.rand(2, 3, 5, 4)
    assert activations(net, x, ["pair"])["pair"].shape == (2, 4, 5, 4)


def test_activations_are_differentiable(net, images):
    x = images[0].clone().requires_grad_()
    found = activations(net, x, ["conv1", "linear1"])
    (grad,) = torch.autograd.grad(found["linear1"].sum() + found["conv1"].sum(), x)
    again = x.detach().clone().requires_grad_()
    expected = manual(net, again)
    (oracle,) = torch.autograd.grad(expected["linear1"].sum() + expected["conv1"].sum(), again)
    assert torch.allclose(grad, oracle, atol=1e-5)
    assert all(weight.grad is None for weight in net.parameters())
