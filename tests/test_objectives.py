"""Scores of activations against sums written out in numpy, on maps whose axes all differ."""

import numpy as np
import pytest
import torch

from vizrobust.features import Channel, Direction, Logit, Neuron, parse_objective

N, C, H, W = 5, 7, 4, 6
UNIT = torch.tensor([6, 0, 3, 3, 1])
MAPS = torch.from_numpy(np.random.default_rng(0).normal(size=(N, C, H, W)))
ROWS = torch.from_numpy(np.random.default_rng(1).normal(size=(N, C)))
IMAGE = torch.zeros(N, 3, 8, 12)


def test_logit_is_the_unit_s_own_output():
    found = Logit()({"logits": ROWS}, IMAGE, UNIT)
    assert found.tolist() == [ROWS[i, u].item() for i, u in enumerate(UNIT.tolist())]


def test_channel_is_the_mean_over_all_positions():
    found = Channel("a")({"a": MAPS, "b": -MAPS}, IMAGE, UNIT)
    expected = [MAPS.numpy()[i, u].mean() for i, u in enumerate(UNIT.tolist())]
    assert np.allclose(found, expected, atol=1e-12)
    assert torch.equal(Channel("a")({"a": ROWS}, IMAGE, UNIT), Logit()({"logits": ROWS}, IMAGE, UNIT))


@pytest.mark.parametrize(("y", "x"), [(0, 5), (3, 0), (2, 4)])
def test_neuron_counts_rows_then_columns(y, x):
    found = Neuron("a", y=y, x=x)({"a": MAPS}, IMAGE, UNIT)
    assert found.tolist() == [MAPS[i, u, y, x].item() for i, u in enumerate(UNIT.tolist())]


def test_neuron_looks_at_the_middle_unless_told_otherwise():
    there = {"a": MAPS}
    assert torch.equal(Neuron("a")(there, IMAGE, UNIT), Neuron("a", y=2, x=3)(there, IMAGE, UNIT))
    assert torch.equal(Neuron("a", x=5)(there, IMAGE, UNIT), Neuron("a", y=2, x=5)(there, IMAGE, UNIT))
    odd = {"a": MAPS[:, :, :3, :5]}
    assert torch.equal(Neuron("a")(odd, IMAGE, UNIT), Neuron("a", y=1, x=2)(odd, IMAGE, UNIT))


@pytest.mark.parametrize(("y", "x"), [(4, 0), (0, 6), (-1, 0), (0, -1)])
def test_neuron_refuses_a_position_outside(y, x):
    with pytest.raises(ValueError, match=rf"position {y},{x} is outside layer 'a', whose maps are 4 x 6"):
        Neuron("a", y=y, x=x)({"a": MAPS}, IMAGE, UNIT)


def test_neuron_needs_a_layer_with_positions():
    with pytest.raises(ValueError, match="layer 'a' has no positions"):
        Neuron("a")({"a": ROWS}, IMAGE, UNIT)


def slow_direction(maps, vectors, power):
    """Position by position: dot product times the cosine, floored at .1, to the power."""
    scores = []
    for one, vector in zip(maps, vectors, strict=True):
        total = 0.0
        for y in range(one.shape[1]):
            for x in range(one.shape[2]):
                dot = float(one[:, y, x] @ vector)
                cosine = dot / (np.linalg.norm(one[:, y, x]) * np.linalg.norm(vector))
                total += dot * max(cosine, 0.1) ** power if power else dot
        scores.append(total / (one.shape[1] * one.shape[2]))
    return scores


@pytest.mark.parametrize("power", [0, 2, 0.5])
@pytest.mark.parametrize("many", [True, False], ids=["a row per unit", "one vector"])
def test_direction_is_the_mean_dot_product_times_cosine(tmp_path, power, many):
    vectors = np.random.default_rng(2).normal(size=(9, C) if many else C).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    found = Direction("a", str(tmp_path / "v.npy"), power=power)({"a": MAPS}, IMAGE, UNIT)
    mine = vectors[UNIT.numpy()] if many else np.broadcast_to(vectors, (N, C))
    assert np.allclose(found, slow_direction(MAPS.numpy(), mine.astype(np.float64), power), atol=1e-9)


def test_direction_also_takes_layers_without_positions(tmp_path):
    vector = np.random.default_rng(3).normal(size=C)
    np.save(tmp_path / "v.npy", vector)
    found = Direction("a", str(tmp_path / "v.npy"))({"a": ROWS}, IMAGE, UNIT)
    assert np.allclose(found, ROWS.numpy() @ vector, atol=1e-6)


def test_direction_refuses_what_does_not_fit(tmp_path):
    def of(content, name="v.npy", power=0):
        np.save(tmp_path / name, content)
        return Direction("a", str(tmp_path / name), power=power)({"a": MAPS}, IMAGE, UNIT)

    with pytest.raises(ValueError, match=r"holds vectors of 8 numbers, layer 'a' has 7 units"):
        of(np.zeros(8), "long.npy")
    with pytest.raises(ValueError, match=r"must hold finite numbers, shaped \(channels,\)"):
        of(np.zeros((2, 2, 7)), "cube.npy")
    with pytest.raises(ValueError, match="must hold finite numbers"):
        of(np.array([1, np.nan, 0, 0, 0, 0, 0]), "nan.npy")
    with pytest.raises(ValueError, match=r"is not a \.npy array of numbers"):
        of(np.array(["a", "b"]), "text.npy")
    with pytest.raises(ValueError, match="power must not be negative, got -1"):
        of(np.zeros(7), "power.npy", power=-1)
    for name, content in (("empty.npy", b""), ("junk.npy", b"junk")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}' is not a .npy array of numbers"):
            Direction("a", str(tmp_path / name))({"a": MAPS}, IMAGE, UNIT)
    with pytest.raises(FileNotFoundError, match=r"no file 'absent.npy' \(the vector of Direction\)"):
        Direction("a", "absent.npy")({"a": MAPS}, IMAGE, UNIT)


def test_objectives_are_read_from_text():
    assert parse_objective("logit") == Logit()
    assert parse_objective("NEURON(layer='conv1', y=1, x=2)") == Neuron("conv1", 1, 2)
    with pytest.raises(ValueError, match=r"no objective 'chanel'; did you mean Channel"):
        parse_objective("chanel(layer='a')")
    with pytest.raises(ValueError, match="Channel needs layer"):
        parse_objective("channel")
