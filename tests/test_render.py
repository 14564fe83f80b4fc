"""The render loop: it finds analytic optima, keeps the images of a batch apart and gives the network back untouched."""

import contextlib
import importlib
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.attacks import L2
from vizrobust.compute import Compute
from vizrobust.features import (
    Affine,
    Alignment,
    Channel,
    Crops,
    Diversity,
    FeatureImage,
    Inversion,
    Jitter,
    Logit,
    Neuron,
    Pixels,
    Recipe,
    TotalVariation,
    fourier,
    gradient,
    lucid,
    maco,
    plain,
    render,
)
from vizrobust.features.recipes import Adam, NormalizedAscent
from vizrobust.features.render import Batch, render_batches
from vizrobust.models import activations, load_checkpoint
from vizrobust.rng import Streams

RECIPES = [
    plain(steps=12),
    fourier(steps=12),
    gradient(),
    replace(plain(steps=12), transforms=(Jitter(), Affine())),
    lucid(steps=12),
    maco(steps=12, crops=2),
]
IDS = ["plain", "fourier", "gradient", "transformed", "lucid", "maco"]


def rendered(net, recipe, units=range(CLASSES), objective=Logit(), shape=SHAPE, **options):  # noqa: B008
    options.setdefault("compute", Compute("cpu"))
    return list(render(net, objective, list(units), recipe, shape=shape, **options))


def planted(weights):
    """A network whose logits are the images' inner products with `weights` (units, C, H, W)."""
    linear = nn.Linear(weights[0].numel(), len(weights), bias=False)
    linear.weight.data = weights.flatten(1).clone()
    return nn.Sequential(nn.Flatten(), linear).eval()


@pytest.fixture
def weights():
    """(4, 2, 5, 6), none so small that the box would not be reached in 200 steps."""
    generator = torch.Generator().manual_seed(0)
    sizes = 0.8 + 0.4 * torch.rand(4, 2, 5, 6, generator=generator)
    return sizes * torch.where(torch.rand(4, 2, 5, 6, generator=generator) < 0.5, -1.0, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_with_room_in_the_box_the_optimum_is_the_direction_of_the_weights(weights, sign):
    recipe = replace(plain(steps=20), parametrization=Pixels(deviation=0.0))
    for found, w in zip(rendered(planted(weights), recipe, range(4), shape=(2, 5, 6), sign=sign), weights, strict=True):
        expected = 0.5 + sign * 20 * 0.005 * (2 * 5 * 6) ** 0.5 * w / w.norm()
        assert torch.allclose(found.image, expected, atol=1e-5)
        assert found.score == pytest.approx(sign * float((expected * w).sum()), abs=1e-4)
        assert found.sign == sign


@pytest.mark.parametrize("sign", [1, -1])
def test_in_the_box_the_optimum_is_the_sign_of_the_weights(weights, sign):
    for found, w in zip(rendered(planted(weights), plain(), range(4), shape=(2, 5, 6), sign=sign), weights, strict=True):
        assert torch.equal(found.image, (sign * w > 0).float())
        assert found.status(0.0) == "saturated"


@pytest.mark.parametrize("sign", [1, -1])
def test_in_a_ball_the_optimum_lies_on_its_border_along_the_weights(weights, sign):
    start = torch.full((2, 5, 6), 0.5)
    found = rendered(planted(weights), plain(ball=L2(eps=1.0)), range(4), shape=(2, 5, 6), sign=sign, start=start)
    for one, w in zip(found, weights, strict=True):
        assert torch.allclose(one.image, start + sign * w / w.norm(), atol=1e-5)


def test_adam_on_a_spectrum_climbs_to_the_sign_of_a_smooth_template():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 10), indexing="ij")
    template = torch.stack((torch.sin(2 * x + y), y - x * x))[:, None]
    for found, w in zip(rendered(planted(template), fourier(steps=60), range(2), shape=(1, 12, 10)), template, strict=True):
        # The jitter looks at neighbours too, so a few pixels beside a change of sign may differ.
        agree = ((found.image > 0.5) == (w > 0)).float()
        assert agree[w.abs() > 0.3].mean() > 0.9


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_in_float64_an_image_alone_is_the_same_in_a_batch(recipe):
    net = make_net().double()
    recipe = replace(recipe, steps=1 if recipe.name == "gradient" else 8)
    (alone,) = rendered(net, recipe, [5], seeds=[3], batch_size=1)
    many = rendered(net, recipe, [4, 5, 6], seeds=range(5), batch_size=15)
    (together,) = [one for one in many if (one.unit, one.seed) == (5, 3)]
    assert alone.image.dtype == torch.float64
    assert (alone.image - together.image).abs().max() < 1e-9
    assert alone.score == pytest.approx(together.score, abs=1e-6)


