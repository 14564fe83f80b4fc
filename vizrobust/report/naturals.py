"""Natural exemplars as reports show them: the images at both ends of a unit, and the place in them that did it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizrobust.features.exemplar_session import exemplar_rows
from vizrobust.runs import Row

Key = tuple[str, str, int]  # checkpoint, objective and unit
SPLIT_WORDS = {"val": "validation", "train": "training", "test": "test"}


@dataclass(frozen=True)
class Natural:
    """One natural image at an end of a unit's order; `rank` counts from 1.

    `place` is (row, column) in the layer's map of `map` (height, width), `box` (top, left, height, width) in pixels.
    """

    file: Path
    name: str
    origin: int
    sign: int
    rank: int
    index: int
    label: str
    value: float
    place: tuple[int, int] | None
    box: tuple[int, int, int, int] | None
    map: tuple[int, int] | None

    @property
    def center(self) -> tuple[float, float] | None:
        """Where the place is in the image, as shares of its height and width."""
        if self.place is None or self.map is None:
            return None
        return (self.place[0] + 0.5) / self.map[0], (self.place[1] + 0.5) / self.map[1]


@dataclass(frozen=True)
class Naturals:
    """Both ends of one unit, the most extreme image first; `source` says in words what they were chosen from."""

    ends: Mapping[int, tuple[Natural, ...]] = field(repr=False)
    source: str

    @property
    def count(self) -> int:
        return max(len(end) for end in self.ends.values())

    @property
    def shape(self) -> tuple[int, int]:
        """How many images stand below and beside each other."""
        across = math.ceil(math.sqrt(self.count))
        return math.ceil(self.count / across), across


def read_naturals(folder: Path, origin: int) -> dict[Key, Naturals]:
    """The exemplars in a run folder; ``FileNotFoundError`` for an image that is gone."""
    found: dict[Key, dict[int, tuple[Natural, ...]]] = {}
    sources: dict[Key, str] = {}
    for row in exemplar_rows(folder):
        key = (str(row["checkpoint"]), str(row["objective"]), int(row["unit"]))
        found.setdefault(key, {})[int(row["sign"])] = tuple(
            _natural(row, entry, rank, folder, origin) for rank, entry in enumerate(row["images"], 1)
        )
        sources[key] = _source(row)
    return {key: Naturals(ends, sources[key]) for key, ends in found.items()}


def _natural(row: Row, entry: Mapping[str, Any], rank: int, folder: Path, origin: int) -> Natural:
    file = folder / entry["image"]
    if not file.is_file():
        raise FileNotFoundError(f"picture {str(file)!r} is gone; run the command of {str(folder)!r} again")

    def numbers(value: Any) -> Any:
        return None if value is None else tuple(map(int, value))

    return Natural(
        file, str(entry["image"]), origin, int(row["sign"]), rank, int(entry["index"]), str(entry["label"]),
        float(entry["value"]), numbers(entry["place"]), numbers(entry["box"]), numbers(row["map"]),
    )  # fmt: skip


def _source(row: Row) -> str:
    """``500 validation images of mnist5k``."""
    some = f"{row['n']:,}" if row["n"] == row["of"] else f"{row['n']:,} of the {row['of']:,}"
    return f"{some} {SPLIT_WORDS.get(row['split'], row['split'])} images of {row['data']}"
