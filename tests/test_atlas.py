"""An atlas averages the right activations in the right cells, renders along these means, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from tests.test_cli import checkpoint, run
from vizrobust.cli import atlas as command
from vizrobust.data import ArraySplit, DataSet
from vizrobust.data.dataset import SPLITS
from vizrobust.features import Direction, Provenance, plain, rerender
from vizrobust.features.atlas import LAYOUTS, Atlas, Cells
from vizrobust.features.atlas_session import Plan, atlas_into, atlas_rows, mapped, missing_cells
from vizrobust.features.exemplar_session import Source
from vizrobust.models import Checkpoint, Description, activations
from vizrobust.models.checkpoints import body_state
from vizrobust.report.atlas_sheet import atlas_sheet, resized
from vizrobust.report.collect import Subject
from vizrobust.runs import Run

N = 70


def pictures(n: int = N, seed: int = 2) -> ArraySplit:
    pixels = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return ArraySplit(pixels, torch.arange(n) % CLASSES)


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


# What is sampled


def test_the_sample_has_the_same_share_of_every_class_and_grows():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 40)[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    before: set[int] = set()
    for n in (10, 15, 60, 149, 150):
        index = Atlas("a", images=n).chosen(labels)
        assert index.tolist() == sorted(set(index.tolist()))
        assert len(index) == n
        for kind, size in enumerate((100, 10, 40)):
            assert abs(int((labels[index] == kind).sum()) - n * size / 150) <= 1
        assert before <= set(index.tolist())
        before = set(index.tolist())
    assert Atlas("a", images=20, seed=1).chosen(labels).tolist() != Atlas("a", images=20).chosen(labels).tolist()


def test_one_vector_from_one_place_of_each_image(compute):
    """Against a search through the whole map; every image has a place of its own, whoever its mates and whatever their order."""
    net, split, atlas = make_net(), pictures(), Atlas("conv2", images=N)
    steps: list[int] = []
    vectors = atlas.gathered(net, split, torch.arange(N), shape=SHAPE, compute=compute, seen=steps.append)
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
    assert torch.equal(atlas.gathered(net, split, order, shape=SHAPE, compute=compute), vectors[order])
    few = torch.tensor([3, 41, 8])
    assert torch.equal(atlas.gathered(net, split, few, shape=SHAPE, compute=compute), vectors[few])
    other = replace(atlas, seed=1).gathered(net, split, torch.arange(N), shape=SHAPE, compute=compute)
    assert (other != vectors).any(1).float().mean() > 0.7


def test_layers_without_places_and_an_untouched_network(compute):
    net, split = make_net().train(), pictures(12)
    found = Atlas("linear1").gathered(net, split, torch.arange(12), shape=SHAPE, compute=compute)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, activations(net, split.pixels, ["linear1"])["linear1"])


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
    places = atlas.laid_out(vectors)
    assert places.shape == (len(vectors), 2)
    assert np.array_equal(places, atlas.laid_out(vectors.copy())), "the same bits again"
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    assert (kinds[apart.argmin(1)] == kinds).all()
    if layout == "pca":
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        _, values, _ = np.linalg.svd(unit - unit.mean(0))
        np.testing.assert_allclose(np.linalg.norm(places, axis=0), values[:2], rtol=1e-9)


def test_the_layout_does_not_depend_on_threads():
    vectors = np.random.default_rng(0).normal(size=(150, 5))
    found = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            found.append(Atlas("a").laid_out(vectors))
    np.testing.assert_array_equal(*found)


def test_one_dimension_is_laid_out_too():
    vectors = np.array([[1.0], [-1.0]] * 10)
    for layout in LAYOUTS:
        assert np.isfinite(Atlas("a", layout=layout).laid_out(vectors)).all()


@pytest.mark.parametrize(("grid", "fewest"), [(1, 1), (3, 4), (4, 2), (7, 1)])
def test_cells_and_means_are_those_of_plain_loops(grid, fewest):
    rng = np.random.default_rng(grid)
    places, vectors = rng.normal(size=(90, 2)) * [3, 0.1] + [5, -1], rng.normal(size=(90, 6)).astype(np.float32)
    atlas = Atlas("a", grid=grid, fewest=fewest)
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
            assert cells.full[number] == (len(own) >= fewest)
            expected = np.zeros(6)
            if len(own) >= fewest:
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
    atlas = Atlas("a", grid=4, fewest=100)
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


# What is rendered


def data_set(n: int = N) -> DataSet:
    """Two kinds of images: bright above or bright below, with some noise."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    pixels = 0.1 * torch.rand(n, *SHAPE, generator=rng)
    pixels[labels == 0, :, :10] += 0.8
    pixels[labels == 1, :, 10:] += 0.8
    split = ArraySplit(pixels, labels)
    return DataSet("halves", ("above", "below"), SHAPE, split, split, split, eps=0.1)


