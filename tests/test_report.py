"""Reports read runs as they are on disk; the pictures hold the right pixels in the right place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vizrobust.report import Collection, Column, collect, contact_sheet, write_gallery
from vizrobust.report.attack_figures import (
    _sweep_and_baselines,
    accuracy_over_attack_steps,
    accuracy_over_training_steps,
    adversarial_examples,
    amplification,
)
from vizrobust.report.canvas import lines_within, scaled, shortened, text_width
from vizrobust.report.style import save_figure, spread_labels
from vizrobust.results import Table
from vizrobust.runs import RunFolder

COMMAND = "vizrobust neurons k0 k8 --out runs/Zürich"
CHECKPOINT = {
    "name": "k8", "weights_sha256": "a" * 64, "attack_steps": 8, "eps": 0.3, "norm": "Linf", "training": "",
    "data": "mnist5k",
    "classes": ["zero", "one", "two"], "clean": 0.968, "robust": 0.748, "robust_attack": "PGD(steps=50)", "robust_n": 1000,
}  # fmt: skip
CHECKPOINTS = {
    "k0-b": {**CHECKPOINT, "name": "k0", "weights_sha256": "b" * 64, "attack_steps": 0, "robust": None, "robust_attack": ""},
    "k8-a": CHECKPOINT,
}


def gray(unit: int, seed: int = 0) -> int:
    """A shade of its own for each picture."""
    return (10 + 37 * unit + 5 * seed) % 250


def make_run(
    folder: Path, units: Any = range(3), *, checkpoints: Any = CHECKPOINTS, shape: tuple[int, ...] = (6, 4), seeds: Any = (0,),
    skip: Any = (), command: str = "neurons", identity: str = "plain", **row: Any,
) -> Path:  # fmt: skip
    run = RunFolder(
        folder, command, {"recipe": identity}, {"checkpoints": checkpoints, "argv": COMMAND, "versions": {"torch": "2.15.0"}}
    )
    for checkpoint in checkpoints:
        for unit in units:
            for seed in seeds:
                if (checkpoint, unit) not in skip:
                    image = np.full(shape, gray(unit, seed), np.uint8)
                    run.add_image(
                        {
                            "checkpoint": checkpoint, "weights_sha256": checkpoints[checkpoint]["weights_sha256"],
                            "layer": "logits", "unit": unit, "position": None, "sign": 1, "seed": seed, "recipe": "plain",
                            "recipe_text": "plain(steps=3)", "objective": "Logit()", "score": 1.5 + unit,
                            "saturated_share": 0.25, "trajectory": [[0, 0.1], [3, 1.5]], "status": "ok", "seconds": 0.1, **row,
                        },
                        image,
                        f"images/{checkpoint}/{unit}-s{seed}{row.get('layer', '')}{row.get('sign', '')}.png",
                    )  # fmt: skip
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_collect_groups_rows_into_panels(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [2, 0, 1], seeds=(1, 0), skip=[("k0-b", 1)])
    make_run(folder, [0], sign=-1)
    make_run(folder, [5], layer="conv2", position=[3, 4], objective='Neuron(layer="conv2", y=3, x=4)')
    make_run(folder, [6], layer="conv2", position=[0, 9], objective='Neuron(layer="conv2", y=0, x=9)')
    collection = collect([folder])
    liked, disliked, hidden = collection.panels
    assert [subject.name for subject in collection.checkpoints] == ["k0", "k8"]
    assert [liked.label(column) for column in liked.columns] == ["zero", "one", "two"]
    assert [hidden.label(column) for column in hidden.columns] == ["5 @3,4", "6 @0,9"]
    assert (liked.sign, disliked.sign, liked.seeds) == (1, -1, (0, 1))
    k0, k8 = collection.checkpoints
    assert liked.pictures(k0, Column(1)) == ()
    assert [picture.seed for picture in liked.pictures(k8, Column(1))] == [0, 1]
    assert collection.command == COMMAND


def test_class_names_show_only_where_checkpoints_agree(tmp_path: Path) -> None:
    other = {**CHECKPOINTS, "c": {**CHECKPOINT, "name": "c", "classes": ["zero", "uno"]}}
    panel = collect([make_run(tmp_path / "run", checkpoints=other)]).panels[0]
    assert [panel.label(column) for column in panel.columns] == ["zero", "1", "two"]


def test_collect_joins_runs_and_keeps_recipes_apart(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", [0])
    two = make_run(tmp_path / "two", [1])
    long = make_run(tmp_path / "long", [0], recipe_text="plain(steps=900)")
    joined = collect([one, two, long])
    assert [len(panel.columns) for panel in joined.panels] == [2, 1]
    assert [panel.recipe_text for panel in joined.panels] == ["plain(steps=3)", "plain(steps=900)"]


def test_two_checkpoints_of_one_name_are_told_apart(tmp_path: Path) -> None:
    twins = {id_: {**facts, "name": "k"} for id_, facts in CHECKPOINTS.items()}
    assert [s.name for s in collect([make_run(tmp_path / "run", checkpoints=twins)]).checkpoints] == [
        "k (bbbbbbbb)",
        "k (aaaaaaaa)",
    ]


def test_collect_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run; give a folder that vizrobust neurons wrote"):
        collect([tmp_path])
    with pytest.raises(ValueError, match="no run folder given"):
        collect([])
    with pytest.raises(ValueError, match="holds a run of 'train'"):
        collect([make_run(tmp_path / "train", command="train")])
    with pytest.raises(ValueError, match="holds no pictures yet"):
        collect([make_run(tmp_path / "empty", [])])
    folder = make_run(tmp_path / "run")
    (folder / "images/k8-a/1-s0.png").unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        collect([folder])
    stranger = make_run(tmp_path / "stranger")
    info = json.loads((stranger / "run.json").read_text())
    del info["checkpoints"]["k8-a"]
    (stranger / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"checkpoint 'k8-a' that its run\.json does not describe"):
        collect([stranger])


def flat_tiles(sheet: np.ndarray, shade: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of each tile of one shade, found by walking the picture."""
    found, mask = [], (sheet == shade).all(2)
    while mask.any():
        top, left = np.argwhere(mask)[0]
        height = int(np.argmin(np.append(mask[top:, left], False)))
        width = int(np.argmin(np.append(mask[top, left:], False)))
        if height * width > 400:
            found.append((int(top), int(left), height, width))
        mask[top : top + height, left : left + width] = False
    return found


