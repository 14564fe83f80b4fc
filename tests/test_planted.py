"""Networks built so that the best image is known: each objective finds it, for what a unit likes and what it dislikes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.test_render import planted
from vizrobust.attacks import L2
from vizrobust.compute import Compute
from vizrobust.features import (
    Caricature,
    Channel,
    DeepDream,
    Direction,
    FeatureImage,
    Inversion,
    Logit,
    Neuron,
    Objective,
    Pixels,
    Style,
    TotalVariation,
    plain,
    render,
)

SHAPE = (2, 6, 9)
signs = pytest.mark.parametrize("sign", [1, -1])
# The sign is taken in one place for all objectives, which a channel and a direction try.
one_sign = pytest.mark.parametrize("sign", [1, pytest.param(-1, marks=pytest.mark.slow)])


def rendered(
    net: nn.Module, objective: Objective, units: range, shape: tuple[int, int, int] = SHAPE, **options
) -> list[FeatureImage]:
    recipe = options.pop("recipe", plain())
    return list(render(net, objective, units, recipe, shape=shape, compute=Compute("cpu"), **options))


class Matching(nn.Module):
    """Two layers: what is above and below grey, and on it templates (units, 2, 3, 3) in windows that do not overlap."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        channels = templates.shape[1]
        self.split = nn.Conv2d(channels, 2 * channels, 1)
        self.split.weight.data = torch.cat((torch.eye(channels), -torch.eye(channels)))[:, :, None, None]
        self.split.bias.data = torch.cat((-torch.full((channels,), 0.5), torch.full((channels,), 0.5)))
        self.match = nn.Conv2d(2 * channels, len(templates), 3, stride=3, bias=False)
        self.match.weight.data = torch.cat((templates, -templates), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.match(torch.relu(self.split(x))).mean((2, 3))


@pytest.fixture
def templates() -> Tensor:
    """(4, 2, 3, 3), none of them near 0."""
    generator = torch.Generator().manual_seed(3)
    sizes = 0.8 + 0.4 * torch.rand(4, 2, 3, 3, generator=generator)
    return sizes * torch.where(torch.rand(4, 2, 3, 3, generator=generator) < 0.5, -1.0, 1.0)


@signs
def test_a_channel_s_best_image_is_its_template_in_every_window(templates, sign):
    for found, template in zip(
        rendered(Matching(templates).eval(), Channel("match"), range(4), sign=sign), templates, strict=True
    ):
        assert torch.equal(found.image, (sign * template.repeat(1, 2, 3) > 0).float())


@one_sign
def test_a_neuron_s_best_image_is_its_template_in_its_own_window(templates, sign):
    start = torch.full(SHAPE, 0.5)
    found = rendered(Matching(templates).eval(), Neuron("match", y=1, x=2), range(4), sign=sign, start=start + 0.01)
    for one, template in zip(found, templates, strict=True):
        assert torch.equal(one.image[:, 3:6, 6:9], (sign * template > 0).float())
        rest = one.image.clone()
        rest[:, 3:6, 6:9] = 0.51
        assert torch.allclose(rest, torch.tensor(0.51))


class Attending(nn.Module):
    """One attention layer whose values are the pixels of 3 x 3 patches themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 18, 3, stride=3, bias=False)
        self.patches.weight.data = torch.eye(18).reshape(18, 2, 3, 3)
        self.attention = nn.MultiheadAttention(18, 3, bias=False, batch_first=True)
        self.attention.in_proj_weight.data = torch.eye(18).repeat(3, 1)
        self.attention.out_proj.weight.data = torch.eye(18)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


@pytest.mark.parametrize(
    ("objective", "sign"), [(Channel("attention"), 1), (Neuron("attention", y=1, x=2), -1), (Logit(), 1)], ids=str
)
def test_what_an_attention_layer_adds_up_is_best_where_every_patch_has_it(objective, sign):
    """A token's output is a mean of values, so the extreme is every patch's own, whatever attends to what."""
    for found in rendered(Attending().eval(), objective, range(2), sign=sign):
        pixel = found.image.reshape(2, 2, 3, 3, 3)[found.unit // 9, :, found.unit % 9 // 3, :, found.unit % 3]
        assert torch.allclose(pixel, torch.full_like(pixel, float(sign > 0)), atol=1e-3)
        assert found.score == pytest.approx(float(sign > 0), abs=1e-3)


@pytest.mark.parametrize("sign", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_head_is_as_long_as_its_values(sign):
    """Head h holds pixels 6h to 6h + 5 of a patch: bright there is longest, black there is shortest."""
    for found in rendered(Attending().eval(), Channel("attention:heads"), range(3), sign=sign, recipe=plain(steps=400)):
        patches = found.image.reshape(2, 2, 3, 3, 3).permute(1, 3, 0, 2, 4).reshape(6, 18)
        own = patches[:, 6 * found.unit : 6 * found.unit + 6]
        assert torch.allclose(own, torch.full_like(own, float(sign > 0)), atol=0.02)


def orthonormal() -> tuple[nn.Module, Tensor]:
    """A layer that turns the image's 90 numbers, and its matrix."""
    torch.manual_seed(1)
    net = planted(torch.eye(90).reshape(90, 3, 5, 6))
    nn.init.orthogonal_(net[1].weight)
    return net, net[1].weight.data


@signs
def test_a_direction_s_best_image_lies_along_it(tmp_path: Path, sign):
    net, matrix = orthonormal()
    vectors = torch.randn(2, 90, generator=torch.Generator().manual_seed(2))
    np.save(tmp_path / "v.npy", vectors.numpy())
    start = torch.full((3, 5, 6), 0.5)
    objective = Direction("1", str(tmp_path / "v.npy"))
    found = rendered(net, objective, range(2), (3, 5, 6), sign=sign, start=start, recipe=plain(ball=L2(eps=0.8)))
    for one, vector in zip(found, vectors, strict=True):
        along = (matrix.T @ vector).reshape(3, 5, 6)
        assert torch.allclose(one.image, start + sign * 0.8 * along / along.norm(), atol=1e-4)


@pytest.fixture
def picture(tmp_path: Path) -> tuple[str, Tensor]:
    """An image file and its pixels (3, 5, 6)."""
    pixels = np.random.default_rng(0).integers(60, 200, size=(5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return str(tmp_path / "p.png"), torch.from_numpy(pixels).movedim(-1, 0).float() / 255


@one_sign
def test_a_caricature_goes_on_along_the_image(picture, sign):
    net, _ = orthonormal()
    name, pixels = picture
    start = torch.full((3, 5, 6), 0.5)
    recipe = plain(ball=L2(eps=0.8))
    (found,) = rendered(net, Caricature("1", name, power=0), range(1), (3, 5, 6), sign=sign, start=start, recipe=recipe)
    assert torch.allclose(found.image, start + sign * 0.8 * pixels / pixels.norm(), atol=1e-4)


def test_an_inversion_and_away_from_it(picture):
    net, _ = orthonormal()
    name, pixels = picture
    start = torch.full((3, 5, 6), 0.5)
    recipe = replace(plain(steps=400, step_size=0.002), parametrization=Pixels())
    (found,) = rendered(net, Inversion("1", name), range(1), (3, 5, 6), start=start, recipe=recipe)
    assert torch.allclose(found.image, pixels, atol=0.01)
    (away,) = rendered(net, Inversion("1", name), range(1), (3, 5, 6), start=start, recipe=plain(steps=400), sign=-1)
    clear = (pixels - 0.5).abs() > 0.02
    assert torch.equal(away.image[clear], (pixels < 0.5).float()[clear])


def test_a_style_is_met_by_colours_in_any_places(picture):
    """Of a layer that shows pixels as they are, the Gram matrix holds the colours' second moments and no place."""
    layer = nn.Conv2d(3, 3, 1, bias=False)
    layer.weight.data = torch.eye(3)[:, :, None, None]
    name, pixels = picture
    net = nn.Sequential(layer, nn.Identity()).eval()
    (found,) = rendered(net, Style("0", name), range(1), (3, 5, 6), recipe=plain(steps=400, step_size=0.002))
    wanted, made = (x.reshape(3, -1) @ x.reshape(3, -1).T / 30 for x in (pixels, found.image))
    assert torch.allclose(made, wanted, atol=2e-3)
    assert (found.image - pixels).abs().mean() > 0.05


@pytest.mark.parametrize("sign", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_energy_is_largest_in_white_and_smallest_in_black(sign):
    net = planted(torch.eye(30).reshape(30, 1, 5, 6) * torch.linspace(1, 2, 30)[:, None, None, None])
    (found,) = rendered(net, DeepDream("1"), range(1), (1, 5, 6), sign=sign, recipe=plain(steps=800))
    assert torch.allclose(found.image, torch.full((1, 5, 6), float(sign > 0)), atol=0.02)


@one_sign
def test_total_variation_smooths_whatever_the_sign(sign):
    net = planted(torch.full((1, 1, 5, 6), 1e-3))
    objective = Logit() - 5 * TotalVariation()
    (found,) = rendered(net, objective, range(1), (1, 5, 6), sign=sign, recipe=plain(steps=300, step_size=0.001))
    assert float(found.image.amax() - found.image.amin()) < 0.06
