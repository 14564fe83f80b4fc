"""An atlas reads the right activations, lays them out, and averages those of each cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.data import ArraySplit
from vizrobust.features.atlas import LAYOUTS, Atlas, Cells
from vizrobust.models import activations

N = 70


def pictures(n: int = N, seed: int = 2) -> ArraySplit:
    pixels = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return ArraySplit(pixels, torch.arange(n) % CLASSES)


# What is sampled


def test_the_sample_has_the_same_share_of_every_class_and_grows():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 40)[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    before: set[int] = set()
    for n in (10, 15, 60, 149, 150):
        index = Atlas("a", images=n).sampled_images(labels)
        assert index.tolist() == sorted(set(index.tolist()))
        assert len(index) == n
        for kind, size in enumerate((100, 10, 40)):
            assert abs(int((labels[index] == kind).sum()) - n * size / 150) <= 1
        assert before <= set(index.tolist())
        before = set(index.tolist())
    assert Atlas("a", images=20, seed=1).sampled_images(labels).tolist() != Atlas("a", images=20).sampled_images(labels).tolist()


def test_one_vector_from_one_place_of_each_image(compute):
    """Against a search through the whole map; every image has a place of its own, whatever the other images and their order."""
    net, split, atlas = make_net(), pictures(), Atlas("conv2", images=N)
    steps: list[int] = []
    vectors = atlas.activation_vectors(net, split, torch.arange(N), shape=SHAPE, compute=compute, progress=steps.append)
    assert sum(steps) == N
    with torch.no_grad():
        maps = activations(net, split.pixels, ["conv2"])["conv2"]
    height, width = maps.shape[2:]
    places = []
    for i in range(N):
        apart = (maps[i] - vectors[i][:, None, None]).abs().amax(0)
        places.append(divmod(int(apart.argmin()), width))
        assert float(apart.min()) < 1e-5
    assert len(set(places)) > 0.6 * height * width
    assert {y for y, _ in places} == set(range(height))
    assert {x for _, x in places} == set(range(width))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert torch.equal(atlas.activation_vectors(net, split, order, shape=SHAPE, compute=compute), vectors[order])
    few = torch.tensor([3, 41, 8])
    assert torch.equal(atlas.activation_vectors(net, split, few, shape=SHAPE, compute=compute), vectors[few])
    other = replace(atlas, seed=1).activation_vectors(net, split, torch.arange(N), shape=SHAPE, compute=compute)
    assert (other != vectors).any(1).float().mean() > 0.7


def test_layers_without_places_and_an_untouched_network(compute):
    net, split = make_net().train(), pictures(12)
    found = Atlas("linear1").activation_vectors(net, split, torch.arange(12), shape=SHAPE, compute=compute)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, activations(net, split.pixels, ["linear1"])["linear1"])


def test_networks_with_equal_maps_are_seen_at_the_same_places(compute):
    class Index(nn.Module):
        """A map whose cells hold their own numbers, whatever the image; scaled by a weight."""

        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.pool = nn.Parameter(torch.tensor(scale)), nn.AvgPool2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.pool(x)
            return self.pool.forward(x) * 0 + self.scale * torch.arange(maps[0, 0].numel()).reshape(maps.shape[2:])

    one, two = (
        Atlas("pool", images=N).activation_vectors(_Last(Index(scale)), pictures(), torch.arange(N), shape=SHAPE, compute=compute)
        for scale in (1.0, 2.0)
    )
    assert torch.equal(2 * one, two)
    assert len(one.unique()) > 10


class _Last(nn.Module):
    """A network whose layer `pool` is another one's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.pool, self.head = net, nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(x))


# Where it lies


