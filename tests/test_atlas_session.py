"""An atlas renders what its cells share, goes on where it stopped, and shows on a sheet how dense its cells are."""

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
from torch import nn

from tests.conftest import CLASSES, SHAPE, make_net
from tests.test_cli import checkpoint, run
from vizrobust.commands.neurons import MOST_IMAGES
from vizrobust.data import ArraySplit, DataSet
from vizrobust.data.dataset import SPLITS
from vizrobust.features import Direction, Provenance, plain, rerender
from vizrobust.features.atlas import LAYOUTS, Atlas, Plan, atlas_into, atlas_layout, atlas_rows, missing_cells
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.models import Checkpoint, CheckpointInfo
from vizrobust.models.checkpoints import body_state
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.sheets import atlas_sheet, resized
from vizrobust.requests import pictures as command
from vizrobust.runs import RunFolder

N = 70


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


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

    about = CheckpointInfo("linear", SHAPE, tuple(map(str, range(60))), (0.0,) * 3, (1.0,) * 3)
    net = build()
    nn.init.normal_(net[1].weight, std=count**-0.5)
    return Checkpoint("linear", about, body_state(net), build)


def small_checkpoint(seed: int = 0) -> Checkpoint:
    about = CheckpointInfo("small_cnn", SHAPE, tuple(map(str, range(CLASSES))), (0.4,) * 3, (0.3,) * 3)
    net = make_net(seed=seed)
    return Checkpoint(f"small{seed}", about, body_state(net), lambda: make_net(seed=seed).net)


def plan_of(layer: str = "conv2", **options: object) -> Plan:
    atlas = Atlas(layer, **{"grid": 3, "images": N, "min_activations": 3, "layout": "pca", **options})  # type: ignore[arg-type]
    return Plan(atlas, ImageSource(data_set(), "train"), plain(steps=3), batch_size=4)


def opened(folder: Path, plan: Plan) -> RunFolder:
    record = {"threads": torch.get_num_threads(), "device": "cpu", "versions": {}}
    return RunFolder(folder, "atlas", plan.identity("fp32"), record)


def test_a_cells_picture_is_what_its_images_share(tmp_path, compute):
    plan = replace(plan_of("logits", grid=2, min_activations=8), recipe=plain(steps=60))
    run_, subject = opened(tmp_path, plan), linear_checkpoint()
    there = atlas_layout(run_, subject, plan, compute)
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
    there = atlas_layout(run_, subject, plan, compute)
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
    expected = list(atlas_into(whole, subject, plan, atlas_layout(whole, subject, plan, compute), compute))
    stopped = opened(tmp_path / "stopped", plan)
    rendering = atlas_into(stopped, subject, plan, atlas_layout(stopped, subject, plan, compute), compute)
    assert len([next(rendering), next(rendering)]) == 2 < len(expected)
    rendering.close()
    with (tmp_path / "stopped" / "rows.jsonl").open("a") as file:
        file.write('{"half a ro')

    def never(*args: object, **options: object) -> None:
        raise AssertionError("computed again")

    for name in ("activation_vectors", "positions", "directions"):
        monkeypatch.setattr(Atlas, name, never)
    resumed = opened(tmp_path / "stopped", plan)
    there = atlas_layout(resumed, subject, plan, compute)
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
    atlas_layout(run_, subject, plan, compute)
    file = tmp_path / "atlas" / subject.id / "directions.npy"
    np.save(file, np.load(file) * 2)
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        atlas_layout(opened(tmp_path, plan), subject, plan, compute)
    file.with_name("layout.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is not readable .* delete it and run the command again"):
        atlas_layout(opened(tmp_path, plan), subject, plan, compute)


def test_an_atlas_picture_is_rendered_again_from_what_it_says(tmp_path, compute):
    plan, subject = plan_of(), small_checkpoint()
    run_ = opened(tmp_path, plan)
    row, *_ = atlas_into(run_, subject, plan, atlas_layout(run_, subject, plan, compute), compute)
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
    sheet = atlas_sheet(tmp_path / "s.png", tmp_path, rows, CheckpointFacts("net", "net"), ["about"], 3, "made so")
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


def test_aligned_networks_have_the_same_images_in_a_cell_and_stand_side_by_side(tmp_path):
    one, two = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "b", 1)
    out = tmp_path / "run"
    args = ("--layer", "conv2", "--images", 60, "--grid", 3, "--layout", "pca", "--steps", 1, "--device", "cpu", "--aligned")
    done = run("atlas", one, two, *args, "--out", out, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    of_each: dict[str, dict[int, object]] = {}
    for row in rows:
        of_each.setdefault(row["checkpoint"], {})[row["unit"]] = row["count"], row["classes"]
    assert len(of_each) == 2
    assert len({json.dumps(cells) for cells in of_each.values()}) == 1
    sheets = [pixels_of(out / f"{key}-conv2.png") for key in of_each]
    together = pixels_of(out / "aligned.png")
    assert together.shape[1] == sum(sheet.shape[1] for sheet in sheets)
    assert (together[: len(sheets[1]), -sheets[1].shape[1] :] == sheets[1][..., :3]).all()
    refused = run("atlas", one, *args, "--out", tmp_path / "other")
    assert refused.exit_code == 2
    assert "--aligned lays out two or more checkpoints together, got 1" in " ".join(refused.output.split())
    assert "holds another run" in run("atlas", one, two, *args[:-1], "--out", out).output


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


def test_the_spelled_out_choices_are_those_of_the_library():
    assert command.LAYOUTS == LAYOUTS
    assert command.SPLITS == SPLITS
    assert Atlas("a").images == MOST_IMAGES


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