def bit_for_bit() -> list[Any]:
    """Every recipe on one network; the deeper one and grey images by default with the two recipes that move and crop."""
    found = []
    for arch, shape in (("small_cnn", SHAPE), ("resnet_small", (3, 9, 11)), ("small_cnn", (1, 13, 11))):
        for recipe, name in zip(RECIPES, IDS, strict=True):
            quick = shape == SHAPE or (arch, name) in (("resnet_small", "transformed"), ("small_cnn", "maco"))
            marks = () if quick else pytest.mark.slow
            found.append(pytest.param(arch, shape, recipe, id=f"{arch}-{shape[0]} channels-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("arch", "shape", "recipe"), bit_for_bit())
def test_at_one_batch_size_an_image_is_the_same_bit_for_bit(arch, shape, recipe):
    check_it_is_the_same_in_every_batch(arch, shape, recipe)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_so_it_is_on_two_threads():
    check_it_is_the_same_in_every_batch("small_cnn", (3, 40, 40), fourier(steps=6))


def check_it_is_the_same_in_every_batch(arch, shape, recipe):
    net = make_net(arch, shape)

    @cache
    def alone(unit, size):
        batches = [Batch(((unit, 0),), size)]
        (found,) = render_batches(net, Logit(), batches, recipe, shape=shape, compute=Compute("cpu"))
        return found.image

    recipe = replace(recipe, steps=min(recipe.steps, 3))
    for units in ([6, 3, 1, 0, 5], [4], [3, 6, 6]):
        for one in rendered(net, recipe, units, shape=shape, batch_size=4):
            assert torch.equal(one.image, alone(one.unit, one.batch_size)), (units, one)


def test_units_come_unit_by_unit_and_seed_by_seed(net):
    found = rendered(net, plain(steps=2), [4, 1], seeds=[7, 0, 2], batch_size=4)
    assert [(one.unit, one.seed) for one in found] == [(4, 7), (4, 0), (4, 2), (1, 7), (1, 0), (1, 2)]
    assert not torch.equal(found[0].image, found[1].image)
    assert rendered(net, plain(steps=2), []) == []


def test_every_network_gets_the_same_start():
    flat = planted(torch.zeros(3, *SHAPE))
    other = planted(torch.zeros(5, *SHAPE))
    for one, two in zip(rendered(flat, plain(steps=1), range(3)), rendered(other, plain(steps=1), range(3)), strict=True):
        assert torch.equal(one.image, two.image)


def signs_of(net):
    return (
        [module.training for module in net.modules()],
        [weight.requires_grad for weight in net.parameters()],
        [None if weight.grad is None else weight.grad.clone() for weight in net.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        {key: value.clone() for key, value in net.state_dict().items()},
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Failing(nn.Module):
    """Raises at its third run."""

    def __init__(self, error):
        super().__init__()
        self.runs, self.error = 0, error

    def forward(self, x):
        self.runs += 1
        if self.runs == 3:
            raise self.error("third run")
        return x


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt], ids=["ends well", "error", "Ctrl-C"])
@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_the_network_is_given_back_untouched(recipe, fails):
    net = make_net("resnet_small").train()
    net.net.bn.eval()
    net.net.stem.weight.requires_grad_(False)
    net.net.linear.weight.grad = torch.ones_like(net.net.linear.weight)
    net.net.stage1.register_forward_hook(lambda *_: None)
    if fails:
        recipe = replace(recipe, steps=max(recipe.steps, 3))
        net.net.add_module("relu", nn.Sequential(nn.ReLU(), Failing(fails)))
    before = signs_of(net)
    if fails:
        with pytest.raises(fails, match="third run"):
            rendered(net, recipe, range(3))
    else:
        rendered(net, recipe, range(3))
    assert same(signs_of(net), before)


def test_between_two_images_the_network_is_already_the_caller_s():
    net = make_net("resnet_small").train()
    for _ in render(net, Logit(), [0, 1], plain(steps=1), shape=SHAPE, compute=Compute("cpu")):
        assert all(module.training for module in net.modules())


def test_no_weight_gradient_is_computed(net):
    fired = []
    for weight in net.parameters():
        weight.register_hook(fired.append)
    rendered(net, plain(steps=3), range(2))
    assert fired == []
    net(torch.rand(1, *SHAPE)).sum().backward()
    assert fired  # the hooks do tell


def count_runs(net):
    runs = {}
    for name, module in net.net.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: runs.update({name: runs.get(name, 0) + 1}))
    return runs


def test_the_forward_pass_stops_at_the_target_layer(net):
    runs = count_runs(net)
    rendered(net, plain(steps=4), range(3), Channel("conv2"))
    looked = dict(runs)  # with the passes that find out how the layer is laid out
    rendered(net, plain(steps=9), range(3), Channel("conv2"))
    more = {name: count - 2 * looked[name] for name, count in runs.items()}
    assert {name for name, count in more.items() if count} == {"conv1", "relu1", "conv2"}
    assert set(more.values()) <= {0, 5}


def test_one_neuron_sees_its_receptive_field_alone(net):
    start = torch.full(SHAPE, 0.5)
    (found,) = rendered(net, plain(steps=3), [4], Neuron("conv1", y=2, x=5), start=start)
    moved = (found.image != start).any(0).nonzero()
    assert moved.amin(0).tolist() == [3, 9]  # stride 2, kernel 4, padding 1
    assert moved.amax(0).tolist() == [6, 12]


def test_a_unit_without_gradient_is_dead():
    net = make_net()
    net.net.conv2.bias.data[:] = 10.0
    net.net.conv2.bias.data[[1, 4]] = -1e4
    found = rendered(net, plain(steps=3), range(6), Channel("relu2"))
    assert [one.status(0.0) == "dead" for one in found] == [False, True, False, False, True, False]
    assert not any(one.status(0.0) == "dead" for one in rendered(net, plain(steps=3), range(6), Channel("conv2")))


def test_saturated_means_25_points_above_the_data():
    def status(share, data_share, had_gradient=True):
        return FeatureImage(0, 0, 1, torch.zeros(1, 4, 3), 0.0, (), share, had_gradient).status(data_share)

    assert status(0.25, 0.0) == "ok"
    assert status(0.26, 0.0) == "saturated"
    assert status(1.0, 0.8) == "ok"  # as MNIST's own images are
    assert status(1.0, 0.0, had_gradient=False) == "dead"


def test_the_saturated_share_is_that_of_the_image(weights):
    for found in rendered(planted(weights), plain(steps=95), range(4), shape=(2, 5, 6)):
        share = float(((found.image < 0.02) | (found.image > 0.98)).float().mean())
        assert 0 < share < 1
        assert found.saturated_share == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 20, 21, 100])
