"""A spritemap shows every unit's own picture at its place, with its number, however many units there are."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_cli import checkpoint, run
from vizrobust.models import load_checkpoint, save_checkpoint
from vizrobust.report.canvas import Canvas
from vizrobust.report.collect import CheckpointFacts
from vizrobust.report.sheets import ORDERS, missing_tile, spritemap_sheet
from vizrobust.requests import pictures as command
from vizrobust.runs import Row

NET = CheckpointFacts("net", "net", classes=("cat", "dog"))


def sprites(folder: Path, count: int, size: tuple[int, int] = (5, 4), dead: tuple[int, ...] = ()) -> list[Row]:
    """Rows with pictures of random colours; units in a mixed order, scores in another."""
    rng = np.random.default_rng(0)
    rows = []
    for unit in rng.permutation(count).tolist():
        Image.fromarray(rng.integers(1, 250, (*size, 3), dtype=np.uint8)).save(folder / f"{unit}.png")
        rows.append({
            "unit": unit, "layer": "conv", "sign": 1, "seed": 0, "recipe_text": "plain()", "objective": "Channel()",
            "score": unit * 37 % 101 + 0.5, "status": "dead" if unit in dead else "ok", "image": f"{unit}.png",
        })  # fmt: skip
    return rows


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def places_in(page: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Every (row, column) of the page where exactly this tile stands; both (h, w, 3)."""
    height, width = tile.shape[:2]
    first, found = tile[0].tobytes(), []
    for y in range(len(page) - height + 1):
        line, at = page[y].tobytes(), -1
        while (at := line.find(first, at + 1)) >= 0:
            if at % 3 == 0 and np.array_equal(page[y : y + height, at // 3 : at // 3 + width], tile):
                found.append((y, at // 3))
    return found


def found_in(sheet: Path, tiles: dict[int, np.ndarray]) -> list[int]:
    """The tiles' names in reading order of where they stand in the sheet; each must be there exactly once."""
    page = pixels_of(sheet)
    places = {name: places_in(page, tile) for name, tile in tiles.items()}
    assert all(len(place) == 1 for place in places.values()), places
    return sorted(places, key=lambda name: places[name])


def enlarged(file: Path, target: int) -> np.ndarray:
    pixels = pixels_of(file)
    factor = round(target / max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


@pytest.mark.parametrize("order", ["unit", "score"])
def test_every_picture_is_there_once_in_the_order_asked_for(tmp_path, order):
    rows = sprites(tmp_path, 11)
    sheet = spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET, order=order, command="made so")
    shown = found_in(sheet, {row["unit"]: enlarged(tmp_path / row["image"], 168) for row in rows})
    expected = sorted(rows, key=lambda row: row["unit"] if order == "unit" else -row["score"])
    assert shown == [row["unit"] for row in expected]
    with Image.open(sheet) as page:
        assert page.text["Command"] == "made so"


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """All texts that canvases get from now on, with their places."""
    texts: list[tuple[str, float, float]] = []
    plain = Canvas.text

    def noted(self: Canvas, text: str, x: float, y: float, size: float, **how: object) -> None:
        texts.append((text, x, y))
        plain(self, text, x, y, size, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Canvas, "text", noted)
    return texts


def test_dead_units_are_crossed_counted_and_last_by_score(tmp_path, monkeypatch):
    rows, texts = sprites(tmp_path, 6, dead=(2, 5)), written(monkeypatch)
    sheet = spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET, order="score")
    labels = [text for text, _, _ in texts if text.isdigit()]
    assert labels[-2:] == ["2", "5"] or labels[-2:] == ["5", "2"]
    assert any(text.startswith("crossed, 2 of 6, dead") for text, _, _ in texts)
    page = pixels_of(sheet)
    alive = {row["unit"]: enlarged(tmp_path / row["image"], 168) for row in rows if row["status"] == "ok"}
    assert len(found_in(sheet, alive)) == 4
    tile = missing_tile(*reversed(alive[0].shape[:2]))
    assert len(places_in(page, tile)) == 2


def test_a_cross_runs_from_corner_to_corner():
    tile = missing_tile(6, 9)[..., 0] < 255
    assert tile.shape == (9, 6)
    assert tile[0, 0]
    assert tile[0, -1]
    assert tile[4, 2:4].any()
    assert not tile[4, 0]
    np.testing.assert_array_equal(tile, tile[:, ::-1])


def test_all_pictures_dead_is_still_a_sheet(tmp_path):
    rows = sprites(tmp_path, 3, dead=(0, 1, 2))
    assert spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET).is_file()


@pytest.mark.parametrize("size", [(100, 150), pytest.param((64, 64), marks=pytest.mark.slow)])
def test_512_units_make_a_near_square_sheet_with_a_readable_number_each(tmp_path, monkeypatch, size):
    (row,), texts = sprites(tmp_path, 1, size), written(monkeypatch)
    rows = [{**row, "unit": unit} for unit in range(512)]
    sheet = spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET)
    with Image.open(sheet) as page:
        width, height = page.size
    assert max(width, height) < 3500
    assert 0.55 < width / height < 1.8
    places = {int(text): (y, x) for text, x, y in texts if text.isdigit()}
    assert sorted(places, key=lambda unit: places[unit]) == list(range(512))
    across = len({x for _, x in places.values()})
    assert -512 % across <= 1, "the last row is as good as full"


def test_columns_and_class_names(tmp_path, monkeypatch):
    rows, texts = sprites(tmp_path, 7), written(monkeypatch)
    spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET, columns=3)
    numbers = [(x, y) for text, x, y in texts if text.isdigit()]
    assert (len({x for x, _ in numbers}), len({y for _, y in numbers})) == (3, 3)
    for row in rows:
        row["layer"] = "logits"
    texts.clear()
    spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET)
    assert [text for text, _, _ in texts if text in ("cat", "dog", "2")] == ["cat", "dog", "2"]


