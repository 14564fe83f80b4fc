"""Recipes by name and text, and the data set's own colours in them."""

import pytest
import torch

from vizrobust.attacks import L2
from vizrobust.data import ArraySplit, DataSet
from vizrobust.features import RECIPES, Affine, Fourier, Jitter, Pad, Pixels, with_priors, fourier, gradient, parse_recipe, plain
from vizrobust.features.parametrizations import IMAGENET_COLORS


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
        ("PLAIN(steps=64, rate=0.01)", plain(steps=64, rate=0.01)),
        ("fourier(decay=1.5, size=33)", fourier(decay=1.5, size=33)),
        (" gradient() ", gradient()),
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
    assert (plain().steps, plain().optimizer.rate, plain().parametrization, plain().transforms) == (200, 0.005, Pixels(), ())
    assert (fourier().steps, fourier().optimizer.lr, fourier().transforms) == (200, 0.05, (Jitter(size=1 / 16),))
    assert gradient().steps == 1
    assert gradient().parametrization.deviation == 0


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
    recipe = with_priors(fourier(steps=7), data)
    directions = torch.tensor(recipe.parametrization.colors).reshape(3, 3).double()
    assert torch.allclose(directions @ directions.T, data.color_covariance, atol=1e-4)
    assert recipe.steps == 7
    assert parse_recipe(repr(recipe)) == recipe


def test_four_channels_have_colours_of_their_own():
    assert len(with_priors(fourier(), data_set(channels=4)).parametrization.colors) == 16


def test_imagenet_keeps_the_published_colours():
    assert with_priors(fourier(), data_set("imagenette")).parametrization.colors == IMAGENET_COLORS


@pytest.mark.parametrize("recipe", [plain(), gradient(), fourier(colors=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))], ids=lambda r: r.name)
def test_other_recipes_and_chosen_colours_stay_as_they_are(recipe):
    assert with_priors(recipe, data_set()) == recipe


def test_grey_or_unknown_data_changes_nothing():
    assert with_priors(fourier(), data_set(channels=1)) == fourier()
    assert with_priors(fourier(), None) == fourier()
