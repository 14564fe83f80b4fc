"""What a picture costs and what it depends on: batches are as large as what was asked for, and their size is recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.compute import Compute
from vizrobust.features import (
    Channel,
    Direction,
    Fourier,
    Inversion,
    Logit,
    Pixels,
    Recipe,
    parse_objective,
    plain,
    plan_batches,
    render,
)
from vizrobust.features.picture_runs import RenderJob, images_of, missing, render_into
from vizrobust.features.recipes import OPTIMIZERS, Adam
from vizrobust.features.render import Batch, render_batches
from vizrobust.features.scorer import as_objective
from vizrobust.models import layer, layers, load_checkpoint
from vizrobust.runs import RunFolder


class Counted(nn.Module):
    """A network that counts the images that pass through it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.images = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.net(x)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 15, 16, 17, 19, 25, 33, 40, 64])
def test_the_cost_is_that_of_the_pictures_asked_for(count: int) -> None:
    planned = plan_batches([(0, seed) for seed in range(count)])
    assert sum(len(batch.pairs) for batch in planned) == count
    assert sum(batch.size for batch in planned) <= 1.5 * count
    assert all(batch.size <= 16 for batch in planned)


def test_one_picture_costs_one_picture_in_the_network() -> None:
    net = Counted(make_net())
    compute = Compute("cpu")
    found = {}
    for units, size in (((3,), None), ((3,), 16), (range(5), None)):
        net.images = 0
        list(render(net, Logit(), list(units), plain(steps=6), shape=SHAPE, compute=compute, batch_size=size))
        found[len(units), size] = net.images
    probe = found[1, None] - 7  # six steps and the finished picture; the rest is the look at the layers
    assert found == {(1, None): 7 + probe, (1, 16): 7 + probe, (5, None): 35 + probe}
    assert probe <= 6


pairs_ = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=40)


@given(pairs_, st.integers(1, 3), st.none() | st.integers(3, 20), st.data())
def test_a_run_that_was_stopped_anywhere_goes_on_with_the_same_batch_sizes(pairs, group_size, batch_size, data) -> None:  # type: ignore[no-untyped-def]
    whole = {pair: batch.size for batch in plan_batches(pairs, group_size, batch_size) for pair in batch.pairs}
    assert set(whole) == set(pairs)
    order = list(whole)
    done = {pair: whole[pair] for pair in order[: data.draw(st.integers(0, len(order)))]}
    rest = {pair: batch.size for batch in plan_batches(pairs, group_size, batch_size, done) for pair in batch.pairs}
    assert {**done, **rest} == whole
    assert not set(done) & set(rest)


def test_more_units_than_before_cost_what_they_add() -> None:
    done = {(unit, 0): 5 for unit in range(5)}
    assert plan_batches([(unit, 0) for unit in range(6)], recorded=done) == [Batch(((5, 0),), 1)]
    done = {(unit, 0): 16 for unit in range(16)}
    assert plan_batches([(unit, 0) for unit in range(17)], recorded=done) == [Batch(((16, 0),), 1)]


