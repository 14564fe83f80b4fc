"""What the pages of pictures share: the template environment, the size of tiles, and pictures as part of a page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vizrobust.results import Table

LEAST, MOST = 160, 256  # CSS pixels of a tile on a desktop; an enlarged one may be larger
ALONE = 340  # at most, where a row has room for one card
_NUMBER = r"[+−-]?\.?\d[\d.,]*(?:e[+-]?\d+)?(?: ?%)?"
NUMBERS = re.compile(rf"{_NUMBER}(?: (?:to|±|/) {_NUMBER}| [\[(]{_NUMBER}(?:,| to) {_NUMBER}[\])])?")
WIDE, BESIDE, CARD_GAP = 1384, 6, 20  # CSS pixels of a desktop's page, between tiles of a card, between cards


@cache
def environment() -> Environment:
    """Of the templates of all pages, compiled once: text is escaped, a missing value is an error."""
    templates = Environment(
        loader=PackageLoader("vizrobust.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"without_folders": without_folders, "minus": minus}
    templates.globals["numeric"] = numeric
    return templates


def without_folders(text: str) -> str:
    """A text in which files are named without the folders of this machine; a page may be handed on.

    >>> without_folders("npz:/home/me/data/mine.npz"), without_folders("4/255 of mnist5k")
    ('npz:mine.npz', '4/255 of mnist5k')
    """
    return re.sub(r"(?<![\w./])(?:[A-Za-z]:)?[/\\](?:[^/\\\s:]+[/\\])+", "", text)


def minus(text: str) -> str:
    """A text whose negative numbers and differences have a minus sign, which is as wide as a plus; names keep their hyphens.

    >>> minus("-0.5 [-1.2, +0.3]"), minus("mnist-k8 - mnist-k0"), minus("7e-46"), minus("-")
    ('−0.5 [−1.2, +0.3]', 'mnist-k8 − mnist-k0', '7e-46', '-')
    """
    return re.sub(r"(?<![^\s\[(])-(?=\.?\d)|(?<=\S )-(?= \S)", "\N{MINUS SIGN}", text)


def numeric(table: Table) -> list[bool]:
    """For each column of a table whether it holds numbers (alone, in percent, with an interval), to be set flush right.

    >>> numeric(Table("", ["unit", "score", "why"], [["3", "-1.5 [-2.0, 0.1]", "too few"], ["4", "-", "2 seeds"]]))
    [True, True, False]
    """
    columns = ([value for value in column if value not in ("-", "")] for column in zip(*table.rows, strict=True))
    return [bool(values) and all(NUMBERS.fullmatch(value) for value in values) for values in columns]


def embedded(file: Path) -> str:
    """A picture as a data URI."""
    return f"data:image/{file.suffix[1:].lower()};base64," + base64.b64encode(file.read_bytes()).decode()


def tile_style(files: Iterable[Path | None], across: int) -> dict[str, Any]:
    """How large tiles are shown, `across` of them beside each other in a card.

    `tile` is a whole multiple of `side`, the pixels of the pictures, of at least 160 CSS pixels: the one that leaves
    least of a desktop's width empty. Pictures larger than 256 pixels are reduced: then `side` is 0 and they are `smooth`.

    >>> tile_style([], 1)["tile"], tile_style([], 4)["tile"]
    (252, 336)
    """
    side = _side(files)
    if side > MOST:
        return {"tile": MOST, "side": 0, "smooth": True, "beside": across}
    least = -(-LEAST // side)
    most = ALONE if _cards(least * side, across) == 1 else MOST
    tiles = [step * side for step in range(least, max(least, most // side) + 1)]
    return {"tile": max(tiles, key=lambda tile: (_used(tile, across), -tile)), "side": side, "smooth": False, "beside": across}


def _used(tile: int, across: int) -> int:
    """CSS pixels of a desktop's width that cards of so many tiles cover; 0 where a card's tiles wrap."""
    return _cards(tile, across) * across * tile


def _cards(tile: int, across: int) -> int:
    """How many cards a row of a desktop holds."""
    return (WIDE + CARD_GAP) // (across * tile + (across - 1) * BESIDE + CARD_GAP)


def _side(files: Iterable[Path | None]) -> int:
    for file in files:
        if file is not None:
            with Image.open(file) as image:
                return image.width
    return 28
