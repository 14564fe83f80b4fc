"""Scores of activations against sums written out in numpy, on maps whose axes all differ."""

import numpy as np
import pytest
import torch

from vizrobust.features import Channel, Direction, Inversion, Logit, Neuron, Style, TotalVariation, main_term, needs_unit
from vizrobust.features.objectives import (
    AbsoluteDeviation,
    Alignment,
    Caricature,
    DeepDream,
    Diversity,
    SquaredDeviation,
    negated,
    parse_objective,
)

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


def slow_gram(maps):
    flat = maps.reshape(len(maps), -1)
    return flat @ flat.T / flat.shape[1]


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(("make", "seen"), [(Diversity, slow_gram), (Alignment, lambda maps: maps)])
def test_faces_are_compared_with_the_others_of_their_group(make, seen):
    maps = torch.from_numpy(np.random.default_rng(4).normal(size=(6, C, H, W)))
    found = make("a", group_size=3)({"a": maps}, torch.zeros(6, 3, 8, 12), torch.zeros(6, dtype=torch.int64))
    views = [seen(one) for one in maps.numpy()]
    for i in range(6):
        others = [j for j in range(6) if j // 3 == i // 3 and j != i]
        assert float(found[i]) == pytest.approx(np.mean([cosine(views[i], views[j]) for j in others]), abs=1e-10)
    with pytest.raises(ValueError, match="5 images do not divide into groups of 3"):
        make("a", group_size=3)({"a": MAPS}, IMAGE, UNIT)
    with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
        make("a", group_size=1)


def test_whole_layers_against_sums_in_numpy():
    wanted = torch.from_numpy(np.random.default_rng(5).normal(size=(1, C, H, W)))
    there = {"a": MAPS, "a of x.png": wanted}
    maps, target = MAPS.numpy(), wanted.numpy()[0]
    assert np.allclose(DeepDream("a")(there, IMAGE, UNIT), [(one**2).mean() for one in maps])
    missed = [((one - target) ** 2).sum() / (target**2).sum() for one in maps]
    assert np.allclose(Inversion("a", "x.png")(there, IMAGE, UNIT), -np.array(missed))
    dots = np.array([(one * target).sum() / (target**2).sum() for one in maps])
    floored = np.array([max(cosine(one, target), 0.1) for one in maps])
    for power in (0, 1, 2):
        assert np.allclose(Caricature("a", "x.png", power=power)(there, IMAGE, UNIT), dots * floored**power)
    grams = [((slow_gram(one) - slow_gram(target)) ** 2).sum() / (slow_gram(target) ** 2).sum() for one in maps]
    assert np.allclose(Style("a", "x.png")(there, IMAGE, UNIT), -np.array(grams))


def test_an_image_is_its_own_inversion_style_and_caricature():
    there = {"a": MAPS[2:3], "a of x.png": MAPS[2:3]}
    image, unit = IMAGE[:1], UNIT[:1]
    assert float(Inversion("a", "x.png")(there, image, unit)) == 0
    assert float(Style("a", "x.png")(there, image, unit)) == 0
    assert float(Caricature("a", "x.png", power=3)(there, image, unit)) == pytest.approx(1)
    with pytest.raises(ValueError, match="Caricature: power must not be negative, got -1"):
        Caricature("a", "x.png", power=-1)


def test_penalties_are_means_over_the_pixels():
    x = torch.from_numpy(np.random.default_rng(6).random(size=(N, 3, 8, 12)))
    y = x.numpy()
    across, down = np.abs(np.diff(y, axis=3)).reshape(N, -1).mean(1), np.abs(np.diff(y, axis=2)).reshape(N, -1).mean(1)
    assert np.allclose(TotalVariation()({}, x, UNIT), across + down)
    assert np.allclose(AbsoluteDeviation()({}, x, UNIT), np.abs(y - 0.5).reshape(N, -1).mean(1))
    assert np.allclose(SquaredDeviation(center=0.25)({}, x, UNIT), ((y - 0.25) ** 2).reshape(N, -1).mean(1))


def test_a_unit_of_its_own_comes_before_the_row_s():
    for make in (Channel, Neuron):
        own = make("a", unit=3)({"a": MAPS}, IMAGE, UNIT)
        assert torch.equal(own, make("a")({"a": MAPS}, IMAGE, torch.full_like(UNIT, 3)))
    assert Logit(unit=2)({"logits": ROWS}, IMAGE, UNIT).tolist() == ROWS[:, 2].tolist()
    assert needs_unit(Channel("a") + Logit(unit=2))
    assert not needs_unit(Channel("a", unit=3) + DeepDream("b"))


@pytest.mark.parametrize("unit", [7, -1])
def test_a_unit_out_of_range_is_named(unit):
    with pytest.raises(ValueError, match=rf"no unit {unit} in layer 'a', which has 7 \(0 to 6\)"):
        Channel("a", unit=unit)({"a": MAPS}, IMAGE, UNIT)


def test_a_sum_s_parts_must_group_alike():
    with pytest.raises(ValueError, match="group images differently; give them the same group_size"):
        Channel("a") - Diversity("a", group_size=2) + Alignment("b", group_size=3)


def test_the_opposite_turns_the_unit_round_and_keeps_what_guides_it():
    made = Channel("a") + 2 * Logit() - 0.5 * Diversity("a", group_size=2) - 0.1 * TotalVariation()
    expected = -Channel("a") - 2 * Logit() - 0.5 * Diversity("a", group_size=2) - 0.1 * TotalVariation()
    assert negated(made) == expected
    assert negated(Channel("a")) == -Channel("a")


def test_an_objective_needs_a_layer_and_its_first_unit_names_the_picture():
    with pytest.raises(ValueError, match=r"TotalVariation\(\) names no layer, so nothing in the network would be excited"):
        main_term(TotalVariation())
    assert main_term(DeepDream("b") + Channel("a")) == Channel("a")
    assert main_term(-0.1 * TotalVariation() + DeepDream("b")) == DeepDream("b")


@pytest.mark.parametrize("text", ["Channel(layer='a') * Channel(layer='a')", "Channel(layer='a') + 1", "3", "'text'"])
def test_text_that_is_no_objective_is_refused(text):
    with pytest.raises(ValueError, match=r"cannot be combined|not an objective"):
        parse_objective(text)