def test_contact_sheet_places_every_picture_enlarged_by_a_whole_number(tmp_path: Path) -> None:
    collection = collect([make_run(tmp_path / "run", skip=[("k0-b", 1)])])
    sheet = pixels(contact_sheet(tmp_path / "sheet.png", collection))
    first, second, third = (flat_tiles(sheet, gray(unit)) for unit in range(3))
    assert [len(first), len(second), len(third)] == [2, 1, 2]
    tops, lefts = [tile[0] for tile in first], [tiles[-1][1] for tiles in (first, second, third)]
    assert tops == [tile[0] for tile in third]
    assert second[0][0] == tops[1]  # the cell that is missing is that of the first row
    assert lefts == sorted(lefts)
    height, width = first[0][2:]
    assert height % 6 == width % 4 == 0
    assert height // 6 == width // 4 > 20


def test_contact_sheet_keeps_the_pixels_of_a_large_colour_picture(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [0], shape=(224, 200, 3), checkpoints={"k8-a": CHECKPOINT})
    noise = np.random.default_rng(0).integers(0, 255, (224, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "images/k8-a/0-s0.png")
    sheet = pixels(contact_sheet(tmp_path / "sheet.png", collect([folder])))
    tops, lefts = np.nonzero((sheet[:-223, :-199] == noise[0, 0]).all(2))
    assert any((sheet[y : y + 224, x : x + 200] == noise).all() for y, x in zip(tops, lefts, strict=True))


def test_contact_sheet_carries_its_command_and_is_the_same_twice(tmp_path: Path) -> None:
    collection = collect([make_run(tmp_path / "run")])
    once, twice = (contact_sheet(tmp_path / name, collection).read_bytes() for name in ("a.png", "b.png"))
    assert once == twice
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Command"] == COMMAND


def test_contact_sheet_wraps_after_32_columns(tmp_path: Path) -> None:
    collection = collect([make_run(tmp_path / "run", range(6), checkpoints={"k8-a": CHECKPOINT}, layer="conv1")])
    wide = collect([make_run(tmp_path / "wide", range(34), checkpoints={"k8-a": CHECKPOINT}, layer="conv1", shape=(2, 2))])
    narrow, wrapped_ = (pixels(contact_sheet(tmp_path / "s.png", one)).shape for one in (collection, wide))
    sheet = pixels(tmp_path / "s.png")
    assert wrapped_[1] < 34 * 112  # one line of 34 would be wider
    assert wrapped_[0] > narrow[0]
    assert flat_tiles(sheet, gray(0))[0][1] == flat_tiles(sheet, gray(17))[0][1]  # units 0 and 17 begin a line each


def test_dead_units_are_empty_and_saturated_ones_marked(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [0], checkpoints={"k8-a": CHECKPOINT}, status="dead")
    make_run(folder, [1], checkpoints={"k8-a": CHECKPOINT}, status="saturated")
    sheet = pixels(contact_sheet(tmp_path / "sheet.png", collect([folder])))
    assert not flat_tiles(sheet, gray(0))
    assert (sheet == (0xE0, 0x66, 0x2F)).all(2).sum() > 100
    plain = make_run(tmp_path / "plain", [1], checkpoints={"k8-a": CHECKPOINT})
    unmarked = pixels(contact_sheet(tmp_path / "unmarked.png", collect([plain])))
    assert not (unmarked == (0xE0, 0x66, 0x2F)).all(2).any()


def test_seeds_stand_side_by_side_until_that_is_too_many(tmp_path: Path) -> None:
    few = pixels(contact_sheet(tmp_path / "s.png", collect([make_run(tmp_path / "few", [1], seeds=(0, 1))])))
    assert len(flat_tiles(few, gray(1, 0))) == len(flat_tiles(few, gray(1, 1))) == 2
    units = range(13)
    many = collect(
        [make_run(tmp_path / "many", units, seeds=(0, 1), shape=(2, 2), layer="conv1", checkpoints={"k8-a": CHECKPOINT})]
    )
    sheet = pixels(contact_sheet(tmp_path / "s.png", many))
    assert len(flat_tiles(sheet, gray(1, 0))) == 1
    assert not flat_tiles(sheet, gray(1, 1))


def test_names_are_never_read_as_formulas_or_files(tmp_path: Path) -> None:
    odd = {
        "x": {
            **CHECKPOINT,
            "name": "$x^{$ 名前 " + "long" * 40,
            "classes": ["$\\frac$", "a b c d e f g h i j k l m n o p q r s", "w" * 90],
        }
    }
    collection = collect([make_run(tmp_path / "run", checkpoints=odd)])
    assert contact_sheet(tmp_path / "sheet.png", collection).is_file()
    with pytest.raises(ValueError, match=r"must end in \.png"):
        contact_sheet(tmp_path / "sheet.jpg", collection)
    assert not list(tmp_path.glob(".*"))


def test_gallery_links_pictures_that_are_too_many_to_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizrobust.report.gallery.EMBED_BELOW", 10)
    one, two = make_run(tmp_path / "one", [0]), make_run(tmp_path / "two", [0], recipe_text="plain(steps=7)", identity="other")
    own = write_gallery(one, [one]).read_text()
    assert 'src="images/k8-a/0-s0.png"' in own
    both = write_gallery(tmp_path / "both", [one, two])
    sources = [part.split('"')[0] for part in both.read_text().split('src="')[1:]]
    assert len(set(sources)) == 4
    assert all((both.parent / source).is_file() for source in sources)


def test_gallery_of_a_run_leaves_the_run_readable(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", score=float("nan"))
    page = write_gallery(folder, [folder], [Table("Clarity", ["name", "AUC"], [["<b>k8</b>", "0.9"]], "a note")])
    text = page.read_text()
    assert "&lt;b&gt;k8&lt;/b&gt;" in text
    assert "NaN" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert (folder / "contact-sheet.png").is_file()
    assert "&lt;b&gt;k8&lt;/b&gt;" in write_gallery(tmp_path / "joined", [folder]).read_text()  # tables stay with the run
    assert len(collect([folder]).panels) == 1
    assert isinstance(collect([folder]), Collection)


def curve(*shares: float, **more: Any) -> list[dict[str, Any]]:
    return [
        {"steps": t, "accuracy": a, "ci_low": max(0, a - 0.02), "ci_high": min(1, a + 0.02), **more} for t, a in enumerate(shares)
    ]


def test_what_stands_above_the_pictures_is_wrapped_and_not_cut(tmp_path: Path) -> None:
    heights = []
    for name, objective in (("short", "Logit()"), ("long", " + ".join(["Channel(layer='conv2')"] * 12))):
        make_run(tmp_path / name, [0], objective=objective)
        heights.append(pixels(contact_sheet(tmp_path / f"{name}.png", collect([tmp_path / name]))).shape[0])
    assert heights[1] > heights[0]


def test_figures_in_three_formats(tmp_path: Path) -> None:
    draw = accuracy_over_attack_steps
    curves = [("k0, PGD()", curve(0.97, 0.4, 0.0)), ("k8, PGD()", curve(0.96, 0.8, 0.75)), ("one point $", curve(0.5))]
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        path = save_figure(draw(curves), tmp_path / f"figure{suffix}", "vizrobust attack")
        assert path.read_bytes().startswith(start)
        if suffix != ".png":  # dates and names that are drawn by lot would show here
            assert path.read_bytes() == save_figure(draw(curves), tmp_path / f"again{suffix}", "vizrobust attack").read_bytes()
    assert b"vizrobust attack" in (tmp_path / "figure.png").read_bytes()
    with pytest.raises(ValueError, match=r"a figure ends in \.png, \.svg, \.pdf"):
        save_figure(draw(curves), tmp_path / "figure.jpg")


@pytest.mark.parametrize("draw", [accuracy_over_attack_steps, accuracy_over_training_steps])
def test_nothing_is_no_figure(draw: Any) -> None:
    with pytest.raises(ValueError, match="no curve to draw"):
        draw([("empty", [])])


def test_named_arms_stand_beside_the_line() -> None:
    points = [
        {"steps": 1, "name": "mnist-fgsm", "accuracy": 0.1},
        {"steps": 1, "name": "mnist-k1", "accuracy": 0.2},
        {"steps": 0, "name": "mnist-k0", "accuracy": 0.3},
        {"steps": 1, "arm": "free", "accuracy": 0.4},
    ]
    dose, arms = _sweep_and_baselines(points)
    assert [point["name"] for point in dose] == ["mnist-k0", "mnist-k1"]
    assert [name for name, _ in arms] == ["free", "mnist-fgsm"]


def test_labels_move_apart_as_little_as_they_can() -> None:
    heights = [4.0, 4.0, 4.0, 4.0]
    placed = spread_labels([50, 90, 51, 50.5], heights)
    assert placed[1] == 90
    assert sorted(placed[:1] + placed[2:]) == pytest.approx([46.5, 50.5, 54.5])
    assert placed[0] < placed[3] < placed[2]
    # Lines that all end at 0 have their labels above one another from there, none below the axis.
    assert spread_labels([0, 0, 0, 5], heights, within=(0, 100)) == [2, 6, 10, 14]
    assert spread_labels([100, 99, 20], heights[:3], within=(0, 100)) == [98, 94, 20]


def test_examples_show_clean_perturbation_and_adversarial_pixels(tmp_path: Path) -> None:
    x = torch.full((2, 3, 4, 7), 100 / 255)
    adv = x + torch.tensor([40 / 255, -20 / 255]).view(2, 1, 1, 1)
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    path = adversarial_examples(
        tmp_path / "e.png", x, adv, torch.tensor([0, 1]), probs, probs.flip(1), ["cat", "dog $"], "PGD()", "k0", COMMAND
    )
    sheet = pixels(path)
    factor = amplification(40 / 255)
    shades = [100, 140, 80, *(round(127.5 + factor * change) for change in (40, -20))]
    for shade, count in zip([min(255, s) for s in shades], [2, 1, 1, 1, 1], strict=True):
        if shade < 255:
            assert len(flat_tiles(sheet, shade)) == count, shade
    assert flat_tiles(sheet, 140)[0][0] < flat_tiles(sheet, 80)[0][0]
    for suffix in ("svg", "pdf"):
        again = adversarial_examples(
            tmp_path / f"e.{suffix}", x, adv, torch.tensor([0, 1]), probs, probs, ["c", "d"], "PGD()", "k0"
        )
        assert again.stat().st_size > 1000
    with pytest.raises(ValueError, match="the same number of images"):
        adversarial_examples(path, x, adv[:1], torch.tensor([0, 1]), probs, probs, ["c", "d"], "PGD()", "k0")


@pytest.mark.parametrize(("largest", "factor"), [(0.3, 1.7), (8 / 255, 16), (0.5, 0.5 / 0.5), (1.0, 0.5), (0.0, 1.0)])
def test_the_amplification_just_fills_the_range(largest: float, factor: float) -> None:
    assert amplification(largest) == factor


def test_scaled_repeats_or_averages_whole_pixels() -> None:
    small = np.arange(6, dtype=np.uint8).reshape(2, 3)
    big = scaled(small, 9)
    assert (big == np.kron(small, np.ones((3, 3), np.uint8))[..., None]).all()
    large = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)
    halved = scaled(large, 20)
    assert halved.shape == (20, 10, 3)
    assert halved[3, 4].tolist() == large[6:8, 8:10].reshape(4, 3).astype(float).mean(0).round().tolist()


def test_text_fits_the_width_it_is_given() -> None:
    for text in ("word " * 20, "x" * 90, "runs/some/where/k8"):
        assert all(text_width(line, 20) <= 150 for line in lines_within(text, 150, 20))
        assert "".join("".join(lines_within(text, 150, 20)).split()) == "".join(text.split())
        assert text_width(shortened(text, 100, 20), 20) <= 100
    assert shortened("runs/some/where/k8", 100, 20).endswith("k8")
    assert shortened("k8", 100, 20) == "k8"
