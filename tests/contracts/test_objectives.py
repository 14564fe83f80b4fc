"""What every objective of the catalogue must do: climb under its gradient, and look at its own image alone."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from vizrobust.features import OBJECTIVES, parse_objective
from vizrobust.models import activations

UNITS = torch.tensor([3, 0, 6, 2, 3])


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES)
def objective(request, tmp_path):
    """The objective on a layer with positions, its other fields at their defaults."""
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).normal(size=(7, 32)))
    given = {"layer": "conv2", "vector": str(path)}
    return request.param(**{field.name: given[field.name] for field in fields(request.param) if field.name in given})


def scores(net, objective, x):
    return objective(activations(net, x, objective.layers), x, UNITS)


def test_gives_one_score_per_image(net, images, objective):
    assert scores(net, objective, images[0]).shape == (5,)


def test_a_few_steps_along_its_gradient_raise_every_score(net, images, objective):
    x = 0.3 + 0.4 * images[0]
    before = scores(net, objective, x)
    for _ in range(5):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(scores(net, objective, x).sum(), x)
        x = x + 0.1 * grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert (scores(net, objective, x) > before).all()


def test_an_image_s_score_depends_on_its_own_pixels_alone(net, images, objective):
    x = images[0].clone().requires_grad_()
    found = scores(net, objective, x)
    for i in range(5):
        (grad,) = torch.autograd.grad(found[i], x, retain_graph=True)
        moved = grad.flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [j == i for j in range(5)]


def test_is_written_as_it_is_read(objective):
    assert parse_objective(repr(objective)) == objective
