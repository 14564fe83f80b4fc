"""Natural exemplars are the ends of a full sort, found in one pass; the place in the image is where changes matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import CLASSES, SHAPE, make_net
from vizrobust.compute import Compute
from vizrobust.data import ArraySplit, DataSet
from vizrobust.features import Channel, Direction, Logit, Neuron, TotalVariation
from vizrobust.features import exemplar_runs as session
from vizrobust.features.exemplars import Exemplars, Measure, exemplars, receptive_fields
from vizrobust.models import Checkpoint, CheckpointInfo, activations
from vizrobust.models.checkpoints import body_state
from vizrobust.runs import RunFolder

N, K = 23, 5
LAYERS = ["conv1", "conv2", "relu2", "logits"]


@pytest.fixture(scope="module")
def pictures() -> ArraySplit:
    """With pairs of equal images, so that there are ties."""
    pixels = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(2))
    pixels[11], pixels[4] = pixels[2], pixels[19]
    return ArraySplit(pixels, torch.arange(N) % CLASSES)


def sorted_whole(maps: np.ndarray, sign: int, measure: Measure) -> tuple[np.ndarray, ...]:
    """Scores, images and places from one full sort of all images; places -1 where the extreme is met twice."""
    if maps.ndim == 2:
        maps, measure = maps[:, :, None, None], "mean"
    n, units, height, width = maps.shape
    scores, places = np.zeros((units, n)), np.zeros((units, n, 2), int)
    for u in range(units):
        for i in range(n):
            one = maps[i, u]
            extreme = one.max() if sign > 0 else one.min()
            at = np.argwhere(one == extreme)
            places[u, i] = at[0] if len(at) == 1 else (-1, -1)
            scores[u, i] = one.mean() if measure == "mean" else extreme
            if isinstance(measure, tuple):
                y, x = (side // 2 if m is None else m for m, side in zip(measure, (height, width), strict=True))
                scores[u, i], places[u, i] = one[y, x], (y, x)
    order = np.argsort(-sign * scores.astype(np.float32), axis=1, kind="stable")[:, :K]
    return np.take_along_axis(scores, order, 1), order, np.take_along_axis(places, order[..., None], 1)


@pytest.mark.parametrize("measure", ["mean", "peak", (1, 2), (None, None)])
def test_both_ends_are_those_of_a_full_sort(pictures: ArraySplit, compute: Compute, measure: Measure) -> None:
    net = make_net()
    found = exemplars(net, LAYERS, pictures, K, shape=SHAPE, measure=measure, compute=compute, batch_size=N)
    with torch.no_grad():
        whole = activations(net, pictures.take(torch.arange(N)), LAYERS)
    for name in LAYERS:
        maps = whole[name].numpy()
        assert found[name].size == (maps.shape[2:] if maps.ndim == 4 else None)
        for sign in (1, -1):
            values, order, places = sorted_whole(maps, sign, measure)
            end = found[name].end(sign)
            assert end.values.dtype == torch.float32
            np.testing.assert_allclose(end.values, values, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(end.images, order)
            if maps.ndim == 4:
                np.testing.assert_array_equal(end.places, places)
            else:
                assert end.places is None


def test_small_batches_and_a_filled_last_one_find_the_same(pictures: ArraySplit, compute: Compute) -> None:
    """In float64 values of all batch sizes agree, so the order must too, ties between batches included."""

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool((x * 8).round())

    steps: list[int] = []
    whole, *parts = (
        exemplars(Exact(), ["pool"], pictures, K, shape=SHAPE, compute=compute, batch_size=size, progress=steps.append)["pool"]
        for size in (N, 1, 4, 40)
    )
    assert sum(steps) == 4 * N
    for part in parts:
        for sign in (1, -1):
            one, other = whole.end(sign), part.end(sign)
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.places, other.places)
    images = whole.most.images.tolist()
    assert any(4 in row and 19 in row for row in images), "no tie at either end: the test shows nothing"
    assert all(row.index(4) < row.index(19) for row in images if 4 in row and 19 in row)


def test_memory_does_not_grow_with_the_images(compute: Compute) -> None:
    """What is kept between batches is k numbers a unit."""
    sizes = []

    class Watched(ArraySplit):
        def take(self, index: Tensor) -> Tensor:
            sizes.append(len(index))
            return super().take(index)

    images = Watched(torch.rand(90, *SHAPE), torch.zeros(90, dtype=torch.int64))
    found = exemplars(make_net(), ["conv1"], images, 3, shape=SHAPE, compute=compute, batch_size=8)["conv1"]
    assert max(sizes) == 8
    assert found.most.values.shape == (found.most.values.shape[0], 3)
    assert found.most.values.untyped_storage().nbytes() == found.most.values.numel() * 4


def test_the_network_comes_back_untouched(pictures: ArraySplit, compute: Compute) -> None:
    net = make_net().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    exemplars(net, ["conv2"], pictures, 2, shape=SHAPE, compute=compute)
    receptive_fields(net, "conv2", [(0, 0)], shape=SHAPE, compute=compute)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_bad_input_is_one_sentence(pictures: ArraySplit, compute: Compute) -> None:
    def find(net: nn.Module = make_net(), layer: str = "conv1", k: int = 2, shape: Any = SHAPE, measure: Any = "mean") -> None:  # noqa: B008
        exemplars(net, [layer], pictures, k, shape=shape, measure=measure, compute=compute)

    with pytest.raises(ValueError, match="24 images asked for each unit, but there are only 23"):
        find(k=24)
    with pytest.raises(ValueError, match="at least 1 image of each unit, got 0"):
        find(k=0)
    with pytest.raises(ValueError, match="the images are 3 x 20 x 16, the network takes 1 x 28 x 28; give other data"):
        find(shape=(1, 28, 28))
    with pytest.raises(ValueError, match="position 99,0 is outside layer 'conv1'"):
        find(measure=(99, 0))
    with pytest.raises(ValueError, match="no measure 'max'"):
        find(measure="max")
    broken = make_net()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 'conv1' gives values that are not finite"):
        find(broken)


class Stack(nn.Module):
    """Two strided convolutions and a pooling without padding at the first: fields known from their sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 4, (3, 5), stride=(1, 2))
        self.pool = nn.MaxPool2d(2)
        self.b = nn.Conv2d(4, 5, 3, padding=1)
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(torch.relu(self.b(self.pool(torch.relu(self.a(x))))))


