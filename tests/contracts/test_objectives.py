"""What every objective of the catalogue must do: climb under its gradient, and look at its own group of faces alone."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SHAPE
from vizrobust.compute import Compute
from vizrobust.features import OBJECTIVES, Channel, Scorer, Sum, parse_objective
from vizrobust.features.objectives import group_size_of, main_term

UNITS = torch.tensor([3, 0, 6, 2, 3, 1])
FACES = 3


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES)
def objective(request, tmp_path):
    """The objective on a layer with positions, its other fields at their defaults."""
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(7, 32)))
    pixels = np.random.default_rng(1).integers(0, 255, size=(*SHAPE[1:], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seen.png")
    given = {"layer": "conv2", "vector": str(tmp_path / "vectors.npy"), "image": str(tmp_path / "seen.png"), "group_size": FACES}
    return request.param(**{field.name: given[field.name] for field in fields(request.param) if field.name in given})


@pytest.fixture
def pictures():
    return 0.3 + 0.4 * torch.rand(len(UNITS), *SHAPE, generator=torch.Generator().manual_seed(0))


def scores(net, objective, x):
    if not objective.layers:
        return objective({}, x, UNITS)
    return Scorer.of(net, objective, SHAPE, Compute("cpu"))(x, UNITS)


def test_gives_one_score_per_image(net, pictures, objective):
    assert scores(net, objective, pictures).shape == (6,)


def test_a_few_steps_along_its_gradient_raise_every_score(net, pictures, objective):
    x = pictures
    before = scores(net, objective, x)
    for _ in range(5):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(scores(net, objective, x).sum(), x)
        x = x + 0.05 * grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert (scores(net, objective, x) > before).all()


def test_an_image_s_score_depends_on_its_own_group_alone(net, pictures, objective):
    x = pictures.clone().requires_grad_()
    found = scores(net, objective, x)
    size = group_size_of(objective)
    for i in range(6):
        (grad,) = torch.autograd.grad(found[i], x, retain_graph=True)
        moved = grad.flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [j // size == i // size for j in range(6)]


def test_float64_stays_float64(net, pictures, objective):
    assert scores(net.double(), objective, pictures.double()).dtype == torch.float64


def test_is_written_as_it_is_read(objective):
    assert parse_objective(repr(objective)) == objective


def test_arithmetic_is_that_of_the_scores_and_leaves_the_operands_alone(net, pictures, objective):
    other = Channel("conv1", unit=1)
    a, b = scores(net, objective, pictures), scores(net, other, pictures)
    text, text_of_other = repr(objective), repr(other)
    results = {
        objective + other: a + b,
        objective - other: a - b,
        other - objective: b - a,
        2 * objective: 2 * a,
        objective * 0.25: 0.25 * a,
        objective / 4: a / 4,
        -objective: -a,
        -(objective - 3 * other) + other: -a + 4 * b,
        0.5 * (objective + other) - 2 * (objective - other): -1.5 * a + 2.5 * b,
        objective - objective: 0 * a,
    }
    for made, expected in results.items():
        assert torch.allclose(scores(net, made, pictures), expected, atol=1e-5), made
        assert parse_objective(repr(made)) == made
        assert scores(net, parse_objective(repr(made)), pictures).tolist() == scores(net, made, pictures).tolist()
        assert group_size_of(made) == group_size_of(objective)
        assert set(made.layers) == {*objective.layers, *(("conv1",) if other in [p for _, p in made.parts] else ())}
    assert (repr(objective), repr(other)) == (text, text_of_other)


def test_what_is_no_number_and_no_objective_does_not_combine(objective):
    for combine in (lambda: objective + 1, lambda: objective - "a", lambda: objective * objective, lambda: objective * True):
        with pytest.raises(TypeError):
            combine()
    assert isinstance(objective + objective, Sum)
    if objective.layers:
        assert main_term(objective) is objective