def clusters(rng: np.random.Generator, each: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in three directions of 6 dimensions, of very different lengths."""
    centers = np.eye(6)[:3] * 5
    kinds = np.repeat(np.arange(3), each)
    return (centers[kinds] + 0.3 * rng.normal(size=(3 * each, 6))) * rng.uniform(0.1, 10, (3 * each, 1)), kinds


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_points_alike_lies_together(layout):
    vectors, kinds = clusters(np.random.default_rng(0))
    atlas = Atlas("a", layout=layout)
    places = atlas.positions(vectors)
    assert places.shape == (len(vectors), 2)
    assert np.array_equal(places, atlas.positions(vectors.copy())), "the same bits again"
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    assert (kinds[apart.argmin(1)] == kinds).all()
    if layout == "pca":
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        _, values, _ = np.linalg.svd(unit - unit.mean(0))
        np.testing.assert_allclose(np.linalg.norm(places, axis=0), values[:2], rtol=1e-9)


def test_networks_that_see_alike_are_laid_out_together_as_one_alone():
    """The second network's vectors are those of the first, turned in space and longer."""
    rng = np.random.default_rng(0)
    vectors, other = clusters(rng)[0], rng.normal(size=(120, 9))
    turned = 7 * vectors @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    atlas = Atlas("a", grid=5, layout="pca")

    def shape_of(places):
        apart = np.linalg.norm(places[:, None] - places[None], axis=2)
        return apart / apart.mean()

    alone = shape_of(atlas.positions(vectors))
    np.testing.assert_allclose(shape_of(atlas.positions(vectors, turned)), alone, atol=1e-6)
    both = atlas.positions(vectors, other)
    np.testing.assert_allclose(both, atlas.positions(vectors, 1e3 * other), atol=1e-9)
    assert np.abs(shape_of(both) - alone).max() > 0.1


def test_the_layout_does_not_depend_on_threads():
    vectors = np.random.default_rng(0).normal(size=(150, 5))
    found = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            found.append(Atlas("a").positions(vectors))
    np.testing.assert_array_equal(*found)


def test_one_dimension_is_laid_out_too():
    vectors = np.array([[1.0], [-1.0]] * 10)
    for layout in LAYOUTS:
        assert np.isfinite(Atlas("a", layout=layout).positions(vectors)).all()


@pytest.mark.parametrize(("grid", "min_activations"), [(1, 1), (3, 4), (4, 2), (7, 1)])
def test_cells_and_means_are_those_of_plain_loops(grid, min_activations):
    rng = np.random.default_rng(grid)
    places, vectors = rng.normal(size=(90, 2)) * [3, 0.1] + [5, -1], rng.normal(size=(90, 6)).astype(np.float32)
    atlas = Atlas("a", grid=grid, min_activations=min_activations)
    cells = atlas.cells(places)
    edges = [np.percentile(places[:, axis], [1, 99]) for axis in (0, 1)]
    members: dict[tuple[int, int], list[int]] = {}
    for i, (x, y) in enumerate(places):
        at = []
        for value, (low, high) in ((y, edges[1]), (x, edges[0])):
            step = 0
            while step < grid - 1 and value >= low + (high - low) * (step + 1) / grid:
                step += 1
            at.append(step)
        members.setdefault((at[0], at[1]), []).append(i)
    means = cells.means(vectors)
    for row in range(grid):
        for column in range(grid):
            own, number = members.get((row, column), []), row * grid + column
            assert cells.members(number).tolist() == own
            assert cells.counts[number] == len(own)
            assert cells.full[number] == (len(own) >= min_activations)
            expected = np.zeros(6)
            if len(own) >= min_activations:
                for i in own:
                    expected += vectors[i].astype(np.float64) / len(own)
            np.testing.assert_allclose(means[number], expected, rtol=1e-12, atol=1e-15)


def test_the_order_of_images_does_not_matter():
    rng = np.random.default_rng(1)
    places, vectors, order = rng.normal(size=(80, 2)), rng.normal(size=(80, 5)), rng.permutation(80)
    for whiten in (False, True):
        atlas = Atlas("a", grid=3, whiten=whiten)
        one, other = atlas.cells(places), atlas.cells(places[order])
        np.testing.assert_array_equal(one.cell[order], other.cell)
        np.testing.assert_allclose(atlas.directions(vectors, one), atlas.directions(vectors[order], other), atol=1e-6)


def test_directions_are_means_of_length_one_and_whitened_where_asked():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 4)) @ rng.normal(size=(4, 4)) + 1
    places = rng.normal(size=(4000, 2))
    atlas = Atlas("a", grid=4, min_activations=100)
    cells = atlas.cells(places)
    assert not cells.full.all()
    moments = vectors.T @ vectors / len(vectors)
    for wanted, found in (
        (cells.means(vectors), atlas.directions(vectors, cells)),
        (cells.means(vectors) @ np.linalg.inv(moments), replace(atlas, whiten=True).directions(vectors, cells)),
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[~cells.full], 0)
        cosine = (found * wanted).sum(1)[cells.full] / np.linalg.norm(wanted, axis=1)[cells.full]
        np.testing.assert_allclose(np.linalg.norm(found[cells.full], axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(cosine, 1, atol=2e-3)


def test_fewer_images_than_channels_can_be_whitened():
    rng = np.random.default_rng(0)
    vectors = np.maximum(rng.normal(size=(30, 90)), 0)
    vectors[:, 7] = 0
    cells = Cells(np.arange(30) % 2, np.array([15, 15]), np.array([True, True]))
    found = Atlas("a", whiten=True).directions(vectors, cells)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 7], 0, atol=1e-6)


def test_layers_without_anything_to_see_are_one_sentence(compute):
    split, index = pictures(12), torch.arange(12)
    with pytest.raises(ValueError, match="answers all images alike, so there is nothing to lay out"):
        Atlas("a").positions(np.zeros((20, 3)))
    with pytest.raises(ValueError, match="an atlas needs at least 10 images, got 9"):
        Atlas("a").positions(np.random.default_rng(0).normal(size=(9, 3)))
    broken = make_net()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 'conv1' gives values that are not finite"):
        Atlas("conv1").activation_vectors(broken, split, index, shape=SHAPE, compute=compute)

    class Plane(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    odd = nn.Sequential(Plane(), nn.Flatten(), nn.Linear(SHAPE[1] * SHAPE[2], 4))
    with pytest.raises(ValueError, match="layer '0' has no units that can be read"):
        Atlas("0").activation_vectors(odd, split, index, shape=SHAPE, compute=compute)
