"""Finished `neurons` runs and their natural exemplars, collected for galleries and sheets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vizrobust.features import main_term, parse_objective
from vizrobust.features.exemplar_runs import exemplar_rows
from vizrobust.models import LOGITS
from vizrobust.runs import Row, digest, read_rows, read_run

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


Position = tuple[int, int]
COMMANDS = ("neurons", "compare")  # whose run folders hold feature images


@dataclass(frozen=True)
class Subject:
    """A checkpoint as a report knows it: what run.json says about it. Unknown numbers are None, unknown texts empty."""

    id: str
    name: str
    weights_sha256: str = ""
    attack_steps: int | None = None
    eps: float | None = None
    norm: str = ""
    training: str = ""
    data: str = ""
    classes: tuple[str, ...] = ()
    clean: float | None = None
    robust: float | None = None
    robust_attack: str = ""
    robust_n: int | None = None

    @property
    def training_words(self) -> str:
        """``K = 8 attack steps``, ``standard training``, or nothing where it is unknown."""
        if self.attack_steps is None:
            return ""
        if self.attack_steps == 0:
            return "standard training"
        return f"K = {self.attack_steps} attack step{'s' if self.attack_steps > 1 else ''}"


@dataclass(frozen=True, order=True)
class Column:
    """One unit of a layer, at one position (y, x) where the objective names one."""

    unit: int
    position: Position | None = None

    @property
    def place(self) -> str:
        return "" if self.position is None else f"@{self.position[0]},{self.position[1]}"


@dataclass(frozen=True)
class Film:
    """A picture's way from its start, as a GIF beside it."""

    file: Path
    name: str
    origin: int


@dataclass(frozen=True)
class Picture:
    """One feature image with its facts. `file` is None where there is nothing to show (a dead unit)."""

    checkpoint: str
    column: Column
    seed: int
    objective: str
    status: str
    score: float | None
    saturated_share: float | None
    trajectory: tuple[tuple[float, float], ...]
    file: Path | None
    name: str
    origin: int
    weights_sha256: str
    film: Film | None = None


@dataclass(frozen=True)
class Panel:
    """The pictures of one layer, recipe and sign: rows are checkpoints, columns units, a cell one picture per seed.

    `naturals` holds the natural exemplars of those cells that have some.
    """

    layer: str
    recipe: str
    recipe_text: str
    sign: int
    objective: str
    subjects: tuple[Subject, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], tuple[Picture, ...]] = field(repr=False)
    naturals: Mapping[tuple[str, Column], Naturals] = field(repr=False, default_factory=dict)

    def pictures(self, subject: Subject, column: Column) -> tuple[Picture, ...]:
        """The cell's pictures by seed; empty where there are none."""
        return self.cells.get((subject.id, column), ())

    def naturals_of(self, subject: Subject, column: Column) -> Naturals | None:
        return self.naturals.get((subject.id, column))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({picture.seed for cell in self.cells.values() for picture in cell}))

    @cached_property
    def whole(self) -> str:
        """What an objective that is about no unit is called, such as DeepDream; empty where columns are units."""
        try:
            about = main_term(parse_objective(self.objective))
            return "" if hasattr(about, "unit") else type(about).__name__
        except (ValueError, FileNotFoundError):  # a Direction whose vectors have moved
            return ""

    def label(self, column: Column) -> str:
        """The class name for a class unit on which all checkpoints agree, otherwise the unit's number; ``@y,x`` behind it."""
        if self.whole:
            return self.whole
        names = {subject.classes[column.unit] for subject in self.subjects if column.unit < len(subject.classes)}
        label = names.pop() if self.layer == LOGITS and len(names) == 1 else str(column.unit)
        return f"{label} {column.place}".strip()

    @property
    def title(self) -> str:
        if self.whole:
            return f"{self.layer} as a whole" if self.sign > 0 else f"The opposite for {self.layer} as a whole"
        what = "class units" if self.layer == LOGITS else f"units of {self.layer}"
        return f"What excites the {what}" if self.sign > 0 else f"What the {what} dislike"

    @property
    def subtitle(self) -> str:
        parts = ["layer logits" if self.layer == LOGITS else "", f"recipe {self.recipe}", f"objective {self.objective}"]
        return ", ".join(part for part in parts if part and not part.endswith(" "))


@dataclass(frozen=True)
class Origin:
    """Where pictures came from: a run folder, its command line and versions, and 8 hex digits of its identity."""

    folder: Path
    identity: str
    command: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Collection:
    """Everything that one report shows."""

    subjects: tuple[Subject, ...]
    panels: tuple[Panel, ...]
    origins: tuple[Origin, ...]

    @property
    def command(self) -> str:
        """The command lines behind it, one a line."""
        return "\n".join(origin.command for origin in self.origins if origin.command)