def test_the_trajectory_runs_from_the_start_to_the_finished_image(net, steps):
    start = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
    (found,) = rendered(net, plain(steps=steps), [2], start=start)
    at, scores = zip(*found.trajectory, strict=True)
    assert at[0] == 0
    assert at[-1] == steps
    assert list(at) == sorted(set(at))
    assert len(at) <= 22
    with torch.no_grad():
        assert scores[0] == pytest.approx(float(net(start[None])[0, 2]), abs=2e-5)
        assert scores[-1] == pytest.approx(float(net(found.image[None])[0, 2]), abs=2e-5)
    assert found.score == pytest.approx(scores[-1], abs=1e-5)
    assert scores[-1] > scores[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_gradient_is_one_backward_pass_shown_as_it_is(net, sign):
    start = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
    passes = []
    net.register_forward_hook(lambda _m, inputs, _o: passes.append(inputs[0].requires_grad))
    (found,) = rendered(net, gradient(), [2], start=start, sign=sign, batch_size=1)
    assert passes[passes.index(True) :] == [True, False]  # the gradient's, and the finished picture's score
    x = start[None].clone().requires_grad_()
    (grad,) = torch.autograd.grad(sign * net(x)[0, 2], x)
    g = grad[0].double().numpy()
    expected = np.clip(0.5 + 0.5 * g / (3 * g.std()), 0, 1)
    assert np.abs(found.image.numpy() - expected).max() < 1e-5


def test_a_start_image_is_where_plain_begins(net):
    start = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
    for found in rendered(net, plain(steps=3, step_size=1e-6), range(3), start=start):
        assert (found.image - start).abs().max() < 1e-3
    near = rendered(net, plain(steps=30, ball=L2(eps=0.5)), range(3), start=start)
    assert all(float((one.image - start).norm()) <= 0.5 + 1e-5 for one in near)
    assert any(float((one.image - start).norm()) > 0.4 for one in near)


def test_a_start_image_that_cannot_be_taken_is_refused(net):
    class Noise(Pixels):
        invert = None

    with pytest.raises(ValueError, match=r"recipe 'noise' cannot start from an image; take plain, fourier or gradient"):
        rendered(net, Recipe("noise", Noise(), NormalizedAscent()), [0], start=torch.rand(SHAPE))
    with pytest.raises(ValueError, match=r"the start image is \(1, 28, 28\), the recipe's images are \(3, 20, 16\)"):
        rendered(net, plain(steps=1), [0], start=torch.rand(1, 28, 28))


def test_a_recipe_s_size_is_the_size_of_its_images(net):
    found = rendered(net, plain(steps=2, size=30), range(2), Channel("conv2"))
    assert [one.image.shape for one in found] == [(3, 30, 30)] * 2


def test_transforms_are_on_the_way_and_not_in_the_score(net):
    """The score is of the finished image itself, and the transforms change how it comes about."""
    moved = Recipe("moved", Pixels(), NormalizedAscent(), (Affine(scale=0.3, rotate=40.0),), steps=5)
    still = replace(moved, transforms=())
    for one, two in zip(rendered(net, moved), rendered(net, still), strict=True):
        assert not torch.equal(one.image, two.image)
        with torch.no_grad():
            assert one.score == pytest.approx(float(net(one.image[None])[0, one.unit]), abs=1e-5)


def test_adam_climbs_image_by_image(net):
    recipe = Recipe("adam", Pixels(), Adam(lr=0.02), steps=20)
    for one in rendered(net, recipe):
        assert one.score > one.trajectory[0][1]


def test_bf16_gives_float32_images_and_climbs(net):
    for recipe in (plain(steps=10), fourier(steps=10)):
        for one in rendered(net, recipe, range(3), compute=Compute("cpu", precision="bf16")):
            assert one.image.dtype == torch.float32
            with torch.no_grad():
                assert one.score > one.trajectory[0][1]


def test_an_unknown_layer_is_refused_before_anything_is_rendered(net):
    with pytest.raises(ValueError, match=r"no layer 'conv3'; did you mean conv"):
        rendered(net, plain(), [0], Channel("conv3"))
    assert "conv2" in activations(net, torch.rand(1, *SHAPE), ["conv2"])


def asleep():
    """A network of which a ReLU lets nothing of unit 1 through at the start, though a better image would wake it."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3, bias=True), nn.Conv2d(4, 3, 1, bias=False)
    nn.init.constant_(conv.bias, 0.3)
    head.weight.data = torch.eye(4)[:3].reshape(3, 4, 1, 1).clone()
    conv.weight.data[1] = 0.1
    conv.bias.data[1] = -0.15 - 0.5 * float(conv.weight.data[1].sum())
    return nn.Sequential(conv, nn.ReLU(inplace=True), head).eval()


@pytest.mark.parametrize("recipe", [plain(steps=40), fourier(steps=60)], ids=["plain", "fourier"])
def test_a_sleeping_unit_is_woken_and_the_others_keep_every_bit(recipe):
    net = asleep()
    shape = (3, 9, 11)
    found = rendered(net, recipe, range(3), Channel("2"), shape=shape, batch_size=3)
    assert found[1].trajectory[0][1] == 0
    assert found[1].score > 0.05
    assert found[1].status(1.0) == "ok"
    lively = rendered(net, recipe, [0, 2, 0], Channel("2"), shape=shape, batch_size=3)
    assert torch.equal(lively[0].image, found[0].image)
    assert torch.equal(lively[1].image, found[2].image)


def test_without_redirection_a_sleeping_unit_would_stay_asleep(monkeypatch):
    monkeypatch.setattr(importlib.import_module("vizrobust.features.render"), "redirected_relu", contextlib.nullcontext)
    (_, found, _) = rendered(asleep(), plain(steps=40), range(3), Channel("2"), shape=(3, 9, 11))
    assert found.status(1.0) == "dead"


def test_faces_of_a_group_come_out_alike_whatever_is_asked_with_them(net):
    objective = Channel("conv2") - 2 * Diversity("conv2", group_size=3)
    whole = {(one.unit, one.seed): one for one in rendered(net, plain(steps=8), [1, 4], objective, seeds=range(6), batch_size=7)}
    assert len(whole) == 12
    part = rendered(net, plain(steps=8), [4], objective, seeds=[5, 1], batch_size=7)
    assert sorted((one.unit, one.seed) for one in part) == [(4, 1), (4, 5)]
    for one in part:
        assert torch.equal(one.image, whole[4, one.seed].image)
    with pytest.raises(ValueError, match="a batch of 2 has no room for a group of 3 images; make it at least 3"):
        rendered(net, plain(steps=1), [0], objective, batch_size=2)


def test_diversity_makes_faces_differ_and_alignment_makes_them_alike(net):
    def likeness(objective):
        found = rendered(net, plain(steps=40), [0, 3], objective, seeds=range(4), batch_size=8)
        images = torch.stack([one.image for one in found])
        seen = activations(net, images, ["conv2"])
        return float(Alignment("conv2", group_size=4)(seen, images, torch.zeros(8)).mean()), float(
            Diversity("conv2", group_size=4)(seen, images, torch.zeros(8)).mean()
        )

    with torch.no_grad():
        alone = likeness(Channel("conv2"))
        diverse = likeness(Channel("conv2") - 5 * Diversity("conv2", group_size=4))
        aligned = likeness(Channel("conv2") + 5 * Alignment("conv2", group_size=4))
    assert diverse[1] < alone[1] - 0.02
    assert aligned[0] > alone[0] + 0.02


def test_negative_keeps_penalties_as_they_are(net):
    (smooth,) = rendered(net, plain(steps=30), [2], Channel("conv2") - 30 * TotalVariation(), sign=-1)
    (rough,) = rendered(net, plain(steps=30), [2], Channel("conv2"), sign=-1)

    def variation(image):
        return float(TotalVariation()({}, image[None], torch.zeros(1)))

    assert variation(smooth.image) < variation(rough.image)
    with torch.no_grad():
        disliked = activations(net, rough.image[None], ["conv2"])["conv2"][0, 2].mean()
    assert rough.score == pytest.approx(-float(disliked), abs=1e-5)


def test_an_inversion_brings_back_what_a_linear_layer_can_tell(tmp_path):
    """With as many outputs as pixels nothing is lost, so the image itself comes back."""
    torch.manual_seed(1)
    pixels = (255 * torch.rand(5, 6, 3)).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    linear = nn.Linear(90, 90)
    nn.init.orthogonal_(linear.weight)
    net = nn.Sequential(nn.Flatten(), linear).eval()
    recipe = Recipe("adam", Pixels(), Adam(lr=0.05), steps=150)
    (found,) = rendered(net, recipe, [0], Inversion("1", str(tmp_path / "a.png")), shape=(3, 5, 6))
    assert np.abs(found.image.movedim(0, -1).numpy() - pixels / 255).max() < 0.03
    assert found.score > -1e-3


def test_a_film_shows_the_way_from_the_start_to_the_picture(net):
    (found,) = rendered(net, plain(steps=10), [2], frames=4)
    assert found.frames.dtype == torch.uint8
    assert found.frames.shape == (4, *SHAPE)
    (short,) = rendered(net, plain(steps=3), [2], frames=4)
    assert torch.equal(
        found.frames[0], (Pixels().init(SHAPE, Streams(0, ["2/0"], "render").child("start"))[0] * 255).round().byte()
    )
    assert torch.equal(found.frames[-1], (found.image * 255).round().byte())
    assert torch.equal(short.frames[3], found.frames[1])
    (none,) = rendered(net, plain(steps=3), [2])
    assert none.frames is None


def test_random_crops_are_scored_together(net):
    recipe = replace(plain(steps=30), transforms=(Crops(count=3, low=0.8, high=0.9),))
    found = rendered(net, recipe, range(3), Channel("conv2"), batch_size=3)
    assert all(one.score > one.trajectory[0][1] for one in found)
    again = rendered(net, recipe, [2, 0, 1], Channel("conv2"), batch_size=3)
    assert torch.equal(again[1].image, found[0].image)


def test_a_checkpoint_is_enough_to_render():
    checkpoint = load_checkpoint("mnist-k8")
    (found,) = render(checkpoint, Logit(), [3], plain(steps=2))
    assert found.image.shape == (1, 28, 28)
    assert found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="render needs the shape"):
        next(render(checkpoint.net(), Logit()))
    with pytest.raises(ValueError, match=r"TotalVariation\(\) names no layer"):
        next(render(checkpoint, TotalVariation()))
    with pytest.raises(ValueError, match=r"no unit 10 in layer 'logits', which has 10 \(0 to 9\)"):
        next(render(checkpoint, Logit(), [10]))
