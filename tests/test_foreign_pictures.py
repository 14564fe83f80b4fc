"""Run folders and pictures from somebody else: nothing outside the folder is shown, and what a PNG states is bounded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.test_cli import checkpoint, run

SECRET = b"a line that nobody was to see"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    args = ("neurons", checkpoint(tmp_path / "net"), "--units", "0", "--steps", 1, "--movie", "--exemplars", 2, "--quiet")
    assert run(*args, "--out", "run").exit_code == 0
    (tmp_path / "secret.txt").write_bytes(SECRET)
    Image.fromarray(np.random.default_rng(7).integers(0, 255, (8, 8), dtype=np.uint8)).save("outside.png")
    return tmp_path / "run"


def changed(folder: Path, **changes: str) -> None:
    """The first row names other files."""
    row = {**json.loads((folder / "rows.jsonl").read_text().splitlines()[0]), **changes}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")


def refused(*words: str) -> None:
    result = run("gallery", "run", "--out", "page")
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words), line
    assert not Path("page").exists()


@pytest.mark.parametrize(("field", "name"), [("film", "../secret.txt"), ("image", "../outside.png"), ("image", "{absolute}")])
def test_a_page_shows_no_picture_from_outside_its_run(folder, field, name):
    changed(folder, **{field: name.format(absolute=Path("outside.png").resolve())})
    refused("outside that folder")


def test_nor_one_behind_a_link_nor_a_file_that_is_no_picture(folder):
    (folder / "link.png").symlink_to("../outside.png")
    changed(folder, image="link.png")
    refused("'link.png'", "outside that folder")
    (folder / "text.png").write_bytes(SECRET)
    changed(folder, image="text.png")
    refused("'text.png'", "no PNG or GIF")


def test_nor_an_exemplar_from_outside(folder):
    rows = json.loads((folder / "exemplars.json").read_text())
    rows[0]["images"][0]["image"] = "../outside.png"
    (folder / "exemplars.json").write_text(json.dumps(rows))
    refused("outside that folder")


def stated(folder: Path, change) -> Path:
    """The picture once more, with other texts."""
    (file,) = folder.glob("images/**/logits/*.png")
    with Image.open(file) as picture:
        texts = PngImagePlugin.PngInfo()
        for key, text in picture.text.items():
            texts.add_itxt(key, change(text))
        picture.save("foreign.png", pnginfo=texts)
    return Path("foreign.png")


def test_what_a_foreign_picture_states_is_bounded(folder):
    for change, words in (
        (lambda text: text.replace('"batch_size": 1,', '"batch_size": 10000000,'), ("10000000", "1024")),
        (lambda text: text.replace("steps=1)", "steps=1, size=90000)"), ("8 x 8", "90000 x 90000")),
    ):
        result = run("rerender", stated(folder, change))
        assert result.exit_code == 1, result.output
        assert all(word in result.stderr for word in words), result.stderr
    same = run("rerender", stated(folder, str))
    assert same.stdout == "same pixels\n", same.output


def test_a_pipe_or_a_folder_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    for name in ("pipe.png", str(tmp_path)):
        result = run("rerender", name)
        assert result.exit_code == 1
        assert f"{name!r} is no file" in result.stderr