class Rough(nn.Module):
    """Logits whose gradient is NaN at pixels of 0 and infinite logits where the image is very bright."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(3 * 20 * 16, CLASSES)
        torch.nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        if self.how == "gradient":  # sqrt at 0: 0 * inf
            return logits + (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None] * 0
        if self.how == "some":
            corner = x[:, :, :2, :2]
            return logits + (corner - corner.detach()).sqrt().sum((1, 2, 3))[:, None]
        return logits / (x.mean((1, 2, 3), keepdim=True)[:, 0, 0] < 0.5)


@pytest.mark.parametrize("how", ["gradient", "some", "logits"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_picture_ever_holds_a_value_that_is_not_finite(how: str, name: str) -> None:
    for parametrization in (Pixels(), Fourier()):
        recipe = Recipe("rough", parametrization, OPTIMIZERS[name](), steps=4)
        for one in render(Rough(how), Logit(), [0, 2], recipe, shape=SHAPE, compute=Compute("cpu")):
            assert one.image.isfinite().all()
            assert 0 <= one.image.min() <= one.image.max() <= 1
            assert (one.nonfinite_gradients > 0) == (how != "logits") or how == "logits"


def test_entries_that_are_not_finite_count_as_zero_and_are_counted() -> None:
    (found,) = render(Rough("some"), Logit(), [2], plain(steps=5), shape=SHAPE, compute=Compute("cpu"))
    assert found.nonfinite_gradients == 5 * 3 * 2 * 2
    (start,) = render(Rough("some"), Logit(), [2], plain(steps=1, step_size=0.0), shape=SHAPE, compute=Compute("cpu"))
    assert torch.equal(found.image[:, :2, :2], start.image[:, :2, :2]), "no gradient, no change"
    assert (found.image[:, 2:] != start.image[:, 2:]).float().mean() > 0.9
    assert found.had_gradient


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (torch.full(SHAPE, 128, dtype=torch.uint8), "the start image is of type torch.uint8; give floating point"),
        (torch.full(SHAPE, 255.0), "the start image holds values from 255 to 255; give"),
        (torch.linspace(-0.5, 0.5, 960).reshape(SHAPE), "the start image holds values from -0.5 to 0.5"),
        (torch.full(SHAPE, torch.nan), "the start image holds 960 NaN or infinite values"),
    ],
)
def test_a_start_image_that_is_no_image_is_refused(start: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(render(make_net(), Logit(), [0], plain(steps=1), shape=SHAPE, start=start, compute=Compute("cpu")))


def brightest(activations, image, unit):  # type: ignore[no-untyped-def]
    maps = activations["conv2"]
    return maps[torch.arange(len(unit)), unit].amax((1, 2)) - 0.1 * image.mean((1, 2, 3))


def test_a_plain_function_is_an_objective() -> None:
    net, compute = make_net(), Compute("cpu")
    own = as_objective(brightest, net, SHAPE, compute)
    assert (own.layers, repr(own)) == (("conv2",), "brightest")
    found = list(render(net, brightest, [1, 4], plain(steps=8), shape=SHAPE, compute=compute))
    assert all(one.trajectory[-1][1] > one.trajectory[0][1] for one in found)
    mean = list(render(net, lambda a, x, u: a["conv2"][torch.arange(len(u)), u].mean((1, 2)), [1, 4], plain(steps=8),
                       shape=SHAPE, compute=compute))  # fmt: skip
    for one, other in zip(mean, render(net, Channel("conv2"), [1, 4], plain(steps=8), shape=SHAPE, compute=compute), strict=True):
        assert torch.equal(one.image, other.image)
    (disliked,) = render(net, brightest, [1], plain(steps=8), shape=SHAPE, compute=compute, sign=-1)
    assert disliked.trajectory[-1][1] > disliked.trajectory[0][1]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (lambda a, x, u: a["conv2"], r"returned a tensor of shape \(2, \d+, \d+, \d+\) for 2 images"),
        (lambda a, x, u: 3.0, "returned 3.0 for 2 images; return one number for each"),
        (lambda a, x, u: a["conv7"].mean((1, 2, 3)), "no layer 'conv7'; did you mean"),
        (lambda a, x, u: x.mean((1, 2, 3)), "names no layer"),
    ],
)
def test_a_function_that_is_no_objective_is_refused(objective, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        list(render(make_net(), objective, [0], plain(steps=1), shape=SHAPE, compute=Compute("cpu")))


class Tokens(nn.Module):
    """An image cut into 5 strips as tokens of torch's TransformerEncoder with its defaults: (tokens, images, units)."""

    def __init__(self, tokens: int = 5, dead: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = tokens
        self.embed = nn.Linear(3 * 20 * 16 // tokens, 12)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 9, 0.0), 1, enable_nested_tensor=False)
        self.pre = nn.Linear(12, 8)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, CLASSES)
        if dead:  # the only way to the second logit, for every image
            self.pre.bias.data[1] = -30.0
            self.head.weight.data = torch.eye(CLASSES, 8)

    def forward(self, x: Tensor) -> Tensor:
        strips = x.reshape(len(x), self.tokens, -1).transpose(0, 1)
        return self.head(self.relu(self.pre(self.encoder(self.embed(strips)))).mean(0))


@pytest.mark.parametrize("tokens", [4, 5])
@pytest.mark.parametrize("dead", [False, True])
def test_images_that_are_not_dimension_0_keep_apart(tokens: int, dead: bool) -> None:
    """Also where as many tokens as images make the axes look alike."""
    net, compute = Tokens(tokens, dead).eval(), Compute("cpu")
    many = list(render(net, Logit(), range(4), plain(steps=6, step_size=0.02), shape=SHAPE, compute=compute))
    for one in many:
        (alone,) = render(net, Logit(), [one.unit], plain(steps=6, step_size=0.02), shape=SHAPE, compute=compute)
        assert (alone.image - one.image).abs().max() < 1e-3
        assert alone.had_gradient == one.had_gradient
        (start,) = render(net, Logit(), [one.unit], plain(steps=1, step_size=0.0), shape=SHAPE, compute=compute)
        assert (start.image - one.image).abs().mean() > 0.02, "redirected ReLUs move the image of the dead unit too"


def test_activations_of_networks_whose_images_are_dimension_1_are_read_image_by_image() -> None:
    listed = {one.name: one for one in layers(Tokens().eval(), SHAPE)}
    assert listed["logits"].units == CLASSES
    assert all(one.reason or one.units == one.shape[0] for one in listed.values())


@pytest.mark.parametrize("kind", ["numpy", "torch", "tuple", "file"])
def test_a_direction_may_be_given_as_numbers(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    net, compute = make_net(), Compute("cpu")
    units = layer(net, SHAPE, "conv2").units
    rows = np.random.default_rng(0).normal(size=(2, units)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    vector = {"numpy": rows, "torch": torch.from_numpy(rows), "tuple": tuple(map(tuple, rows.tolist())),
              "file": str(tmp_path / "rows.npy")}[kind]  # fmt: skip
    one = Direction("conv2", vector)
    by_file = Direction("conv2", str(tmp_path / "rows.npy"))
    found, expected = (
        [image.image for image in render(net, made, [0, 1], plain(steps=4), shape=SHAPE, compute=compute)]
        for made in (one, by_file)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert one.rows == 2
    if kind != "file":
        assert parse_objective(repr(one)) == one
        assert hash(parse_objective(repr(one))) == hash(one)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ((), "must hold finite numbers"), ((1.0, float("nan")), "must hold finite numbers"),
        (((1.0, 2.0), (1.0,)), "must hold finite numbers"), (torch.zeros(2, 2, 2), "must hold finite numbers"),
        (("a", "b"), "must hold finite numbers"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_direction_are_refused(vector, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        Direction("conv2", vector)


def test_reference_images_are_run_at_the_size_of_each_batch() -> None:
    net, compute = make_net("small_cnn", (1, 28, 28)), Compute("cpu")
    recipe = Recipe("fit", Pixels(), Adam(), steps=2)
    batches = [Batch(((0, 0),), 1), Batch(((0, 1), (0, 2)), 2)]
    objective = Inversion("conv1", "mnist5k#3")
    found = list(render_batches(net, objective, batches, recipe, shape=(1, 28, 28), compute=compute))
    assert [(one.seed, one.batch_size) for one in found] == [(0, 1), (1, 2), (2, 2)]


def test_a_folder_of_an_older_version_is_continued(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Its rows name the same recipe in other words and no batch size; what is there is not rendered again."""
    checkpoint, compute = load_checkpoint("mnist-k8"), Compute("cpu")
    job = RenderJob(plain(steps=2), Logit(), (3, 5), seeds=(0, 1))

    def run() -> RunFolder:
        return RunFolder(tmp_path, "neurons", job.identity("fp32"))

    first = run()
    made = list(render_into(first, checkpoint, job, compute))
    first.close()
    assert [row["batch_size"] for row in made] == [4] * 4
    info = json.loads((tmp_path / "run.json").read_text().replace("NormalizedAscent", "Ascent"))
    (tmp_path / "run.json").write_text(json.dumps(info))
    old = [{**row, "recipe_text": row["recipe_text"].replace("NormalizedAscent", "Ascent")} for row in made[:3]]
    for row in old:
        del row["batch_size"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    again = run()
    assert missing(again, checkpoint, job) == [(5, 1)]
    (one,) = render_into(again, checkpoint, job, compute)
    assert (one["unit"], one["seed"], one["batch_size"]) == (5, 1, 1)
    assert images_of(again, checkpoint, job)[5].shape == (2, 1, 28, 28)
    again.close()
