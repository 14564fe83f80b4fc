"""Layers as objectives see them, whatever the network's layout: maps, patches, class tokens, attention heads."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from tests.conftest import SHAPE as IMAGE
from tests.conftest import make_net
from tests.tiny_transformers import SHAPE, ChannelsLast, Qkv, TinyViT, seeded
from vizrobust.models import LOGITS, ActivationReader, Normalized, activations, layer, layers
from vizrobust.models.layouts import Layout
from vizrobust.models.probing import attended

N = 5


def images(shape=SHAPE, dtype=torch.float32):
    return torch.rand(N, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def read(net, *names, shape=SHAPE):
    with torch.no_grad():
        return ActivationReader.of(net, shape, names)(net, images(shape))


def raw(net, name, shape=SHAPE):
    with torch.no_grad():
        return activations(net, images(shape), [name])[name]


def by_name(net, shape=SHAPE):
    return {item.name: item for item in layers(net, shape)}


# Vectors and maps


def test_a_convnet_is_read_as_it_is():
    net, x = make_net(), images(IMAGE)
    names = ["conv2", "linear1", LOGITS]
    found, expected = ActivationReader.of(net, IMAGE, names)(net, x), activations(net, x, names)
    assert list(found) == names
    assert all(torch.equal(found[name], expected[name]) for name in names)
    tensor = torch.zeros(2, 4, 5, 3)
    assert Layout("NCHW").canonical(tensor) is tensor


@pytest.mark.parametrize("arch", ["small_cnn", "resnet_small"])
def test_every_layer_of_our_networks_is_a_vector_or_nchw(arch):
    for item in layers(make_net(arch), IMAGE):
        assert item.layout == ("NCHW" if len(item.shape) == 3 else "vector"), item
        assert item.visualizable


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("width", [6, 5, 4])  # 5 and 4 are also the height and the width of the map
def test_channels_last_is_found_by_growth_or_by_the_weights(fixed, width):
    net = seeded(ChannelsLast, width=width, fixed=fixed)
    listed = by_name(net)
    assert {name: item.layout for name, item in listed.items()} == {
        "stem": "NCHW", "norm": "NHWC", "mlp.0": "NHWC", "mlp.1": "NHWC", "mlp.2": "NHWC", "mlp": "NHWC", "drop": "NHWC",
        "head": "vector", "logits": "vector",
    }  # fmt: skip
    for name, units in (("norm", width), ("mlp.1", 9), ("drop", width)):
        assert listed[name].shape == (units, 5, 4)
        assert torch.equal(read(net, name)[name], raw(net, name).permute(0, 3, 1, 2))


class Transposed(nn.Module):
    """Width before height."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.swap = nn.Identity()

    def forward(self, x):
        return self.swap(self.conv(x).transpose(2, 3)).mean((2, 3))


def test_growth_tells_width_from_height():
    net = seeded(Transposed)
    assert by_name(net)["swap"].layout == "NCWH"
    assert torch.equal(read(net, "swap")["swap"], raw(net, "conv"))


def test_images_of_a_size_that_the_head_does_not_take_are_read_as_far_as_they_go():
    net, shape = make_net(), (3, 30, 26)
    assert read(net, "conv2", shape=shape)["conv2"].shape == (N, 32, 7, 6)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        read(net, "linear1", shape=shape)