def linear_checkpoint() -> Checkpoint:
    """Its logits are a random projection of the image: directions among them are templates."""
    torch.manual_seed(0)
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(count, 60, bias=False))

    about = Description("linear", SHAPE, tuple(map(str, range(60))), (0.0,) * 3, (1.0,) * 3)
    net = build()
    nn.init.normal_(net[1].weight, std=count**-0.5)
    return Checkpoint("linear", about, body_state(net), build)


def small_checkpoint(seed: int = 0) -> Checkpoint:
    about = Description("small_cnn", SHAPE, tuple(map(str, range(CLASSES))), (0.4,) * 3, (0.3,) * 3)
    net = make_net(seed=seed)
    return Checkpoint(f"small{seed}", about, body_state(net), lambda: make_net(seed=seed).net)


def plan_of(layer: str = "conv2", **options: object) -> Plan:
    atlas = Atlas(layer, **{"grid": 3, "images": N, "fewest": 3, "layout": "pca", **options})  # type: ignore[arg-type]
    return Plan(atlas, Source(data_set(), "train"), plain(steps=3), batch_size=4)


def opened(folder: Path, plan: Plan) -> Run:
    record = {"threads": torch.get_num_threads(), "device": "cpu", "versions": {}}
    return Run(folder, "atlas", plan.identity("fp32"), record)


def test_a_cells_picture_is_what_its_images_share(tmp_path, compute):
    plan = replace(plan_of("logits", grid=2, fewest=8), recipe=plain(steps=60))
    run_, subject = opened(tmp_path, plan), linear_checkpoint()
    there = mapped(run_, subject, plan, compute)
    rows = list(atlas_into(run_, subject, plan, there, compute))
    assert {name for row in rows for name in row["classes"]} == {"above", "below"}
    for row in rows:
        (name,) = row["classes"]
        assert row["count"] == row["classes"][name] >= 8
        pixels = pixels_of(tmp_path / row["image"]).astype(float)
        above, below = pixels[:10].mean(), pixels[10:].mean()
        assert (above > below + 20) == (name == "above")
        assert (below > above + 20) == (name == "below")
        assert row["score"] > row["trajectory"][0][1]


def test_the_rows_say_what_the_cells_hold(tmp_path, compute):
    plan = plan_of()
    run_, subject = opened(tmp_path, plan), small_checkpoint()
    there = mapped(run_, subject, plan, compute)
    rows = list(atlas_into(run_, subject, plan, there, compute))
    assert [row["unit"] for row in rows] == np.flatnonzero(there.cells.counts >= 3).tolist()
    labels, names = plan.source.whole.labels.numpy(), ("above", "below")
    for row in rows:
        assert (row["row"], row["column"]) == divmod(row["unit"], 3)
        own = labels[there.cells.cell == row["unit"]]
        assert row["count"] == len(own)
        assert row["classes"] == {names[k]: int((own == k).sum()) for k in (0, 1) if (own == k).any()}
        assert list(row["classes"].values()) == sorted(row["classes"].values(), reverse=True)
        assert row["status"] in ("ok", "dead", "saturated")
        assert pixels_of(tmp_path / row["image"]).shape == (*SHAPE[1:], SHAPE[0])
    facts = run_.info["atlas"][subject.id]
    directions = np.load(tmp_path / facts["directions"])
    assert directions.shape == (9, 32)
    assert facts["left_out"] == N - sum(row["count"] for row in rows)
    assert there.request.objective == Direction("conv2", str(tmp_path / facts["directions"]), 2.0)


