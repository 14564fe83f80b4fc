"""Pictures with an opacity: composed as the formula says, see-through where nothing is needed, kept whole by their files."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import SHAPE, make_net
from tests.test_cli import checkpoint, run
from vizrobust.compute import Compute
from vizrobust.data import load, saturated_share
from vizrobust.features import (
    CPPN,
    MACO,
    Adam,
    AlphaChannel,
    Channel,
    Fourier,
    Logit,
    NormalizedAscent,
    PixelDifference,
    Pixels,
    Provenance,
    Recipe,
    RenderJob,
    Scorer,
    SharedLowFrequency,
    images_of,
    parse_recipe,
    render,
    rerender,
    with_data_statistics,
)
from vizrobust.features.parametrizations import alpha_penalized, composited, over_background
from vizrobust.features.pictures import png_bytes, read_opaque, read_png, to_uint8
from vizrobust.features.render import Batch, render_batches
from vizrobust.models import evaluating, load_checkpoint
from vizrobust.rng import Streams
from vizrobust.runs import write_png

CLEAR = 'Recipe(name="clear", parametrization=AlphaChannel(), optimizer=Adam(lr=0.05), transforms=(Jitter(),))'


def z_of(param, shape, n=3, spread=3.0):
    """Numbers far from where they start, so that opacities differ."""
    z = param.init(shape, Streams(0, range(n)))
    return z + spread * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))


def seen_in_numpy(image, ground):
    colors, opacity = image.double().numpy()[:, :-1], image.double().numpy()[:, -1:]
    return opacity * colors + (1 - opacity) * ground


# The picture and what is seen of it


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 9, 5)], ids=str)
@pytest.mark.parametrize("inner", [Fourier(), Pixels(), MACO(), SharedLowFrequency(group_size=3)], ids=repr)
def test_colours_are_those_of_inner_and_opacity_one_more_spectrum(inner, shape):
    param = AlphaChannel(inner, decay=1.5)
    z = z_of(param, shape)
    z = param.constrain(z, z)
    image = param(z)
    assert torch.equal(image[:, :-1], inner(z[:, :-1].contiguous()))
    assert torch.equal(image[:, -1:], Fourier(decay=1.5)(z[:, -1:].contiguous()))
    start = param(param.init(shape, Streams(0, range(3))))[:, -1]
    assert (start - 0.5).abs().max() < 0.05
    assert len({float(one.sum()) for one in start}) == 3
    assert param.group_size == getattr(inner, "group_size", 1)


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 9, 5)], ids=str)
def test_what_is_seen_is_the_composition_of_the_book(shape):
    param = AlphaChannel()
    image = param(z_of(param, shape))
    assert torch.allclose(composited(param, image).double(), torch.from_numpy(seen_in_numpy(image, 0.5)), atol=1e-6)
    ground = Fourier(decay=1.5, deviation=2 / max(shape[1:]) ** 0.5)
    drawn = ground(ground.init(shape, Streams(0, range(3), "grounds")))
    over = composited(param, image, Streams(0, range(3), "grounds"))
    assert torch.allclose(over.double(), torch.from_numpy(seen_in_numpy(image, drawn.double().numpy())), atol=1e-6)
    opaque = torch.cat((image[:, :-1], torch.ones_like(image[:, :1])), 1)
    assert torch.equal(composited(param, opaque, Streams(0, range(3))), image[:, :-1])
    assert torch.equal(composited(Fourier(), image, Streams(0, range(3))), image)


def test_grounds_are_drawn_anew_each_in_its_own_way_and_smooth():
    shape, streams = (3, 32, 24), Streams(0, range(40), "grounds")
    param = AlphaChannel()
    clear = torch.zeros(40, 4, *shape[1:])
    first, second = composited(param, clear, streams), composited(param, clear, streams)
    assert (first - second).abs().mean((1, 2, 3)).min() > 0.05
    assert (first[0] - first[1]).abs().mean() > 0.05
    again = composited(param, clear[[3, 1]], Streams(0, [3, 1], "grounds"))
    assert torch.equal(again, first[[3, 1]])
    # From near black to near white, dark and bright on the whole, and smooth: neighbours are alike (two strangers: 1.41).
    assert first.amin() < 0.05
    assert first.amax() > 0.95
    assert first.mean((1, 2, 3)).std() > 0.05
    assert (first[..., 1:] - first[..., :-1]).std() < 0.5 * first.std()
    for size in ((1, 12, 20), (3, 64, 48), (3, 129, 129)):
        blank = torch.zeros(20, size[0] + 1, *size[1:])
        assert 0.18 < composited(param, blank, Streams(0, range(20), "grounds")).std() < 0.35
    assert torch.equal(composited(AlphaChannel(background=0.0), clear, streams), torch.full((40, *shape), 0.5))
    grey = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    for inner in (Fourier(colors=grey), SharedLowFrequency(Fourier(colors=grey), group_size=1)):
        ground = composited(AlphaChannel(inner), clear, streams)
        assert torch.allclose(ground[:, :1].expand_as(ground), ground, atol=1e-6)


def test_scores_are_worth_less_the_more_is_opaque():
    image = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    mean = image[:, 2].double().mean((1, 2)).numpy()
    scores = torch.tensor([4.0, 0.0, -2.0, 1e-3])
    expected = np.where(scores.numpy() >= 0, scores.numpy() * (1 - mean), scores.numpy() * (1 + mean))
    assert np.allclose(alpha_penalized(AlphaChannel(), scores, image).double(), expected, atol=1e-6)
    for score in (3.0, -3.0):
        x = image.clone().requires_grad_()
        (grad,) = torch.autograd.grad(alpha_penalized(AlphaChannel(), torch.full((4,), score), x).sum(), x)
        assert torch.allclose(grad[:, 2], torch.tensor(-3.0 / 30))
        assert (grad[:, :2] == 0).all()
    assert alpha_penalized(Fourier(), scores, image) is scores


def test_it_starts_from_an_image_opaque():
    images = 0.02 + 0.96 * torch.rand(2, 3, 9, 5, generator=torch.Generator().manual_seed(0))
    param = AlphaChannel()
    found = param(param.invert(images))
    assert torch.allclose(found[:, :3], images, atol=1e-4)
    assert torch.allclose(found[:, 3], torch.tensor(0.98), atol=1e-4)


def test_texts_and_what_cannot_be():
    param = AlphaChannel(inner=Pixels(), background=0.5)
    assert repr(param) == "AlphaChannel(inner=Pixels(), background=0.5)"
    assert parse_recipe(CLEAR).parametrization == AlphaChannel()
    with pytest.raises(ValueError, match="inner must be"):
        AlphaChannel(inner=CPPN())
    with pytest.raises(ValueError, match="background must not be negative"):
        AlphaChannel(background=-1.0)


def test_a_data_set_s_colours_reach_the_inner_parametrization():
    data = load("digits")
    spectral = Recipe("clear", AlphaChannel(SharedLowFrequency(MACO())), Adam())
    assert with_data_statistics(spectral, data).parametrization == AlphaChannel(SharedLowFrequency(MACO(spectrum=data.name)))


# Files


@pytest.mark.parametrize(("planes", "mode"), [(2, "LA"), (4, "RGBA")])
def test_a_png_keeps_colours_and_opacity_as_they_are(tmp_path, planes, mode):
    image = torch.rand(planes, 7, 5, generator=torch.Generator().manual_seed(0))
    image[-1, 0] = 0  # colours of what cannot be seen are kept too
    file = tmp_path / "a.png"
    write_png(file, to_uint8(image), {})
    with Image.open(file) as picture:
        assert picture.mode == mode
    exact = (image * 255).round() / 255
    assert torch.equal(read_png(file), exact)
    over_grey = seen_in_numpy(exact[None], 0.5)[0]
    assert torch.allclose(read_png(file, planes - 1).double(), torch.from_numpy(over_grey), atol=1e-6)
    assert torch.equal(read_png(file, planes), exact)
    drawn = read_opaque(file)
    assert drawn.dtype == np.uint8
    assert drawn.shape == ((7, 5) if planes == 2 else (7, 5, 3))
    assert np.abs(drawn.reshape(7, 5, -1) - 255 * over_grey.transpose(1, 2, 0)).max() <= 0.51
    assert png_bytes(to_uint8(image)).startswith(b"\x89PNG")


def test_opaque_files_are_drawn_as_ever(tmp_path):
    for shape in ((6, 4), (6, 4, 3)):
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        write_png(tmp_path / "a.png", pixels, {})
        assert np.array_equal(read_opaque(tmp_path / "a.png"), pixels)
        assert torch.equal(read_png(tmp_path / "a.png", 1 if len(shape) == 2 else 3), read_png(tmp_path / "a.png"))


# Rendered


@pytest.mark.parametrize(
    "recipe",
    [
        parse_recipe(CLEAR),
        Recipe("pixels", AlphaChannel(Pixels()), NormalizedAscent()),
    ],
    ids=["fourier", "pixels"],
)
def test_score_saturation_and_films_are_those_over_mid_grey(recipe):
    net, shape, recipe = make_net(), SHAPE, replace(recipe, steps=4)
    (one,) = render(net, Channel("conv2"), [3], recipe, shape=shape, batch_size=2, frames=2, compute=Compute("cpu"))
    assert one.image.shape == (4, *shape[1:])
    shown = over_background(one.image)[None]
    scorer = Scorer.of(net, Channel("conv2"), shape, Compute("cpu"))
    with evaluating(net), torch.no_grad():
        assert one.score == pytest.approx(float(scorer(shown, torch.tensor([3]))), rel=1e-5)
    assert one.saturated_share == pytest.approx(float(saturated_share(shown)), abs=1e-4)
    assert torch.equal(one.frames[-1], (shown[0] * 255).round().byte())
    assert one._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_picture_is_the_same_whatever_the_other_images(sign):
    recipe = replace(parse_recipe(CLEAR), steps=5)

    compute = Compute("cpu")

    @cache
    def alone(unit, size):
        batches = [Batch(((unit, 0),), size)]
        (found,) = render_batches(make_net(), Logit(), batches, recipe, shape=SHAPE, compute=compute, sign=sign)
        return found.image

    for units in ([0, 1, 2, 3, 4], [4, 2, 0], [3], [1, 1, 4, 3]):
        for one in render(make_net(), Logit(), units, recipe, shape=SHAPE, sign=sign, batch_size=3, compute=compute):
            assert torch.equal(one.image, alone(one.unit, one.batch_size))
    assert not torch.equal(alone(0, 3), alone(1, 3))


class Corner(nn.Module):
    """One unit that sees the upper left quarter of an image, bright, and nothing else."""

    def forward(self, x):
        height, width = x.shape[2] // 2, x.shape[3] // 2
        return x[:, :, :height, :width].mean((1, 2, 3))[:, None] + 0 * x.mean((1, 2, 3))[:, None]


def test_what_the_network_does_not_look_at_becomes_transparent():
    (one,) = render(Corner(), Logit(), [0], replace(parse_recipe(CLEAR), transforms=()), shape=(1, 12, 10), batch_size=1)
    opacity = one.image[-1]
    assert opacity[:6, :5].mean() > 0.6
    assert opacity[6:, 5:].mean() < 0.1
    assert one.image[0, :6, :5].mean() > 0.9


def test_each_step_is_seen_over_grounds_of_its_own_and_the_end_over_grey():
    net, looks = Corner(), []
    net.register_forward_pre_hook(lambda module, args: looks.append(args[0].detach().clone()))
    param, shape = AlphaChannel(Pixels()), (1, 12, 10)
    recipe = Recipe("clear", param, NormalizedAscent(step_size=1e-3), steps=3)
    (one,) = render(net, Logit(), [0], recipe, shape=shape, batch_size=1, compute=Compute("cpu"))
    *_, first, second, third, last = looks
    streams = Streams(0, ["0/0"], "render")
    grounds = streams.child("transforms")
    start = param(param.init(shape, streams.child("start")))
    assert torch.equal(first, composited(param, start, grounds))
    # The picture hardly moves in three small steps, so it is over other grounds.
    assert torch.allclose(second, composited(param, start, grounds), atol=0.03)
    assert torch.allclose(third, composited(param, start, grounds), atol=0.03)
    assert min(float((first - second).abs().mean()), float((second - third).abs().mean())) > 0.05
    assert torch.equal(last[0], over_background(one.image))


def test_a_three_is_opaque_where_its_strokes_are_and_clear_at_the_border():
    (three,) = render(load_checkpoint("mnist-k8"), Logit(), [3], replace(parse_recipe(CLEAR), steps=80), batch_size=1)
    color, opacity = three.image
    data = load("mnist5k")
    mean = data.test.take(torch.nonzero(data.test.labels == 3)[:60, 0])[:, 0].mean(0)
    border = torch.ones(28, 28, dtype=torch.bool)
    border[3:-3, 3:-3] = False
    strokes = mean > 0.5
    assert opacity[strokes].mean() > opacity[border].mean() + 0.3
    assert opacity[border].mean() < 0.2
    assert color[strokes & (opacity > 0.5)].mean() > 0.6


# The command line


def test_a_run_keeps_the_opacity_and_renders_it_again(tmp_path):
    net, out = checkpoint(tmp_path / "net.safetensors"), tmp_path / "run"
    args = ("--units", "2:4", "--steps", 3, "--batch-size", 2, "--recipe", CLEAR, "--movie")
    result = run("neurons", net, *args, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        file = out / row["image"]
        made = Provenance.read(file)
        assert made.pixels.shape == (8, 8, 2)
        again = rerender(made, load_checkpoint(str(net)))
        assert not PixelDifference.between(made.pixels, to_uint8(again.image))
        assert round(again.score, 5) == row["score"]
        assert run("rerender", file).stdout == "same pixels\n"
        with Image.open(out / row["film"]) as film:
            assert film.mode in ("L", "P")
    request = RenderJob(made.recipe, Logit(), (2, 3), batch_size=2)
    loaded = load_checkpoint(str(net))

    class Folder:
        folder = out

        def rows(self):
            return rows

    found = images_of(Folder(), loaded, request)[3]
    assert found.shape == (1, 1, 8, 8)
    assert torch.allclose(found[0], over_background(read_png(out / rows[1]["image"])), atol=1e-6)
    # The sheet holds the picture over grey, enlarged pixel by pixel.
    with Image.open(out / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    values = set(read_opaque(out / rows[0]["image"]).ravel().tolist())
    assert values <= set(pixels.ravel().tolist())


def test_pictures_in_colour_are_rgba_and_inversions_are_compared_over_grey(tmp_path):
    net, image = checkpoint(tmp_path / "net.safetensors"), tmp_path / "image.png"
    write_png(image, np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8), {})
    recipe = CLEAR.replace("0.05", "0.1")
    result = run("invert", net, image, "--layer", "conv2", "--steps", 2, "--recipe", recipe, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    (one,) = render(make_net(), Logit(), [0], replace(parse_recipe(CLEAR), steps=1), shape=SHAPE, batch_size=1)
    assert to_uint8(one.image).shape == (20, 16, 4)