class Windows(nn.Module):
    """Puts windows beside the images, and windows beside their pixels; neither is a map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.beside = nn.Linear(6, 6)
        self.within = nn.Linear(6, 6)

    def forward(self, x):
        n = len(x)
        if x.shape[1:] != (3, 24, 16):
            raise ValueError("one size")
        x = self.conv(x).reshape(n, 6, 2, 3, 2, 2).permute(0, 2, 4, 3, 5, 1)  # 2 x 2 windows of 3 x 2
        x = self.beside(x.reshape(4 * n, 6, 6)).reshape(n, 4, 6, 6)
        return self.within(x).mean((1, 2))


def test_windows_are_no_maps():
    net = seeded(Windows)
    listed = by_name(net, (3, 24, 16))
    assert not listed["beside"].visualizable
    assert "windows" in listed["beside"].reason
    assert not listed["within"].visualizable
    assert "no map" in listed["within"].reason
    assert listed["conv"].visualizable
    with pytest.raises(ValueError, match=r"layer 'within' has no units that can be read: .*no map of the image"):
        ActivationReader.of(net, (3, 24, 16), ["within"])


# Tokens


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize(("extra", "place"), [(0, "front"), (1, "front"), (2, "front"), (1, "back"), (3, "back")])
def test_patches_are_a_map_and_other_tokens_are_vectors(extra, place, sequence_first, cut):
    net = seeded(TinyViT, extra=extra, place=place, sequence_first=sequence_first, cut=cut)
    first = extra if place == "front" else 0
    listed = by_name(net)
    for name, units in (("drop", 12), ("norm1", 12), ("mlp.1", 15), ("attn", 12), ("attn.inner", 12)):
        assert listed[name].shape == (units, 5, 4), name
        assert listed[name].layout == "tokens"
        tensor = raw(net, name)
        tensor = tensor.transpose(0, 1) if sequence_first and name != "drop" else tensor
        virtual = [f"{name}:class", *(f"{name}:token{k}" for k in range(1, extra))][:extra]
        assert [other for other in listed if other.startswith(f"{name}:") and not other.endswith("heads")] == virtual
        found = read(net, name, *virtual)
        for row in range(5):
            for column in range(4):
                assert torch.equal(found[name][:, :, row, column], tensor[:, first + 4 * row + column])
        for k, other in enumerate(virtual):
            assert listed[other].shape == (units,)
            assert torch.equal(found[other], tensor[:, k if place == "front" else 20 + k])


def test_patches_stand_where_the_image_has_them():
    net = seeded(TinyViT, extra=1)
    x = images()
    changed = x.clone()
    changed[:, :, 12:16, 4:8] = 0.0  # the patch in row 3, column 1
    with torch.no_grad():
        reading = ActivationReader.of(net, SHAPE, ["norm1"])
        moved = (reading(net, x)["norm1"] - reading(net, changed)["norm1"]).abs().sum((0, 1)) > 0
    assert moved.nonzero().tolist() == [[3, 1]]


@pytest.mark.parametrize("width", [21, 20])
def test_as_many_units_as_tokens_are_told_apart_by_the_weights(width):
    net = seeded(TinyViT, extra=1, width=21) if width == 21 else seeded(ChannelsLast, width=20)
    name = "norm1" if width == 21 else "norm"
    assert by_name(net)[name].shape == (width, 5, 4)


def test_a_token_whose_place_cannot_be_told_is_not_guessed():
    hidden = by_name(seeded(TinyViT, content=True))
    assert hidden["norm1"].layout == "tokens"
    assert not hidden["norm1"].visualizable
    assert "which of its 21 tokens are the 5 x 4 patches" in hidden["norm1"].reason
    assert "norm1:class" not in hidden
    told = seeded(TinyViT, content=True)
    told.num_prefix_tokens = 1  # as timm's networks say it
    assert by_name(told)["norm1"].visualizable
    between = by_name(seeded(TinyViT, place="middle"))
    assert not between["norm1"].visualizable
    assert "among the patches" in between["norm1"].reason


class OtherMapFirst(TinyViT):
    """An earlier map has as many places, 7 x 3, as there are patches and class token."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 12, 14)

    def forward(self, x):
        self.other(x)
        return super().forward(x)


def test_a_map_that_happens_to_have_as_many_places_does_not_mislead():
    listed = by_name(seeded(OtherMapFirst))
    assert listed["norm1"].shape == (12, 5, 4)
    assert "norm1:class" in listed


class Talking(Qkv):
    """Heads that are mixed by a convolution over their tables of pairs of tokens (Shazeer et al. 2020)."""

    def __init__(self):
        super().__init__(12, 3)
        self.match = nn.Sequential(nn.Softmax(-1), nn.Conv2d(3, 3, 1))


def test_a_table_of_pairs_of_tokens_is_no_map():
    net = seeded(TinyViT)
    net.attn = seeded(Talking)
    mixed = by_name(net)["attn.match.1"]
    assert mixed.shape == (3, 21, 21)
    assert not mixed.visualizable
    assert "pairs of tokens" in mixed.reason