def test_a_stopped_atlas_goes_on_with_the_same_pictures(tmp_path, compute, monkeypatch):
    """What was computed is read: not even the network is run again for activations and layout."""
    plan, subject = plan_of(), small_checkpoint()
    whole = opened(tmp_path / "whole", plan)
    expected = list(atlas_into(whole, subject, plan, mapped(whole, subject, plan, compute), compute))
    stopped = opened(tmp_path / "stopped", plan)
    rendering = atlas_into(stopped, subject, plan, mapped(stopped, subject, plan, compute), compute)
    assert len([next(rendering), next(rendering)]) == 2 < len(expected)
    rendering.close()
    with (tmp_path / "stopped" / "rows.jsonl").open("a") as file:
        file.write('{"half a ro')

    def never(*args: object, **options: object) -> None:
        raise AssertionError("computed again")

    for name in ("gathered", "laid_out", "directions"):
        monkeypatch.setattr(Atlas, name, never)
    resumed = opened(tmp_path / "stopped", plan)
    there = mapped(resumed, subject, plan, compute)
    assert len(missing_cells(resumed, subject, there)) == len(expected) - 2
    assert len(list(atlas_into(resumed, subject, plan, there, compute))) == len(expected) - 2
    assert not missing_cells(resumed, subject, there)
    found = {row["unit"]: row for row in atlas_rows(resumed, subject)}
    for row in expected:
        other = found[row["unit"]]
        assert (other["score"], other["trajectory"], other["classes"]) == (row["score"], row["trajectory"], row["classes"])
        one, two = (pixels_of(folder / row["image"]) for folder in (tmp_path / "whole", tmp_path / "stopped"))
        np.testing.assert_array_equal(one, two)


def test_changed_directions_are_refused(tmp_path, compute):
    plan, subject = plan_of(), small_checkpoint()
    run_ = opened(tmp_path, plan)
    mapped(run_, subject, plan, compute)
    file = tmp_path / "atlas" / subject.id / "directions.npy"
    np.save(file, np.load(file) * 2)
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        mapped(opened(tmp_path, plan), subject, plan, compute)
    file.with_name("layout.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is not readable .* delete it and run the command again"):
        mapped(opened(tmp_path, plan), subject, plan, compute)


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
        Atlas("pool", images=N).gathered(_Last(Index(scale)), pictures(), torch.arange(N), shape=SHAPE, compute=compute)
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


def test_an_atlas_picture_is_rendered_again_from_what_it_says(tmp_path, compute):
    plan, subject = plan_of(), small_checkpoint()
    run_ = opened(tmp_path, plan)
    row, *_ = atlas_into(run_, subject, plan, mapped(run_, subject, plan, compute), compute)
    made = Provenance.read(tmp_path / row["image"])
    again = rerender(made, subject, "cpu")
    np.testing.assert_array_equal((again.image * 255).round().movedim(0, -1).numpy(), made.pixels)
    file = tmp_path / "atlas" / subject.id / "directions.npy"
    np.save(file, np.load(file)[::-1])
    with pytest.raises(ValueError, match="is not what it was when"):
        rerender(made, subject, "cpu")


# What is drawn


def test_a_pictures_area_is_proportional_to_its_count(tmp_path):
    rows, colors = [], [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for i, (count, color) in enumerate(zip((100, 25, 1), colors, strict=True)):
        Image.new("RGB", (14, 14), color).save(tmp_path / f"{i}.png")
        rows.append({
            "row": i, "column": 2 - i, "count": count, "classes": {"cat": count}, "status": "ok", "image": f"{i}.png",
            "layer": "conv", "score": 1.0,
        })  # fmt: skip
    sheet = atlas_sheet(tmp_path / "s.png", tmp_path, rows, Subject("net", "net"), ["about"], 3, "made so")
    page = pixels_of(sheet)
    sides, centers = [], []
    for color in colors:
        y, x = np.nonzero((page == color).all(2))
        assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1), "one full square"
        sides.append(np.ptp(y) + 1)
        centers.append((y.mean(), x.mean()))
    assert sides[0] == 168
    assert sides[1] == 84
    assert sides[2] == round(0.4 * 168), "not smaller than can be seen"
    assert centers[0][0] < centers[1][0] < centers[2][0]
    assert centers[0][1] > centers[1][1] > centers[2][1]
    with Image.open(sheet) as picture:
        assert picture.text["Command"] == "made so"


def test_pixels_are_repeated_or_averaged():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(resized(pixels, 8, 6)[..., 0], pixels.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resized(pixels, 2, 3)[..., 1], pixels.reshape(3, 2, 2).mean(2))


# The command


def test_the_command_draws_an_atlas_for_each_network(tmp_path):
    one, two = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "b", 1)
    out = tmp_path / "run"
    args = ("atlas", one, two, "--layer", "conv2", "--images", 60, "--grid", 3, "--layout", "pca", "--steps", 2, "--out", out)
    first = run(*args, "--quiet", "--device", "cpu")
    assert first.exit_code == 0, first.output
    sheets = [Path(line.removeprefix("sheet: ")) for line in first.output.splitlines() if line.startswith("sheet: ")]
    assert len(sheets) == 2
    assert all(sheet.is_file() for sheet in sheets)
    rows = (out / "rows.jsonl").read_text()
    assert {row["checkpoint"] for row in map(json.loads, rows.splitlines())} == {
        sheet.stem.removesuffix("-conv2") for sheet in sheets
    }
    again = run(*args, "--device", "cpu", "--json")
    assert (out / "rows.jsonl").read_text() == rows
    assert sorted(again.stdout.splitlines()) == sorted(rows.splitlines())
    other = run(*args, "--device", "cpu", "--whiten", "--quiet")
    assert other.exit_code == 1
    assert "holds another run: atlas was" in other.output