def test_receptive_fields_are_those_of_the_arithmetic(compute: Compute) -> None:
    net, shape = Stack(), (3, 30, 23)
    places = [(0, 0), (3, 2), (12, 4), (7, 1), (3, 0)]
    found = receptive_fields(net, "b", places, shape=shape, compute=compute)
    for y, x in places:
        # One cell of b sees 3 cells of pool, 6 of a, and those reach 3 rows or 5 columns at steps of 1 and 2.
        top, bottom = max(0, 2 * (y - 1)), min(30, 2 * (y + 1) + 1 + 3)
        left, right = max(0, 4 * (x - 1)), min(23, 2 * (2 * (x + 1) + 1) + 5)
        assert found[y, x] == (top, left, bottom - top, right - left), (y, x)


def test_a_field_is_never_too_small(compute: Compute) -> None:
    """Changing the image outside the box leaves the map's cell as it is, for every unit."""
    net = make_net()
    (place, box), *_ = receptive_fields(net, "conv2", [(2, 1)], shape=SHAPE, compute=compute).items()
    assert box is not None
    top, left, height, width = box
    x = torch.rand(2, *SHAPE)
    outside = x.clone()
    mask = torch.ones(SHAPE[1:], dtype=torch.bool)
    mask[top : top + height, left : left + width] = False
    outside[:, :, mask] = torch.rand(2, 3, int(mask.sum()))
    one, other = (activations(net, image, ["conv2"])["conv2"][:, :, place[0], place[1]] for image in (x, outside))
    torch.testing.assert_close(one, other)