def test_the_deepest_layer_alone_is_seen_as_in_the_whole_list():
    net = Normalized(seeded(TinyViT, extra=2, attention="qkv"), [0.4] * 3, [0.3] * 3).eval()
    for item in layers(net, SHAPE):
        if item.visualizable:
            assert read(net, item.name)[item.name].shape == (N, *item.shape), item
        else:
            with pytest.raises(ValueError, match="has no units that can be read"):
                ActivationReader.of(net, SHAPE, [item.name])
    assert by_name(net)["attn.match"].reason  # (heads, tokens, tokens) is a table of pairs


# Attention heads


def slow_heads(tokens, qkv_weight, qkv_bias, heads):
    """(N, T, D) -> (N, T, D) heads side by side, one head, image and token at a time."""
    n, t, d = tokens.shape
    size = d // heads
    out = torch.zeros(n, t, d, dtype=tokens.dtype)
    for i in range(n):
        q, k, v = (tokens[i] @ qkv_weight[s * d : (s + 1) * d].T + qkv_bias[s * d : (s + 1) * d] for s in range(3))
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for token in range(t):
                match = torch.stack([q[token, part] @ k[other, part] / size**0.5 for other in range(t)])
                out[i, token, part] = torch.softmax(match, 0) @ v[:, part]
    return out


@pytest.mark.parametrize("attention", ["torch", "sequence first", "qkv"])
def test_heads_are_the_lengths_of_the_attended_values(attention):
    net = seeded(TinyViT, extra=2, attention=attention.split()[0], sequence_first=attention == "sequence first").double()
    name = "attn" if attention == "qkv" else "attn.inner"
    with torch.no_grad():
        x = images(dtype=torch.float64)[:2]
        tokens = activations(net, x, ["norm1"])["norm1"]
        tokens = tokens.transpose(0, 1) if attention == "sequence first" else tokens
        inner = net.attn if attention == "qkv" else net.attn.inner
        weights = (inner.qkv.weight, inner.qkv.bias) if attention == "qkv" else (inner.in_proj_weight, inner.in_proj_bias)
        expected = slow_heads(tokens, *weights, 3).reshape(2, 22, 3, 4).square().sum(-1).sqrt()
        found = ActivationReader.of(net, SHAPE, [f"{name}:heads"])(net, x)[f"{name}:heads"]
    assert layer(net, SHAPE, f"{name}:heads").shape == (3, 5, 4)
    assert found.shape == (2, 3, 5, 4)
    assert torch.allclose(found, expected[:, 2:].transpose(1, 2).reshape(2, 3, 5, 4), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"batch_first": True}, {}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 7}],
    ids=repr,
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_heads_times_the_output_projection_are_the_output(options, masked):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.MultiheadAttention(12, 3, dtype=torch.float64, **options).eval()
        nn.init.normal_(module.out_proj.weight)
        inputs = [
            torch.randn(6, 4, width, dtype=torch.float64) for width in (12, options.get("kdim", 12), options.get("vdim", 12))
        ]
        length = 4 if module.batch_first else 6
        mask = {"attn_mask": torch.rand(length, length) < 0.3} if masked else {}
        if masked:
            mask["attn_mask"].fill_diagonal_(False)
    with torch.no_grad():
        expected, _ = module(*inputs, need_weights=False, **mask)
        found = attended(module, *inputs, need_weights=False, **mask)
        found = found if module.batch_first else found.transpose(0, 1)
        found = found @ module.out_proj.weight.T + (0 if module.out_proj.bias is None else module.out_proj.bias)
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_head_that_is_silenced_has_length_zero_and_a_finite_gradient():
    net = seeded(TinyViT, attention="qkv")
    with torch.no_grad():
        net.attn.qkv.weight[24 + 4 : 24 + 8] = 0
        net.attn.qkv.bias[24 + 4 : 24 + 8] = 0
    x = images().requires_grad_()
    heads = ActivationReader.of(net, SHAPE, ["attn:heads"])(net, x)["attn:heads"]
    assert (heads[:, 1] == 0).all()
    assert (heads[:, [0, 2]] > 0).all()
    (grad,) = torch.autograd.grad(heads.sum(), x)
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0


# What a pass costs and leaves behind


def test_one_pass_that_ends_at_the_deepest_layer_and_differentiates():
    net, runs = seeded(TinyViT, extra=2, attention="qkv"), []
    names = ["attn:heads", "norm1:class", "norm1", "norm1:token1"]
    reading = ActivationReader.of(net, SHAPE, names)
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: runs.append(name))
    x = images().requires_grad_()
    found = reading(net, x)
    assert runs == ["embed", "drop", "norm1", "attn.qkv", "attn.match"]
    assert list(found) == names
    (grad,) = torch.autograd.grad(sum(tensor.square().sum() for tensor in found.values()), x)
    assert grad.abs().amax((1, 2, 3)).min() > 0
    assert all(weight.grad is None for weight in net.parameters())