def test_the_classes_are_those_of_the_data_not_of_the_network(tmp_path):
    seven = checkpoint(tmp_path / "seven", classes=7)
    options = ("--layer", "linear1", "--images", 30, "--grid", 1, "--layout", "pca", "--steps", 1, "--json")
    result = run("atlas", seven, "--data", "digits", *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    (row,) = map(json.loads, result.stdout.splitlines())
    assert sum(row["classes"].values()) == 30
    assert len(row["classes"]) == 10


BAD = {
    "too few images": (("--images", 9), "images must be at least 10, got 9"),
    "too many images": (("--images", 1259), "1259 images was asked for, but there are only 1258; ask for at most so many"),
    "no such layer": (("--layer", "conv9"), "did you mean"),
    "too fine": (("--images", 20, "--grid", 30), "leaves fewer than 5 of 20 images in every cell; make it coarser"),
    "no grid": (("--grid", 0), "grid must be at least 1, got 0"),
    "no size": (("--layer", "linear1", "--size", 30), "cannot take images of 30 x 30"),
    "other data": (("--data", "mnist5k"), "the images are 1 x 28 x 28, the network takes 1 x 8 x 8; give other --data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path):
    args, words = BAD[case]
    layer = () if "--layer" in args else ("--layer", "conv2")
    out = tmp_path / "run"
    result = run("atlas", checkpoint(tmp_path / "a"), *layer, "--layout", "pca", *args, "--out", out, "--quiet")
    assert result.exit_code == 1
    assert words in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output
    assert not list(out.rglob("*.png"))


def test_layers_without_anything_to_see_are_one_sentence(compute):
    split, index = pictures(12), torch.arange(12)
    with pytest.raises(ValueError, match="answers all images alike, so there is nothing to lay out"):
        Atlas("a").laid_out(np.zeros((20, 3)))
    with pytest.raises(ValueError, match="an atlas needs at least 10 images, got 9"):
        Atlas("a").laid_out(np.random.default_rng(0).normal(size=(9, 3)))
    broken = make_net()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 'conv1' gives values that are not finite"):
        Atlas("conv1").gathered(broken, split, index, shape=SHAPE, compute=compute)

    class Plane(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    odd = nn.Sequential(Plane(), nn.Flatten(), nn.Linear(SHAPE[1] * SHAPE[2], 4))
    with pytest.raises(ValueError, match="layer '0' has no units that can be read"):
        Atlas("0").gathered(odd, split, index, shape=SHAPE, compute=compute)


def test_the_spelled_out_choices_are_those_of_the_library():
    assert command.LAYOUTS == LAYOUTS
    assert command.SPLITS == SPLITS
    assert Atlas("a").images == command.MOST_IMAGES


@pytest.mark.slow
def test_a_killed_atlas_goes_on_and_its_pictures_are_those_of_an_undisturbed_one(tmp_path):
    network = checkpoint(tmp_path / "a")
    args = [sys.executable, "-m", "vizrobust", "atlas", str(network), "--layer", "conv2", "--images", "300", "--grid", "6",
            "--fewest", "1", "--steps", "60", "--batch-size", "2", "--quiet", "--device", "cpu", "--out"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*args, str(tmp_path / "whole")], check=True, capture_output=True, env=environment)
    whole = [json.loads(line) for line in (tmp_path / "whole/rows.jsonl").read_text().splitlines()]
    out = tmp_path / "killed"
    # Once while activations are read and laid out, once among the pictures.
    for sign in (lambda: (out / "atlas").is_dir(), lambda: (out / "rows.jsonl").is_file()):
        child = subprocess.Popen([*args, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while child.poll() is None and not sign():
            pass
        child.kill()
        child.wait()
        assert child.returncode == -9
    kept = (out / "rows.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    assert len(kept) < len(whole)
    subprocess.run([*args, str(out)], check=True, capture_output=True, env=environment)
    assert (out / "rows.jsonl").read_bytes().splitlines()[: len(kept)] == kept
    for row in whole:
        one, two = (pixels_of(folder / row["image"]) for folder in (tmp_path / "whole", out))
        np.testing.assert_array_equal(one, two)
    assert len((out / "rows.jsonl").read_bytes().splitlines()) == len(whole)