def test_a_field_of_the_whole_image_is_none(compute: Compute) -> None:
    assert receptive_fields(Stack(), "mean", [(0, 0)], shape=(3, 30, 23), compute=compute) == {(0, 0): None}
    assert receptive_fields(Stack(), "b", [], shape=(3, 30, 23), compute=compute) == {}


def checkpoint(seed: int = 0) -> Checkpoint:
    net = make_net(seed=seed)
    names = tuple(f"class {i}" for i in range(CLASSES))
    about = CheckpointInfo("small_cnn", SHAPE, names, (0.4,) * 3, (0.3,) * 3)
    return Checkpoint(f"net{seed}", about, body_state(net), lambda: make_net(seed=seed).net)


def dataset(pictures: ArraySplit, name: str = "tiny") -> DataSet:
    return DataSet(name, tuple(f"class {i}" for i in range(CLASSES)), SHAPE, pictures, pictures, pictures, 0.1)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers of each pass over the data that was really made."""
    made: list[list[str]] = []

    def counted(net: nn.Module, layers: list[str], *args: Any, **how: Any) -> dict[str, Exemplars]:
        made.append(list(layers))
        return exemplars(net, layers, *args, **how)

    monkeypatch.setattr(session, "exemplars", counted)
    return made


def test_a_finished_search_is_read_and_another_is_not(
    pictures: ArraySplit, compute: Compute, passes: list[list[str]], tmp_path: Path
) -> None:
    run, one, source = RunFolder(tmp_path / "run", "neurons", {}), checkpoint(), session.ImageSource(dataset(pictures))
    first = session.cached_exemplars(run, one, ["conv1", "logits"], source, 3, compute)
    again = session.cached_exemplars(run, one, ["logits", "conv2", "conv1"], source, 3, compute)
    assert passes == [["conv1", "logits"], ["conv2"]]
    for name in ("conv1", "logits"):
        assert first[name].size == again[name].size
        for sign in (1, -1):
            a, b = first[name].end(sign), again[name].end(sign)
            assert torch.equal(a.values, b.values)
            assert torch.equal(a.images, b.images)
            assert (a.places is None and b.places is None) or torch.equal(a.places, b.places)
    changed = ArraySplit(pictures.pixels.flip(3), pictures.labels)
    fewer = ArraySplit(pictures.pixels[:-1], pictures.labels[:-1])
    for other in (
        {"checkpoint": checkpoint(1)}, {"k": 4}, {"measure": "peak"}, {"source": session.ImageSource(dataset(changed))},
        {"source": session.ImageSource(dataset(pictures), split="test")}, {"source": session.ImageSource(dataset(fewer))},
        {"source": session.ImageSource(dataset(pictures, "renamed"))},
        {"source": session.ImageSource(dataset(pictures), most=10)},
    ):  # fmt: skip
        passes.clear()
        how = {"checkpoint": one, "source": source, "k": 3, "measure": "mean", **other}
        session.cached_exemplars(run, layers=["conv1"], compute=compute, **how)
        assert passes == [["conv1"]], other


def test_a_killed_pass_and_a_damaged_file_lose_only_themselves(
    pictures: ArraySplit, compute: Compute, passes: list[list[str]], tmp_path: Path
) -> None:
    run, one, source = RunFolder(tmp_path / "run", "neurons", {}), checkpoint(), session.ImageSource(dataset(pictures))
    session.cached_exemplars(run, one, ["conv1"], source, 3, compute)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.cached_exemplars(run, one, ["conv1", "conv2"], source, 3, compute, progress=stop)
    (kept,) = (tmp_path / "run" / "exemplars").iterdir()
    kept.write_bytes(kept.read_bytes()[:200])
    passes.clear()
    session.cached_exemplars(run, one, ["conv1"], source, 3, compute)
    assert passes == [["conv1"]]


def test_shown_exemplars_are_files_with_their_place(pictures: ArraySplit, compute: Compute, tmp_path: Path) -> None:
    run, one = RunFolder(tmp_path / "run", "neurons", {}), checkpoint()
    data = dataset(ArraySplit((pictures.pixels * 255).round().byte(), pictures.labels))
    source = session.ImageSource(data, most=12)
    rows = session.exemplars_into(run, one, Channel("conv2"), [6, 1], source, 3, compute)
    found = session.cached_exemplars(run, one, ["conv2"], source, 3, compute)["conv2"]
    assert [(row["unit"], row["sign"]) for row in rows] == [(6, 1), (6, -1), (1, 1), (1, -1)]
    assert (rows[0]["n"], rows[0]["of"], rows[0]["split"], rows[0]["data"]) == (12, 23, "val", "tiny")
    for row in rows:
        end = found.end(row["sign"])
        for rank, entry in enumerate(row["images"]):
            index = 2 * int(end.images[row["unit"], rank])  # every second image was looked at
            assert (entry["index"], entry["label"]) == (index, f"class {index % CLASSES}")
            assert entry["value"] == pytest.approx(float(end.values[row["unit"], rank]), abs=1e-5)
            assert entry["place"] == end.places[row["unit"], rank].tolist()
            top, left, height, width = entry["box"]
            assert (top, left) >= (0, 0)
            assert top + height <= SHAPE[1]
            assert left + width <= SHAPE[2]
            saved = session.to_uint8(data.val.take(torch.tensor([index]))[0])
            assert np.array_equal(np.asarray(session_image(run.folder / entry["image"])), saved)
    json.dumps(rows)


def session_image(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.copy()


def test_rows_grow_with_the_units_and_replace_their_own(pictures: ArraySplit, compute: Compute, tmp_path: Path) -> None:
    run, source = RunFolder(tmp_path / "run", "neurons", {}), session.ImageSource(dataset(pictures))
    assert session.exemplar_rows(run.folder) == []
    session.exemplars_into(run, checkpoint(), Logit(), [0], source, 3, compute)
    session.exemplars_into(run, checkpoint(), Logit(), [0, 4], source, 2, compute)
    session.exemplars_into(run, checkpoint(1), Logit(), [4], source, 2, compute)
    rows = session.exemplar_rows(run.folder)
    assert [(row["checkpoint"][:4], row["unit"], row["sign"], len(row["images"])) for row in rows] == [
        ("net0", 0, 1, 2), ("net0", 0, -1, 2), ("net0", 4, 1, 2), ("net0", 4, -1, 2), ("net1", 4, 1, 2), ("net1", 4, -1, 2),
    ]  # fmt: skip
    assert all(entry["place"] is None and entry["box"] is None for row in rows for entry in row["images"])
    (run.folder / session.SHOWN).write_text("[{")
    with pytest.raises(ValueError, match="is not readable"):
        session.exemplar_rows(run.folder)


def test_the_objective_says_what_ranks_the_images() -> None:
    assert session.ranking_measure(Logit()) == ("logits", "mean", None, 1)
    assert session.ranking_measure(Neuron("conv1", y=3)) == ("conv1", (3, None), None, 1)
    assert session.ranking_measure(-2 * Channel("conv1", unit=4) - TotalVariation()) == ("conv1", "mean", 4, -1)
    with pytest.raises(ValueError, match=r"has none of them; leave out exemplars"):
        session.ranking_measure(Direction("conv1", "v.npy"))
    with pytest.raises(ValueError, match=r"has 2 of them; leave out exemplars"):
        session.ranking_measure(Channel("conv1", unit=1) + Channel("conv1", unit=2))


def test_an_objective_turned_round_has_its_ends_exchanged(pictures: ArraySplit, compute: Compute, tmp_path: Path) -> None:
    run, source = RunFolder(tmp_path / "run", "neurons", {}), session.ImageSource(dataset(pictures))
    most, least = session.exemplars_into(run, checkpoint(), Channel("conv1"), [2], source, 3, compute)
    turned, round_ = session.exemplars_into(run, checkpoint(), -Channel("conv1"), [2], source, 3, compute)
    assert (turned["images"], round_["images"]) == (least["images"], most["images"])