def collect(folders: Sequence[Path | str]) -> Collection:
    """The pictures of one or more finished `neurons` (or `compare`) runs, grouped into panels.

    Checkpoints keep the order of run.json, units are sorted, later folders win where two hold the same picture.
    Cells may be missing. Raises ``FileNotFoundError`` for a folder without a run or a picture that is gone, and
    ``ValueError`` for a run of another command, without rows, or with a row whose checkpoint run.json lacks.
    """
    if not folders:
        raise ValueError("no run folder given; name at least one that vizrobust neurons wrote")
    subjects: dict[str, Subject] = {}
    origins: list[Origin] = []
    groups: dict[tuple[Any, ...], dict[tuple[str, Column, int], Picture]] = {}
    naturals: dict[Key, Naturals] = {}
    for index, folder in enumerate(map(Path, folders)):
        origin, found = _open(folder)
        origins.append(origin)
        subjects.update({id_: subject for id_, subject in found.items() if id_ not in subjects})
        naturals |= read_naturals(folder, index)
        rows = read_rows(folder)
        if not rows:
            raise ValueError(f"run {str(folder)!r} holds no pictures yet; run its command again to fill it")
        for row in rows:
            if row.get("checkpoint") not in found:
                raise ValueError(
                    f"run {str(folder)!r} has a row of checkpoint {row.get('checkpoint')!r} that its run.json does not "
                    "describe; make the run again"
                )
            picture = _picture(row, folder, index)
            recipe = str(row["recipe"])
            text = str(row.get("recipe_text") or recipe)
            key = (str(row["layer"]), recipe, text, int(row["sign"]), _without_position(picture.objective))
            groups.setdefault(key, {})[picture.checkpoint, picture.column, picture.seed] = picture
    ordered = _told_apart(subjects.values())
    panels = tuple(_panel(key, group, ordered, naturals) for key, group in groups.items())
    return Collection(ordered, panels, tuple(origins))


def _open(folder: Path) -> tuple[Origin, dict[str, Subject]]:
    info = read_run(folder)
    if info is None:
        raise FileNotFoundError(f"folder {str(folder)!r} holds no run; give a folder that vizrobust neurons wrote")
    described = info.get("checkpoints")
    if info.get("command") not in COMMANDS or not isinstance(described, dict):
        raise ValueError(f"folder {str(folder)!r} holds a run of {info.get('command')!r}; give one of vizrobust neurons")
    versions = {str(name): str(version) for name, version in (info.get("versions") or {}).items()}
    argv = info.get("argv") or ""
    command = argv if isinstance(argv, str) else " ".join(map(str, argv))
    origin = Origin(folder, digest(info["identity"]), command, versions)
    return origin, {id_: _subject(id_, facts) for id_, facts in described.items()}


def _subject(id_: str, facts: Mapping[str, Any]) -> Subject:
    known = {name: facts[name] for name in Subject.__dataclass_fields__ if name != "id" and facts.get(name) is not None}
    known["classes"] = tuple(map(str, known.get("classes", ())))
    return Subject(**{"name": id_, **known, "id": id_})


def _picture(row: Row, folder: Path, origin: int) -> Picture:
    position = row.get("position")
    file = folder / row["image"] if row.get("image") and row["status"] != "dead" else None
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"picture {str(file)!r} is gone; run the command of {str(folder)!r} again in a new folder")
    film = row.get("film")
    return Picture(
        checkpoint=row["checkpoint"],
        column=Column(int(row["unit"]), None if position is None else (int(position[0]), int(position[1]))),
        seed=int(row["seed"]),
        objective=str(row.get("objective", "")),
        status=str(row["status"]),
        score=_finite(row.get("score")),
        saturated_share=_finite(row.get("saturated_share")),
        trajectory=tuple((step, score) for step, score in row.get("trajectory") or () if _finite(score) is not None),
        file=file,
        name=str(row.get("image") or ""),
        origin=origin,
        weights_sha256=str(row.get("weights_sha256", "")),
        film=Film(folder / film, film, origin) if film and file is not None and (folder / film).is_file() else None,
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _without_position(objective: str) -> str:
    """Neurons of one layer at different positions are columns of one panel."""
    return re.sub(r",? *\b[yx]=\d+", "", objective)


def _panel(
    key: tuple[Any, ...],
    group: Mapping[tuple[str, Column, int], Picture],
    subjects: tuple[Subject, ...],
    naturals: Mapping[Key, Naturals],
) -> Panel:
    layer, recipe, text, sign, objective = key
    cells: dict[tuple[str, Column], tuple[Picture, ...]] = {}
    for checkpoint, column, seed in sorted(group):
        cells[checkpoint, column] = (*cells.get((checkpoint, column), ()), group[checkpoint, column, seed])
    present = {checkpoint for checkpoint, _ in cells}
    columns = tuple(sorted({column for _, column in cells}, key=lambda column: (column.unit, column.position or (-1, -1))))
    rows = tuple(subject for subject in subjects if subject.id in present)
    found = {cell: naturals.get((cell[0], pictures[0].objective, cell[1].unit)) for cell, pictures in cells.items()}
    shown = {cell: one for cell, one in found.items() if one is not None}
    return Panel(layer, recipe, text, sign, objective, rows, columns, cells, shown)


def _told_apart(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Checkpoints of one name get the first digits of their hash behind it."""
    subjects = tuple(subjects)
    names = [subject.name for subject in subjects]
    return tuple(
        Subject(**{**subject.__dict__, "name": f"{subject.name} ({subject.weights_sha256[:8] or subject.id})"})
        if names.count(subject.name) > 1
        else subject
        for subject in subjects
    )