def test_what_cannot_be_drawn_is_one_sentence(tmp_path):
    rows = sprites(tmp_path, 3)
    for change, words in (
        ({"order": "size"}, "no order 'size'; there are: unit, score"),
        ({"columns": 0}, "at least 1 column, got 0"),
        ({"rows": []}, "holds no pictures of net"),
    ):
        with pytest.raises(ValueError, match=words):
            spritemap_sheet(tmp_path / "s.png", tmp_path, **{"rows": rows, "checkpoint": NET, **change})
    with pytest.raises(ValueError, match=r"900 units in 1 columns need .* give other columns"):
        spritemap_sheet(tmp_path / "s.png", tmp_path, rows * 300, NET, columns=1)
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture '.*1\.png' is missing"):
        spritemap_sheet(tmp_path / "s.png", tmp_path, rows, NET)
    assert not (tmp_path / "s.png").exists()


def test_the_command_draws_one_sheet_for_each_network_and_renders_once(tmp_path):
    small, other = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "b", 1)
    out = tmp_path / "run"
    args = ("spritemap", small, "--layer", "conv2", "--steps", 2, "--out", out, "--device", "cpu", "--quiet")
    first = run(*args)
    assert first.exit_code == 0, first.output
    (line,) = [line for line in first.output.splitlines() if line.startswith("sheet: ")]
    sheet = Path(line.removeprefix("sheet: "))
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["unit"] for row in rows] == list(range(32)), "all units, not the first 16"
    shown = found_in(sheet, {row["unit"]: enlarged_grey(out / row["image"], 168) for row in rows})
    assert shown == list(range(32))
    before = (out / "rows.jsonl").read_bytes()
    again = run(*args, "--sort", "score", "--columns", 5, "--json")
    assert again.exit_code == 0
    assert (out / "rows.jsonl").read_bytes() == before
    assert [json.loads(line)["unit"] for line in again.stdout.splitlines()] == list(range(32))
    two = run("spritemap", small, other, "--layer", "logits", "--steps", 1, "--negative", "--out", tmp_path / "two", "--quiet")
    assert two.output.count("sheet: ") == 2
    assert len(list((tmp_path / "two").glob("*-logits-neg-s0.png"))) == 2


