"""Recipes by name and text, and what a data set knows in them: its colours, its magnitudes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vizrobust.attacks import L2
from vizrobust.data import ArraySplit, DataSet
from vizrobust.features import (
    CPPN,
    MACO,
    RECIPES,
    Adam,
    Affine,
    Fourier,
    Jitter,
    Logit,
    NAdam,
    Pad,
    Pixels,
    Recipe,
    SharedLowFrequency,
    render,
)
from vizrobust.features.parametrizations import IMAGENET_COLORS
from vizrobust.features.recipes import fourier, gradient, lucid, maco, parse_recipe, plain, with_data_statistics

from .conftest import SHAPE


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_reads_back_from_its_text(name):
    recipe = parse_recipe(name)
    assert recipe == RECIPES[name]()
    assert recipe.name == name
    assert parse_recipe(repr(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("plain(ball=L2(eps=3))", plain(ball=L2(eps=3.0))),
        ("PLAIN(steps=64, step_size=0.01)", plain(steps=64, step_size=0.01)),
        ("fourier(decay=1.5, size=33)", fourier(decay=1.5, size=33)),
        (" gradient() ", gradient()),
        ("Fourier(steps=9)", fourier(steps=9)),
        ("MACO", maco()),
        ('maco(spectrum="mnist5k", crops=2, low=0.9, high=1)', maco(spectrum="mnist5k", crops=2, low=0.9, high=1.0)),
    ],
)
def test_recipes_with_fields(text, recipe):
    assert parse_recipe(text) == recipe
    assert parse_recipe(repr(recipe)) == recipe


def test_a_recipe_of_one_s_own():
    text = (
        'Recipe(name="mine", parametrization=Fourier(decay=1.5), optimizer=Adam(lr=0.1), '
        "transforms=(Pad(), Jitter(size=0.1), Affine(rotate=5.0)), steps=10)"
    )
    recipe = parse_recipe(text)
    assert recipe.transforms == (Pad(), Jitter(size=0.1), Affine(rotate=5.0))
    assert recipe.parametrization == Fourier(decay=1.5)
    assert repr(recipe) == text


def test_the_documented_defaults():
    assert (plain().steps, plain().optimizer.step_size, plain().parametrization, plain().transforms) == (200, 0.005, Pixels(), ())
    assert (fourier().steps, fourier().optimizer.lr, fourier().transforms) == (200, 0.05, (Jitter(size=1 / 16),))
    assert (maco().steps, maco().optimizer, maco().parametrization) == (256, NAdam(lr=1.0), MACO())
    assert repr(maco().transforms) == "(Crops(low=0.5, high=0.75), Noise(deviation=0.01))"
    assert gradient().steps == 1
    assert gradient().parametrization.deviation == 0


def test_lucid_moves_a_picture_of_128_pixels_as_published():
    """Jitter by -4 … 4 pixels, zoom .90, .92 … 1.10, turns of -10 … 10 degrees and five times 0, jitter by -2 … 2."""
    recipe = lucid()
    assert (recipe.steps, recipe.optimizer, recipe.parametrization) == (512, Adam(lr=0.05), Fourier(decay=1.0, deviation=0.01))
    pad, first, scale, rotate, last = recipe.transforms
    assert (pad.mode, pad.value) == ("constant", 0.5)
    assert (first.reach((128, 128)), last.reach((128, 128))) == ((4, 4), (2, 2))
    assert (first.reach((64, 64)), last.reach((64, 64))) == ((2, 2), (1, 1))
    draws = np.random.default_rng(0).random((4000, 2))
    zoom = 1 / scale.matrices(draws[:, :1], (128, 128))[:, 0, 0]
    assert sorted(set(zoom.round(6))) == pytest.approx(list(np.arange(90, 111, 2) / 100))
    maps = rotate.matrices(draws, (128, 128))
    degrees = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])).round().astype(int)
    assert set(degrees) == set(range(-10, 11))
    assert (degrees == 0).mean() == pytest.approx(6 / 26, abs=0.02)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("plane", r"no recipe 'plane'; did you mean plain"),
        ("Adam()", r"no recipe 'Adam'"),
        ("plain(step=3)", r"plain: .*'step'"),
        ("plain(ball=Sphere(eps=3))", r"no name 'Sphere'"),
        ("plain(steps=0)", r"Recipe: steps must be at least 1, got 0"),
        ("plain(steps=-5)", r"Recipe: steps must be at least 1, got -5"),
        ("plain(steps=1.5)", r"Recipe: steps must be a whole number, got 1.5"),
        ("plain(size=2)", r"Recipe: size must be at least 4 pixels, got 2"),
        ('Recipe(name="a", parametrization=Pixels(), optimizer=Adam(), transforms=(Adam(),))', r"transforms must be of Jitter"),
        ('Recipe(name="a")', r"Recipe needs parametrization, optimizer"),
        ("plain(", r"cannot read recipe"),
    ],
)
def test_bad_recipes_get_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_recipe(text)


def data_set(name="npz:x.npz", channels=3):
    """Images whose channels vary together, each by another amount."""
    brightness = torch.rand(40, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.9, 0.5, 0.2, 0.1])[:channels].reshape(1, -1, 1, 1)
    own = 0.1 * torch.rand(40, channels, 6, 5, generator=torch.Generator().manual_seed(1))
    split = ArraySplit(0.9 * scale * brightness + own, torch.arange(40) % 2)
    return DataSet(name, ("a", "b"), (channels, 6, 5), split, split, split, 0.1)


def test_fourier_takes_the_data_set_s_own_colours():
    data = data_set()
    recipe = with_data_statistics(fourier(steps=7), data)
    directions = torch.tensor(recipe.parametrization.colors).reshape(3, 3).double()
    assert torch.allclose(directions @ directions.T, data.color_covariance, atol=1e-4)
    assert recipe.steps == 7
    assert parse_recipe(repr(recipe)) == recipe


def test_four_channels_have_colours_of_their_own():
    assert len(with_data_statistics(fourier(), data_set(channels=4)).parametrization.colors) == 16


def test_imagenet_keeps_the_published_colours():
    assert with_data_statistics(fourier(), data_set("imagenette")).parametrization.colors == IMAGENET_COLORS


def recipe_of(parametrization):
    return Recipe("mine", parametrization, Adam())


def test_maco_takes_the_data_set_s_own_magnitudes_by_reference():
    data = data_set()
    found = with_data_statistics(maco(), data).parametrization
    assert found == MACO(spectrum="npz:x.npz", colors=with_data_statistics(fourier(), data).parametrization.colors)
    assert with_data_statistics(maco(), data_set(channels=1)).parametrization == MACO(spectrum="npz:x.npz")
    assert with_data_statistics(maco(spectrum="other.npy"), data).parametrization.spectrum == "other.npy"
    assert with_data_statistics(maco(), None) == maco()


def test_priors_reach_what_is_shared_and_networks_of_coordinates():
    data = data_set()
    colors = with_data_statistics(fourier(), data).parametrization.colors
    assert with_data_statistics(recipe_of(CPPN(width=5)), data) == recipe_of(CPPN(width=5, colors=colors))
    inner = MACO(spectrum="npz:x.npz", colors=colors)
    assert with_data_statistics(recipe_of(SharedLowFrequency(inner=MACO(), group_size=2)), data) == recipe_of(
        SharedLowFrequency(inner=inner, group_size=2)
    )
    chosen = recipe_of(SharedLowFrequency(inner=Fourier(colors=IMAGENET_COLORS)))
    assert with_data_statistics(chosen, data) == chosen


@pytest.mark.parametrize("recipe", [plain(), gradient(), fourier(colors=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))], ids=lambda r: r.name)
def test_other_recipes_and_chosen_colours_stay_as_they_are(recipe):
    assert with_data_statistics(recipe, data_set()) == recipe


def test_grey_or_unknown_data_changes_nothing():
    assert with_data_statistics(fourier(), data_set(channels=1)) == fourier()
    assert with_data_statistics(fourier(), None) == fourier()


@pytest.mark.parametrize(
    "recipe",
    [
        lucid(steps=12),
        maco(steps=12, crops=2),
        recipe_of(CPPN(width=6, depth=2)),
        recipe_of(SharedLowFrequency(group_size=2)),
        Recipe("both", SharedLowFrequency(inner=MACO(), group_size=2), NAdam()),
    ],
    ids=lambda recipe: f"{recipe.name}-{type(recipe.parametrization).__name__}",
)
def test_a_few_steps_excite_the_unit(recipe, net, compute):
    """At the network's oblong size, two faces of each of two units."""
    recipe = replace(recipe, steps=6)
    done = list(render(net, Logit(), [2, 5], recipe, (0, 1), shape=SHAPE, batch_size=4, compute=compute))
    assert [(one.unit, one.seed) for one in done] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    for one in done:
        assert one.image.shape == SHAPE
        assert one.had_gradient
        assert one.score > one.trajectory[0][1]
    assert not torch.equal(done[0].image, done[1].image)


@pytest.mark.parametrize("recipe", [fourier(steps=1), maco(steps=1, crops=1)], ids=lambda recipe: recipe.name)
def test_spectra_start_from_an_image(recipe, net, compute):
    start = 0.5 + 0.2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    still = replace(recipe, optimizer=Adam(lr=1e-9))
    (found,) = render(net, Logit(), [2], still, shape=SHAPE, start=start, batch_size=1, compute=compute)
    likeness = torch.corrcoef(torch.stack((found.image.flatten(), start.flatten())))[0, 1]
    assert likeness > (0.999 if recipe.name == "fourier" else 0.4)
