"""Collect finished `neurons` runs and their exemplars for galleries and sheets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vizrobust.features import main_term, parse_objective
from vizrobust.features.exemplar_runs import exemplar_rows
from vizrobust.features.pictures import picture_inside
from vizrobust.models import LOGITS
from vizrobust.report.viewer import without_folders
from vizrobust.runs import Row, digest, read_rows, read_run

Key = tuple[str, str, int]  # checkpoint, objective and unit
SPLIT_WORDS = {"val": "validation", "train": "training", "test": "test"}


@dataclass(frozen=True)
class Exemplar:
    """One natural image that excites a unit most or least; `rank` counts from 1.

    `position` is (row, column) in the layer's map of size `map` (height, width); `box` is the receptive field of that
    position, (top, left, height, width) in pixels.
    """

    file: Path
    name: str
    origin: int
    sign: int
    rank: int
    index: int
    label: str
    value: float
    position: tuple[int, int] | None
    box: tuple[int, int, int, int] | None
    map: tuple[int, int] | None

    @property
    def center(self) -> tuple[float, float] | None:
        """The position as shares of the image's height and width."""
        if self.position is None or self.map is None:
            return None
        return (self.position[0] + 0.5) / self.map[0], (self.position[1] + 0.5) / self.map[1]


@dataclass(frozen=True)
class Exemplars:
    """The images that excite one unit `most` and `least`, the most extreme first; `source` says where they are from."""

    most: tuple[Exemplar, ...] = field(repr=False)
    least: tuple[Exemplar, ...] = field(repr=False)
    source: str

    def of_sign(self, sign: int) -> tuple[Exemplar, ...]:
        """`most` for a positive sign, `least` for a negative one."""
        return self.most if sign > 0 else self.least

    @property
    def images(self) -> tuple[Exemplar, ...]:
        return (*self.most, *self.least)

    @property
    def count(self) -> int:
        return max(len(self.most), len(self.least))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a grid that holds them."""
        across = math.ceil(math.sqrt(self.count))
        return math.ceil(self.count / across), across


def read_exemplars(folder: Path, origin: int) -> dict[Key, Exemplars]:
    """Read the exemplars of a run folder. Raises ``FileNotFoundError`` where an image is missing."""
    found: dict[Key, dict[int, tuple[Exemplar, ...]]] = {}
    sources: dict[Key, str] = {}
    for row in exemplar_rows(folder):
        key = (str(row["checkpoint"]), str(row["objective"]), int(row["unit"]))
        found.setdefault(key, {})[int(row["sign"])] = tuple(
            _exemplar(row, entry, rank, folder, origin) for rank, entry in enumerate(row["images"], 1)
        )
        sources[key] = _source(row)
    return {key: Exemplars(images.get(1, ()), images.get(-1, ()), sources[key]) for key, images in found.items()}


def _exemplar(row: Row, entry: Mapping[str, Any], rank: int, folder: Path, origin: int) -> Exemplar:
    file = picture_inside(folder, entry["image"])
    if file is None:
        missing = str(folder / entry["image"])
        raise FileNotFoundError(f"picture {missing!r} is missing; run the command of {str(folder)!r} again")

    def numbers(value: Any) -> Any:
        return None if value is None else tuple(map(int, value))

    return Exemplar(
        file, str(entry["image"]), origin, int(row["sign"]), rank, int(entry["index"]), str(entry["label"]),
        float(entry["value"]), numbers(entry["place"]), numbers(entry["box"]), numbers(row["map"]),
    )  # fmt: skip


def _source(row: Row) -> str:
    """``500 validation images of mnist5k``."""
    some = f"{row['n']:,}" if row["n"] == row["of"] else f"{row['n']:,} of the {row['of']:,}"
    return f"{some} {SPLIT_WORDS.get(row['split'], row['split'])} images of {without_folders(row['data'])}"


Position = tuple[int, int]
COMMANDS = ("neurons", "compare", "microscope")  # whose run folders hold feature images


@dataclass(frozen=True)
class CheckpointFacts:
    """What run.json says about a checkpoint. Unknown numbers are None, unknown texts are empty.

    >>> CheckpointFacts("k8-a", "k8", attack_steps=8).training_words
    'K = 8 attack steps'
    """

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
        """``K = 8 attack steps``, ``standard training``, or empty where the steps are unknown."""
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
class Frames:
    """The frames of a picture's optimization, as a GIF beside it."""

    file: Path
    name: str
    origin: int


@dataclass(frozen=True)
class Picture:
    """One feature image with its facts. `file` is None for a dead unit."""

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
    frames: Frames | None = None