def enlarged_grey(file: Path, target: int) -> np.ndarray:
    return np.repeat(enlarged(file, target)[..., None], 3, 2)


def test_a_dead_unit_of_a_network_is_crossed(tmp_path):
    path = checkpoint(tmp_path / "a")
    loaded = load_checkpoint(str(path))
    state = {key: value.clone() for key, value in loaded.state.items()}
    state["conv1.weight"][3], state["conv1.bias"][3] = 0, -1
    save_checkpoint(path, state, loaded.info)
    result = run("spritemap", path, "--layer", "relu1", "--units", "2:5", "--steps", 2, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert [row["status"] == "dead" for row in map(json.loads, result.stdout.splitlines())] == [False, True, False]


def test_pictures_are_written_as_batches_come(tmp_path, monkeypatch):
    """Nothing waits for the last unit: when a picture is written, no later batch has begun."""
    render, session = import_module("vizrobust.features.render"), import_module("vizrobust.features.picture_runs")
    batches: list[int] = []
    seen: list[int] = []
    plain_batch, plain_pixels = render._render_batch, session.to_uint8
    monkeypatch.setattr(render, "_render_batch", lambda *args: batches.append(1) or plain_batch(*args))
    monkeypatch.setattr(session, "to_uint8", lambda image: seen.append(len(batches)) or plain_pixels(image))
    options = ("--layer", "conv2", "--steps", 1, "--batch-size", 4, "--out", tmp_path / "run", "--quiet")
    assert run("spritemap", checkpoint(tmp_path / "a"), *options).exit_code == 0
    assert seen == [math.ceil((i + 1) / 4) for i in range(32)]


def test_ctrl_c_says_how_to_go_on_and_the_rest_is_the_same(tmp_path, monkeypatch):
    session = import_module("vizrobust.features.picture_runs")
    network, plain = checkpoint(tmp_path / "a"), session.to_uint8
    args = ("spritemap", network, "--layer", "conv1", "--steps", 3, "--batch-size", 4, "--quiet", "--out")
    calls: list[int] = []

    def stop(image: torch.Tensor) -> np.ndarray:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return plain(image)

    monkeypatch.setattr(session, "to_uint8", stop)
    stopped = run(*args, tmp_path / "one")
    assert stopped.exit_code == 130
    assert "stopped; go on with: vizrobust" in stopped.output
    # Batches are kept whole: the first one is, the second was stopped at its third picture.
    assert len((tmp_path / "one/rows.jsonl").read_text().splitlines()) == 4
    assert not list((tmp_path / "one").glob("*.png"))
    monkeypatch.setattr(session, "to_uint8", plain)
    assert run(*args, tmp_path / "one").exit_code == run(*args, tmp_path / "two").exit_code == 0
    pictures = sorted((tmp_path / "one").rglob("images/**/*.png"))
    assert len(pictures) == 16
    for picture in pictures:
        other = tmp_path / "two" / picture.relative_to(tmp_path / "one")
        np.testing.assert_array_equal(pixels_of(picture), pixels_of(other))


def test_bad_input_of_the_command_is_one_sentence(tmp_path):
    network = checkpoint(tmp_path / "a")
    for args, words in (
        (("--layer", "conv9"), "did you mean"),
        (("--layer", "conv1", "--units", "16"), "no unit 16 in layer conv1"),
        (("--layer", "linear1", "--size", 30), "cannot take images of 30 x 30"),
    ):
        result = run("spritemap", network, *args, "--out", tmp_path / "run", "--quiet")
        assert result.exit_code == 1
        assert words in result.output.replace("\n", " "), result.output
        assert not (tmp_path / "run").exists()


def test_the_spelled_out_orders_are_those_of_the_sheet():
    assert command.SHEET_ORDERS == ORDERS
