"""Attribution: exact on linear networks, image by image, and a control that fails where it must."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vizrobust as vr
from tests.conftest import CLASSES, SHAPE, make_net
from tests.test_cli import run
from tests.tiny_transformers import TinyViT
from vizrobust.attribution import (
    ATTRIBUTIONS,
    LayerCAM,
    Occlusion,
    Saliency,
    curve_area,
    explained,
    gains,
    gini,
    infidelity,
    parse_attribution,
    rank_correlation,
)
from vizrobust.attribution.methods import layer_cam
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit
from vizrobust.models.layers import views
from vizrobust.rng import Streams

EMPTY = torch.tensor([0.2, 0.5, 0.1])


@pytest.fixture
def split(images: tuple[Tensor, Tensor]) -> ArraySplit:
    return ArraySplit(*images)


def linear() -> tuple[nn.Module, Tensor]:
    """A network whose logits are sums over values, and its weights (classes, C, H, W)."""
    weight = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(3))
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), CLASSES))
    with torch.no_grad():
        net[1].weight.copy_(weight.flatten(1))
    return net, weight


def test_on_a_linear_network_every_gradient_method_is_the_formula(images) -> None:
    net, weight = linear()
    x, y = images
    streams = Streams(0, range(5))
    presence = weight[y] * (x - EMPTY.reshape(-1, 1, 1))
    for name, method in ATTRIBUTIONS.items():
        if name in ("LayerCAM", "GuidedBackprop"):  # there is no layer with positions, and no ReLU
            with pytest.raises(ValueError, match=r"layer CAM needs one|needs ReLU modules"):
                method().prepared(net, SHAPE)
            continue
        shares = (Occlusion(side=1) if name == "Occlusion" else method())(net, x, y, EMPTY, streams)
        if name == "Occlusion":  # all channels of a pixel at once
            assert torch.allclose(shares[:, 0], presence.sum(1), atol=1e-4)
            continue
        told = shares * (x - EMPTY.reshape(-1, 1, 1)) if method.local else shares
        assert torch.allclose(told, presence, atol=1e-4), name
        assert infidelity(net, x, y, told, EMPTY, streams).max() < 1e-3
    wrong = infidelity(net, x, y, torch.rand(x.shape, generator=torch.Generator().manual_seed(1)), EMPTY, streams)
    assert wrong.min() > 0.3


def test_the_order_of_a_linear_network_beats_all_others(images) -> None:
    net, weight = linear()
    x, y = images
    best = (weight[y] * (x - EMPTY.reshape(-1, 1, 1))).sum(1)
    for maps, sign in ((best, 1), (-best, -1)):
        deletion, insertion = gains(net, x, y, maps, EMPTY, Streams(0, range(5)))
        assert (sign * deletion).min() > 0
        assert (sign * insertion).min() > 0
    # By hand: one image, pixel after pixel.
    order = best[:1].flatten(1).argsort(1, descending=True)
    n, by_hand = order.shape[1], []
    for step in range(5):
        shown = x[:1].clone().flatten(2)
        for pixel in order[0, : step * n // 4]:
            shown[0, :, pixel] = EMPTY
        by_hand.append(net(shown.reshape(x[:1].shape)).softmax(1)[0, y[0]].item())
    area = curve_area(net, x[:1], y[:1], order, EMPTY, False, steps=4)
    assert float(area) == pytest.approx(
        float(np.trapezoid(by_hand) if hasattr(np, "trapezoid") else np.trapz(by_hand)) / 4, abs=1e-5
    )


def test_gini_and_rank_correlation_are_those_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 5, 3, generator=generator).round(decimals=1) for _ in range(2))
    from scipy.stats import spearmanr

    for one, other, found, sparse in zip(a, b, rank_correlation(a, b).tolist(), gini(a).tolist(), strict=True):
        first, second = one.abs().flatten().numpy(), other.abs().flatten().numpy()
        assert found == pytest.approx(float(spearmanr(first, second).statistic), abs=1e-6)
        pairs = np.abs(first[:, None] - first[None]).sum() / (2 * len(first) * first.sum())  # mean difference over twice the mean
        assert sparse == pytest.approx(float(pairs), abs=1e-5)
    assert rank_correlation(torch.zeros(1, 2, 2), a[:1, :2, :2]).isnan().all()


def test_layer_cam_is_its_formula_and_is_read_from_tokens(images) -> None:
    x, y = images
    net = make_net()
    assert LayerCAM().prepared(net, SHAPE).layer == "relu2"  # the deepest layer with positions
    activations: list[Tensor] = []
    net.net.relu2.register_forward_hook(lambda _m, _i, output: activations.append(output) or output)
    point = x.clone().requires_grad_()
    logits = net(point)
    (slope,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), activations)
    by_hand = (activations[0] * slope.clamp_min(0)).sum(1).clamp_min(0)
    assert torch.allclose(layer_cam(net, views(net, SHAPE, ["relu2"])["relu2"], x, y), by_hand.detach(), atol=1e-6)
    tokens = TinyViT().eval()
    ready = LayerCAM().prepared(tokens, SHAPE)
    assert ready(tokens, x, y, EMPTY, Streams(0, range(5))).abs().sum((1, 2, 3)).min() > 0
    with pytest.raises(ValueError, match="'logits' has no positions"):
        LayerCAM(layer="logits").prepared(net, SHAPE)


QUICK = ("Saliency", "SmoothGrad(samples=2)", "IntegratedGradients(steps=3)", "Occlusion(side=8)", "LayerCAM", "GuidedBackprop")


@pytest.mark.parametrize("text", QUICK)
def test_an_image_has_one_map_whatever_its_batch_and_the_network_stays_as_it_was(text: str, split: ArraySplit) -> None:
    net, other, compute, method = make_net(), make_net(seed=1), Compute("cpu"), parse_attribution(text)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first = list(explained(net, method, split, (0.0,) * 3, compute, random_net=other, batch_size=3))
    assert [one.index for one in first] == list(range(5))
    again = list(explained(net, method, split, (0.0,) * 3, compute, random_net=other, batch_size=3, known={0, 1, 2}))
    assert [one.index for one in again] == [3, 4]
    for one, same in zip(first[3:], again, strict=True):
        assert torch.equal(one.values, same.values)
        assert one.measures == same.measures
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._backward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_same_weights_are_no_random_weights(split: ArraySplit) -> None:
    net = make_net()
    (one, *_) = explained(net, Saliency(), split, (0.0,) * 3, Compute("cpu"), random_net=make_net())
    assert one.measures["weights"] == pytest.approx(1)


@pytest.fixture(scope="module")
def both() -> object:
    return vr.explain(["mnist-k0", "mnist-k8"], methods=["saliency", "GuidedBackprop"], images=8, show=2)


def test_the_control_fails_and_a_robust_network_is_sparser(both) -> None:
    table, differences = both.tables()
    assert table.note.count("the control fails it, as it must") == 2
    sparser = [row[differences.header.index("gini")] for row in differences.rows if row[1] == "Saliency()"]
    assert float(sparser[0].split()[0]) > 0.15
    assert both.maps["mnist-k0", "Saliency()"].shape == (8, 28, 28)
    assert both.image().size[0] > 600
    assert "<img" in both._repr_html_()
    assert repr(both).startswith("Explanations(32 rows")


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("explain", "mnist-k8", "--method", "saliency", "--batch-size", 2, "--json", "--out", "runs/e", "--images")
    run(*command, 2)
    before = Path("runs/e/rows.jsonl").read_text()
    rows = [json.loads(line) for line in run(*command, 4).stdout.splitlines()]
    after = Path("runs/e/rows.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(rows) == 4
    assert Path("runs/e/explain.png").is_file()
    assert np.load(Path("runs/e") / rows[3]["map"]).shape == (28, 28)


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options, said in (
        (("mnist-k8", "--method", "salience"), "did you mean Saliency?"),
        (("mnist-k8", "--method", "Occlusion(side=0)"), "side must be at least 1, got 0"),
        (("mnist-k8", "--method", "LayerCAM(layer='linear1')"), "has no positions in the image"),
        ((), "Missing argument 'REF...'"),
    ):
        done = run("explain", *options, "--images", 1)
        assert done.exit_code != 0
        assert said in " ".join(done.output.split()), done.output
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ValueError, match=r"pip install 'vizrobust\[explain\]'"):
        vr.explain("mnist-k8", methods="saliency", images=1)


class Rooted(nn.Module):
    """A network whose gradient is not finite at one pixel that is 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0 * x[:, :1, 0, 0].sqrt()


def test_what_is_not_finite_has_no_map_and_no_number(split: ArraySplit) -> None:
    net, _ = linear()
    x = split.take(torch.arange(5)) * 0.9 + 0.05
    plain = list(explained(net, Saliency(), ArraySplit(x, split.labels), (0.2, 0.5, 0.1), Compute("cpu")))
    broken = x.clone()
    broken[3, 0, 0, 0] = 0
    images = ArraySplit(broken, split.labels)
    found = list(explained(Rooted(net), Saliency(), images, (0.2, 0.5, 0.1), Compute("cpu")))
    assert [one.nonfinite for one in found] == [False, False, False, True, False]
    assert all(bool(one.values.isfinite().all()) for one in found)
    torch.testing.assert_close(found[0].values, plain[0].values)
    net.register_forward_hook(lambda _m, _x, out: out.index_fill(0, torch.tensor([1]), float("nan")))
    found = list(explained(net, Saliency(), ArraySplit(x, split.labels), (0.2, 0.5, 0.1), Compute("cpu"), batch_size=8))
    assert [one.predicted >= 0 for one in found] == [True, False, True, True, True]
    assert float(found[1].values.abs().max()) == 0
    assert set(found[1].measures.values()) == {None}
    assert None not in found[2].measures.values()
