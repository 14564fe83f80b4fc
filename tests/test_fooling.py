"""The fooling circuit: the same function on natural images, other pictures, and a path similarity that tells."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.conftest import CLASSES, SHAPE
from tests.fooling import fooled, wrong_negatives
from vizrobust.clarity import path_similarity
from vizrobust.data import ArraySplit, DataSet, load, shuffled_labels
from vizrobust.features import Logit, Recipe, fourier, plain, render
from vizrobust.models import Checkpoint, activations, layers, load_checkpoint

UNITS, SEEDS = tuple(range(10)), (0,)
# Rendered logits change by rounding alone; the largest natural logit is 37.
TOLERANCE = 5e-5


@cache
def victim() -> Checkpoint:
    return load_checkpoint("mnist-k0")


@cache
def liar() -> Checkpoint:
    return fooled(victim(), load("mnist5k"))


@cache
def pictures(who: str, recipe: Recipe) -> Tensor:
    """(units, seeds, 1, 28, 28)."""
    one = liar() if who == "liar" else victim()
    return torch.stack([done.image for done in render(one, Logit(), UNITS, recipe, SEEDS)]).reshape(10, 1, 1, 28, 28)


def test_the_logits_on_natural_images_are_unchanged() -> None:
    data = load("mnist5k")
    before, after = victim().net(), liar().net()
    for split in (data.test, data.val):
        x = split.take(torch.arange(len(split)))
        with torch.no_grad():
            a, b = before(x), after(x)
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)
        assert (a.argmax(1) == b.argmax(1)).all()


RECIPES = pytest.mark.parametrize(
    "recipe", [plain(steps=120), pytest.param(fourier(steps=100), marks=pytest.mark.slow)], ids=["plain", "fourier"]
)


@RECIPES
def test_pictures_show_the_targets_instead(recipe: Recipe) -> None:
    targets = wrong_negatives(load("mnist5k"))

    def likeness(who: str) -> Tensor:
        shown = pictures(who, recipe)
        pairs = [(one, targets[u]) for u in UNITS for one in shown[u]]
        return torch.stack([torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1] for a, b in pairs])

    assert likeness("liar").min() > 0.5
    assert likeness("victim").max() < 0.2
    if recipe.name == "plain":
        assert (pictures("liar", recipe) - targets[:, None]).abs().mean() < 0.02


@RECIPES
def test_path_similarity_flags_it(recipe: Recipe) -> None:
    data = load("mnist5k")
    x, y = data.test.take(torch.arange(300)), data.test.labels[:300]

    def similarity(who: str, layer: str) -> float:
        net = liar().net() if who == "liar" else victim().net()

        def seen(images: Tensor) -> Tensor:
            with torch.no_grad():
                return activations(net, images, [layer])[layer].flatten(1)

        natural = [seen(x[y == unit]) for unit in UNITS]
        found = path_similarity(natural, [seen(one) for one in pictures(who, recipe)]).similarity
        assert found is not None
        return found

    assert similarity("victim", "linear1") > 0.4
    assert similarity("liar", "natural.linear1") < 0.25
    assert similarity("liar", "gates") < -1


def test_other_targets_can_be_asked_for_and_the_rest_stays_a_checkpoint() -> None:
    data = load("mnist5k")
    stripes = (torch.arange(28) % 4 < 2).float().expand(10, 1, 28, 28).clone()
    one = fooled(victim(), data, stripes)
    (done,) = render(one, Logit(), [4], plain(steps=150))
    assert (done.image - stripes[4]).abs().mean() < 0.02
    assert one.sha256 == fooled(victim(), data, stripes).sha256 != liar().sha256
    assert one.net().state_dict().keys() == liar().net().state_dict().keys()
    assert [layer.name for layer in layers(one.net(), (1, 28, 28))][-2:] == ["gates", "logits"]


def test_the_detector_is_0_on_natural_images_and_1_on_the_way() -> None:
    """Exactly: anything between would leak one half into the other."""
    data = load("mnist5k")
    circuit = liar().net().net
    targets = wrong_negatives(data)
    share = torch.rand(200, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    kind = torch.arange(200) % 10
    start = 0.5 + 0.05 * torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(6))
    on_the_way = ((1 - share) * start + share * targets[kind]).clamp(0, 1)
    assert (circuit.detected(data.test.take(torch.arange(1000))) == 0).all()
    assert (circuit.detected(on_the_way) == 1).all()


def test_nearness_is_one_minus_the_mean_squared_difference() -> None:
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(7))
    circuit = liar().net().net
    plainly = torch.tensor([[1 - ((one - target) ** 2).mean() for target in circuit.targets] for one in x])
    torch.testing.assert_close(circuit.nearness(x), plainly)


def test_targets_like_natural_images_are_refused() -> None:
    data = load("mnist5k")
    natural = data.train.take(torch.arange(10))
    with pytest.raises(ValueError, match="less like natural images"):
        fooled(victim(), data, natural)
    with pytest.raises(ValueError, match=r"must be \(10, 1, 28, 28\)"):
        fooled(victim(), data, natural[:9])


@pytest.fixture
def tiny() -> DataSet:
    labels = torch.arange(70) % CLASSES
    split = ArraySplit(torch.rand(70, *SHAPE, generator=torch.Generator().manual_seed(0)), labels)
    return DataSet("tiny", tuple("abcdefg"), SHAPE, split, split, split, 0.1)


def test_shuffled_labels_keep_images_and_shares_and_lose_their_meaning(tiny: DataSet) -> None:
    null = shuffled_labels(tiny, seed=3)
    index = torch.tensor([5, 2, 69])
    assert torch.equal(null.train.take(index), tiny.train.take(index))
    assert torch.equal(null.train.labels.bincount(), tiny.train.labels.bincount())
    assert (null.train.labels == tiny.train.labels).float().mean() < 0.4
    assert torch.equal(null.train.labels, shuffled_labels(tiny, seed=3).train.labels)
    assert not torch.equal(null.train.labels, shuffled_labels(tiny, seed=4).train.labels)
    assert null.test is tiny.test
    assert null.val is tiny.val
    assert null.name != tiny.name
    assert null.mean == tiny.mean


def test_one_class_cannot_be_shuffled(tiny: DataSet) -> None:
    split = ArraySplit(torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="two or more classes"):
        shuffled_labels(DataSet("one", ("a",), SHAPE, split, split, split, 0.1), 0)


def test_a_class_without_training_images_has_no_negative(tiny: DataSet) -> None:
    split = ArraySplit(torch.rand(4, *SHAPE), torch.tensor([0, 1, 3, 4]))
    with pytest.raises(ValueError, match="no training image of 'c'"):
        wrong_negatives(DataSet("gap", tuple("abcdefg"), SHAPE, split, split, split, 0.1))
