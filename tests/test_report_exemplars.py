"""Natural exemplars in reports: the right images below the right picture, and the mark where the unit looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_report import CHECKPOINTS, flat_tiles, gray, make_run, pixels
from vizrobust.report import Column, collect, contact_sheet, write_gallery
from vizrobust.report.canvas import scaled
from vizrobust.report.contact_sheet import marked
from vizrobust.runs import write_json, write_png


def add_exemplars(folder: Path, units: Any, count: int = 5, **row: Any) -> None:
    """`count` exemplars at both ends of each unit as `exemplars_into` leaves them, image i all of shade 100 + i or 200 + i."""
    rows = []
    for checkpoint in CHECKPOINTS:
        for unit in units:
            for sign in (1, -1):
                images = []
                for rank in range(count):
                    name = f"images/exemplars/val-0/{sign}-{rank}.png"
                    write_png(folder / name, np.full((6, 4), (100 if sign > 0 else 200) + rank, np.uint8), {})
                    images.append({"image": name, "index": 10 * rank, "label": "two", "value": 3.5 - rank,
                                   "place": [1, 0], "box": [2, 1, 3, 2], **row})  # fmt: skip
                about = {"data": "mnist5k", "split": "val", "n": 500, "of": 500, "map": [2, 2]}
                rows.append(
                    {"checkpoint": checkpoint, "objective": "Logit()", "unit": unit, "sign": sign, **about, "images": images}
                )
    write_json(folder / "exemplars.json", rows)


def test_collect_gives_each_checkpoint_and_unit_its_own_exemplars(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [0, 1])
    make_run(folder, [0], sign=-1)
    make_run(folder, [0], layer="conv2", objective='Channel(layer="conv2")')
    add_exemplars(folder, [1])
    liked, disliked, hidden = collect([folder]).panels
    k8 = liked.checkpoints[1]
    shown = liked.exemplars_of(k8, Column(1))
    assert shown is not None
    assert [exemplar.index for exemplar in shown.most] == [0, 10, 20, 30, 40]
    assert shown.source == "500 validation images of mnist5k"
    assert shown.least[0].center == (0.75, 0.25)
    assert liked.exemplars_of(k8, Column(0)) is None
    assert not disliked.exemplars
    assert not hidden.exemplars
    (folder / "images/exemplars/val-0/1-3.png").unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        collect([folder])


@pytest.mark.parametrize("sign", [1, -1])
def test_contact_sheet_puts_exemplars_below_their_picture(tmp_path: Path, sign: int) -> None:
    folder = make_run(tmp_path / "run", [0, 2], sign=sign)
    add_exemplars(folder, [0, 2], place=None, box=None)
    sheet = pixels(contact_sheet(tmp_path / "sheet.png", collect([folder])))
    pictures = flat_tiles(sheet, gray(2))
    liked, disliked = flat_tiles(sheet, 100), flat_tiles(sheet, 200)
    assert len(pictures) == 2
    assert len(liked) == len(disliked) == 4
    _, left, height, width = pictures[0]
    first, second = (liked, disliked) if sign > 0 else (disliked, liked)
    for row in (0, 1):  # of checkpoints
        assert pictures[row][0] + height < first[2 * row][0] < second[2 * row][0]
    assert left - width // 2 < first[1][1] < left + width  # the second unit's are below the second unit
    assert first[0][1] < left - width // 2
    assert len(flat_tiles(sheet, 104)) == 4


def test_the_outline_is_where_the_receptive_field_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [0])
    add_exemplars(folder, [0])
    (panel,) = collect([folder]).panels
    shown = next(iter(panel.exemplars.values())).most[0]
    big = scaled(np.full((6, 4), 7, np.uint8), 60)  # ten times as large
    drawn = np.argwhere((marked(big, shown, 4) != 7).any(2))
    assert big.shape[:2] == (60, 40)
    assert drawn.min(0).tolist() == [20, 10]
    assert drawn.max(0).tolist() == [49, 29]
    assert (marked(big, shown, 4)[22:48, 12:28] == 7).all()
    cross = np.argwhere((marked(big, replace(shown, box=None), 4) != 7).any(2))
    assert cross.mean(0).round().tolist() == [44, 10]  # the middle of the lower left quarter, to a pixel
    assert (marked(big, replace(shown, box=None, position=None), 4) == 7).all()
    assert (big == 7).all()


def test_gallery_says_what_the_exemplars_are_and_links_them_where_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run", [0])
    add_exemplars(folder, [0])
    text = write_gallery(folder, [folder]).read_text()
    assert "the 5 most and the 5 least exciting of 500 validation images of mnist5k" in text
    assert "outlined with its receptive field" in text
    assert text.count('class="mark box"') == 20
    monkeypatch.setattr("vizrobust.report.gallery.EMBED_BELOW", 10)
    page = write_gallery(tmp_path / "other", [folder])
    sources = {part.split('"')[0] for part in page.read_text().split('src="')[1:]}
    assert len([source for source in sources if "/exemplars/" in source]) == 10
    assert all((page.parent / source).is_file() for source in sources)