def test_nothing_is_left_behind():
    net = seeded(TinyViT).train()
    net.mlp.eval()
    state = torch.random.get_rng_state()
    layers(net, SHAPE)
    ActivationReader.of(net, SHAPE, ["attn.inner:heads", "mlp:class"])(net, images())
    with pytest.raises(ValueError, match="no layer"):
        ActivationReader.of(net, SHAPE, ["mpl"])
    with pytest.raises(AssertionError, match="no input of size 2"):
        layers(seeded(Failing), SHAPE)
    assert net.training
    assert not net.mlp.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    # The dropout of the pass in training mode drew numbers; the looks before it did not.
    assert torch.equal(state, torch.random.get_rng_state()) is False
    torch.random.set_rng_state(state)
    layers(net, SHAPE)
    assert torch.equal(state, torch.random.get_rng_state())


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        raise AssertionError(f"no input of size {len(self.conv(x))}")


class Draws(nn.Module):
    """Random also in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x + torch.randn_like(x)).mean((2, 3))


def test_a_network_that_draws_numbers_leaves_the_generator_alone():
    state = torch.random.get_rng_state()
    assert layer(seeded(Draws), SHAPE, "conv").shape == (4, 18, 14)
    assert torch.equal(state, torch.random.get_rng_state())


def test_images_do_not_mix_and_their_order_does_not_matter():
    net = seeded(TinyViT, extra=2)
    names = ["attn.inner:heads", "mlp", "mlp:class", LOGITS]
    reading, x, order = ActivationReader.of(net, SHAPE, names), images(), torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        found, shuffled = reading(net, x), reading(net, x[order])
    for name in names:
        assert torch.allclose(found[name][order], shuffled[name], atol=1e-6), name


# Bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp.1:token1", "layer 'mlp.1' has no :token1, only :class beside its patches"),
        ("embed:class", r"layer 'embed' has no token beside its places \(its layout is NCHW\)"),
        ("mlp.1:heads", r"layer 'mlp.1' \(GELU\) is no attention whose heads can be read"),
        ("logits:heads", "layer 'logits' .* is no attention"),
        ("mlp.1:klass", "no part 'klass' of layer 'mlp.1'; parts of layers are :class"),
        ("mlp.9:class", "no layer 'mlp.9:class'; did you mean"),
        ("mlp.9", "no layer 'mlp.9'; did you mean"),
        ("spare", "layer 'spare' is not used in the forward pass"),
        ("spare:class", "layer 'spare' is not used in the forward pass"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, message):
    net = seeded(TinyViT)
    net.spare = nn.Identity()
    for ask in (lambda: ActivationReader.of(net, SHAPE, [name]), lambda: layer(net, SHAPE, name)):
        with pytest.raises(ValueError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_other_images_than_those_asked_for_are_an_error():
    net = seeded(ChannelsLast)
    assert ActivationReader.of(net, SHAPE, ["norm"])(net, torch.rand(2, 3, 12, 24))["norm"].shape == (2, 6, 3, 6)
    with pytest.raises(ValueError, match="20 tokens for these images, but was seen with 5 x 3 patches and 0 more"):
        Layout("NTC", grid=(5, 3)).canonical(torch.zeros(1, 20, 6))


# Other people's networks


def test_torchvisions_vit():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=40).eval()
    shape = (3, 32, 32)
    listed = by_name(net, shape)
    assert all(item.visualizable for item in listed.values())
    block = "encoder.layers.encoder_layer_1"
    assert listed[f"{block}.mlp.1"].shape == (40, 4, 4)
    assert listed[f"{block}.self_attention:heads"].shape == (3, 4, 4)
    found = read(net, block, f"{block}:class", f"{block}.self_attention:heads", shape=shape)
    expected = raw(net, block, shape)
    assert torch.equal(found[f"{block}:class"], expected[:, 0])
    assert torch.equal(found[block].flatten(2), expected[:, 1:].transpose(1, 2))


def test_torchvisions_swin():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SwinTransformer([2, 2], embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=[3, 3], num_classes=7).eval()
    shape = (3, 28, 20)
    listed = by_name(net, shape)
    assert all(item.visualizable for item in listed.values())
    assert listed["features.1.0"].shape == (12, 14, 10)
    assert listed["features.3.1.mlp.0"].shape == (96, 7, 5)
    assert torch.equal(read(net, "features.3", shape=shape)["features.3"], raw(net, "features.3", shape).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="no attention whose heads can be read"):
        ActivationReader.of(net, shape, ["features.1.0.attn:heads"])


@pytest.fixture(scope="module")
def timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("options", "extra"), [({}, 1), ({"reg_tokens": 2}, 3), ({"class_token": False, "global_pool": "avg"}, 0)]
)
def test_timms_vit(timm, options, extra, fused):
    shape = (3, 24, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.models.VisionTransformer((24, 16), 4, embed_dim=24, depth=2, num_heads=3, num_classes=7, **options).eval()
    for block in net.blocks:
        block.attn.fused_attn = fused
    names = ["blocks.1", "blocks.0.attn:heads", *["blocks.1:class", "blocks.1:token1", "blocks.1:token2"][:extra]]
    found, expected = read(net, *names, shape=shape), raw(net, "blocks.1", shape)
    assert found["blocks.1"].shape == (N, 24, 6, 4)
    assert torch.equal(found["blocks.1"].flatten(2), expected[:, extra:].transpose(1, 2))
    for k in range(extra):
        assert torch.equal(found[names[2 + k]], expected[:, k])
    attention = net.blocks[0].attn
    tokens = raw(net, "blocks.0.norm1", shape)
    with torch.no_grad():
        heads = slow_heads(tokens, attention.qkv.weight, attention.qkv.bias, 3).reshape(N, 24 + extra, 3, 8).norm(dim=-1)
    assert torch.allclose(found["blocks.0.attn:heads"].flatten(2), heads[:, extra:].transpose(1, 2), atol=1e-5)


def test_the_attention_of_these_tests_is_timms(timm):
    from timm.layers import Attention

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, theirs, x = Qkv(12, 3).eval(), Attention(12, 3, qkv_bias=True).eval(), torch.randn(2, 5, 12)
    theirs.load_state_dict(ours.state_dict())
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


# By reference


def test_timm_by_reference(timm):
    from vizrobust.models import load_checkpoint

    checkpoint = load_checkpoint("timm:test_vit@random")
    assert checkpoint.info.input_shape == (3, 160, 160)
    assert len(checkpoint.info.classes) == 1000
    assert checkpoint.sha256 == load_checkpoint("timm:test_vit@random").sha256
    assert layer(checkpoint.net(), checkpoint.info.input_shape, "blocks.0.attn:heads").shape[1:] == (10, 10)
    with pytest.raises(ValueError, match="no timm model 'test_vitt'; did you mean test_vit"):
        load_checkpoint("timm:test_vitt@random")
    with pytest.raises(ValueError, match="take timm:test_vit@random"):
        load_checkpoint("timm:test_vit")


@pytest.mark.parametrize("width", [60, 120])
def test_the_list_keeps_names_whole_whatever_the_terminal(monkeypatch, timm, width):
    from click.testing import CliRunner

    from vizrobust.cli import main, show

    monkeypatch.setattr(show, "PIPE_WIDTH", width)
    shown = CliRunner().invoke(main, ["layers", "timm:test_vit@random", "--all"]).stdout
    for name in ("blocks.0.attn:heads", "blocks.0.attn.q_norm", "blocks.1.mlp.act:class", "logits"):
        assert any(line.split()[:1] == [name] for line in shown.splitlines()), name
    assert "no (1)" in shown
    assert "\n(1) nothing tells its units from its places\n" in shown
    assert max(map(len, (line.rstrip() for line in shown.split("(1) nothing")[0].splitlines()))) <= width


# In pictures


def test_a_head_and_a_class_token_can_be_rendered():
    from vizrobust.features import Channel, plain, render

    net = seeded(TinyViT, attention="qkv")
    for name in ("attn:heads", "norm2:class", "mlp.1"):
        for done in render(net, Channel(layer=name), [0, 2], plain(steps=12), shape=SHAPE, batch_size=2):
            assert done.had_gradient
            assert done.trajectory[-1][1] > done.trajectory[0][1], name