@dataclass(frozen=True)
class Panel:
    """The pictures of one layer, recipe and sign: a row per checkpoint, a column per unit, in a cell one picture per seed.

    `exemplars` holds the natural exemplars of those cells that have some.
    """

    layer: str
    recipe: str
    recipe_text: str
    sign: int
    objective: str
    checkpoints: tuple[CheckpointFacts, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], tuple[Picture, ...]] = field(repr=False)
    exemplars: Mapping[tuple[str, Column], Exemplars] = field(repr=False, default_factory=dict)

    def pictures(self, checkpoint: CheckpointFacts, column: Column) -> tuple[Picture, ...]:
        """The cell's pictures by seed; empty where there are none."""
        return self.cells.get((checkpoint.id, column), ())

    def exemplars_of(self, checkpoint: CheckpointFacts, column: Column) -> Exemplars | None:
        return self.exemplars.get((checkpoint.id, column))

    @property
    def signs(self) -> tuple[int, int]:
        """The signs of exemplars in the order in which they are shown: that of the pictures first."""
        return self.sign, -self.sign

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({picture.seed for cell in self.cells.values() for picture in cell}))

    @cached_property
    def whole(self) -> str:
        """The name of an objective that needs no unit; empty where columns are units."""
        try:
            about = main_term(parse_objective(self.objective))
            return "" if hasattr(about, "unit") else type(about).__name__
        except (ValueError, FileNotFoundError):  # a Direction whose vectors have moved
            return ""

    def label(self, column: Column) -> str:
        """The class name where all checkpoints agree on it, otherwise the unit's number; ``@y,x`` follows it."""
        if self.whole:
            return self.whole
        names = {one.classes[column.unit] for one in self.checkpoints if column.unit < len(one.classes)}
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
    """The run that made pictures: its folder, command line and versions, and 8 hex digits of its identity."""

    folder: Path
    identity: str
    command: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Collection:
    """The checkpoints, panels and runs that one report shows."""

    checkpoints: tuple[CheckpointFacts, ...]
    panels: tuple[Panel, ...]
    origins: tuple[Origin, ...]

    @property
    def command(self) -> str:
        """The command lines of the runs, one per line."""
        return "\n".join(origin.command for origin in self.origins if origin.command)


def collect(folders: Sequence[Path | str]) -> Collection:
    """Group the pictures of one or more finished `neurons` or `compare` runs into panels.

    Checkpoints keep the order of run.json, and units are sorted. Where two folders hold the same picture, the later one is
    used. Cells may be missing. Raises ``FileNotFoundError`` for a folder without a run or a missing picture, and
    ``ValueError`` for a run of another command, without rows, or with a row whose checkpoint is not in run.json.

    >>> collect([])
    Traceback (most recent call last):
    ValueError: no run folder given; name at least one that vizrobust neurons wrote
    """
    if not folders:
        raise ValueError("no run folder given; name at least one that vizrobust neurons wrote")
    checkpoints: dict[str, CheckpointFacts] = {}
    origins: list[Origin] = []
    groups: dict[tuple[Any, ...], dict[tuple[str, Column, int], Picture]] = {}
    exemplars: dict[Key, Exemplars] = {}
    for index, folder in enumerate(map(Path, folders)):
        origin, found = _open(folder)
        origins.append(origin)
        checkpoints |= {id_: facts for id_, facts in found.items() if id_ not in checkpoints}
        exemplars |= read_exemplars(folder, index)
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
    ordered = _distinct_names(checkpoints.values())
    panels = tuple(_panel(key, group, ordered, exemplars) for key, group in groups.items())
    return Collection(ordered, panels, tuple(origins))


def _open(folder: Path) -> tuple[Origin, dict[str, CheckpointFacts]]:
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
    return origin, {id_: _checkpoint_facts(id_, facts) for id_, facts in described.items()}


def _checkpoint_facts(id_: str, facts: Mapping[str, Any]) -> CheckpointFacts:
    known = {name: facts[name] for name in CheckpointFacts.__dataclass_fields__ if name != "id" and facts.get(name) is not None}
    known["data"] = without_folders(str(known.get("data", "")))
    known["classes"] = tuple(map(str, known.get("classes", ())))
    return CheckpointFacts(**{**known, "name": without_folders(str(known.get("name", id_))), "id": id_})


def _picture(row: Row, folder: Path, origin: int) -> Picture:
    position = row.get("position")
    shown = bool(row.get("image")) and row["status"] != "dead"
    file = picture_inside(folder, row["image"]) if shown else None
    if shown and file is None:
        missing = str(folder / row["image"])
        raise FileNotFoundError(f"picture {missing!r} is missing; run the command of {str(folder)!r} again in a new folder")
    name = row.get("film")
    frames = picture_inside(folder, name) if name and file is not None else None
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
        frames=None if frames is None else Frames(frames, str(name), origin),
    )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _without_position(objective: str) -> str:
    """Neurons of one layer at different positions are columns of one panel."""
    return re.sub(r",? *\b[yx]=\d+", "", objective)


def _panel(
    key: tuple[Any, ...],
    group: Mapping[tuple[str, Column, int], Picture],
    checkpoints: tuple[CheckpointFacts, ...],
    exemplars: Mapping[Key, Exemplars],
) -> Panel:
    layer, recipe, text, sign, objective = key
    cells: dict[tuple[str, Column], tuple[Picture, ...]] = {}
    for id_, column, seed in sorted(group):
        cells[id_, column] = (*cells.get((id_, column), ()), group[id_, column, seed])
    present = {id_ for id_, _ in cells}
    columns = tuple(sorted({column for _, column in cells}, key=lambda column: (column.unit, column.position or (-1, -1))))
    rows = tuple(checkpoint for checkpoint in checkpoints if checkpoint.id in present)
    found = {cell: exemplars.get((cell[0], pictures[0].objective, cell[1].unit)) for cell, pictures in cells.items()}
    shown = {cell: one for cell, one in found.items() if one is not None}
    return Panel(layer, recipe, text, sign, objective, rows, columns, cells, shown)


def _distinct_names(checkpoints: Iterable[CheckpointFacts]) -> tuple[CheckpointFacts, ...]:
    """Append the first digits of the hash to the names of checkpoints that share one."""
    checkpoints = tuple(checkpoints)
    names = [one.name for one in checkpoints]
    return tuple(
        replace(one, name=f"{one.name} ({one.weights_sha256[:8] or one.id})") if names.count(one.name) > 1 else one
        for one in checkpoints
    )
