"""UAR: how robust a network is to an attack, relative to what training against that attack reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vizrobust.attacks import Attack, ball_of, configured, family, parse_attack
from vizrobust.spec import vary

SIZES = 6
FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """Six sizes of one attack on one data set, and the accuracy ATA that the best network trained against it has there.

    `name` is the attack's as `family` gives it, `attack` its spec without eps, as it was tested. `arch` is the networks'
    architecture; a `published` calibration says nothing about networks of another one, and comes with another protocol
    than this package's own (the last iterate towards a random class decides). `provenance` says all that in sentences.
    """

    data: str
    name: str
    eps: tuple[float, ...]
    ata: tuple[float, ...]
    attack: str
    arch: str
    provenance: str
    published: bool = False

    def __post_init__(self) -> None:
        where = f"calibration of {self.name} on {self.data}"
        if len(self.eps) != SIZES or len(self.ata) != SIZES:
            raise ValueError(f"{where}: needs {SIZES} eps and {SIZES} ATA, got {len(self.eps)} and {len(self.ata)}")
        if any(not 0 < small < large < math.inf for small, large in zip(self.eps, self.eps[1:], strict=False)):
            raise ValueError(f"{where}: eps must be above 0 and grow, got {list(self.eps)}")
        if not all(0 <= value <= 1 for value in self.ata) or not any(self.ata):
            raise ValueError(f"{where}: ATA must be fractions, not all 0, got {list(self.ata)}")
        if (found := family(parse_attack(self.attack))) != self.name:
            raise ValueError(f"{where}: its attack {self.attack} is listed as {found}, not {self.name}")

    def attacks(self, **changes: Any) -> tuple[Attack, ...]:
        """The attack at each of the six sizes, as it was tested, or with `changes` such as ``steps=50``.

        Steps of a published calibration are eps / sqrt(steps) where its attack names none (Kang et al. 2019).
        """
        return tuple(self._sized(eps, changes) for eps in self.eps)

    def uar(self, accuracies: Sequence[float]) -> float:
        """UAR of a network with these accuracies at the six sizes."""
        return uar(accuracies, self.ata)

    def _sized(self, eps: float, changes: dict[str, Any]) -> Attack:
        attack = configured(parse_attack(self.attack), eps=eps, **changes)
        named = getattr(attack, "alpha", None) is not None
        if self.published and not named and ball_of(attack) is not None:
            steps = getattr(attack, "steps", 1)
            return vary(attack, alpha=eps / math.sqrt(max(steps, 1)))
        return attack


def uar(accuracies: Sequence[float], ata: Sequence[float]) -> float:
    """The sum of a network's accuracies over that of the best trained networks' (Kang et al. 2019, section 4).

    Both as fractions, at the same sizes of one attack. It may be above 1. (The paper has it times 100.)

    >>> round(uar([0.8, 0.4, 0.2], [0.9, 0.7, 0.4]), 3)
    0.7
    """
    if len(accuracies) != len(ata):
        raise ValueError(f"UAR needs an accuracy for each ATA, got {len(accuracies)} for {len(ata)}")
    if not all(0 <= value <= 1 for value in (*accuracies, *ata)):
        raise ValueError(f"accuracies are fractions from 0 to 1, got {[*accuracies, *ata]}")
    if not sum(ata) > 0:
        raise ValueError("UAR needs an ATA above 0: nothing trained against this attack withstands it")
    return sum(accuracies) / sum(ata)


def mean_uar(scores: Mapping[str, float], seen: Collection[str] = ()) -> tuple[float, tuple[str, ...]]:
    """The mean UAR over the attacks that training has not seen, and which these are.

    `scores` is each attack's UAR and `seen` the attacks of training, all named by `family`. Raises ``ValueError`` where
    none is left.

    >>> mean_uar({"Linf": 0.9, "L2": 0.6, "Elastic": 0.4}, seen=["Linf"])
    (0.5, ('L2', 'Elastic'))
    """
    left = tuple(name for name in scores if name not in seen)
    if not left:
        raise ValueError(f"no attack is unforeseen: training has seen {', '.join(seen) or 'none'}, and there are no others")
    return sum(scores[name] for name in left) / len(left), left


def unforeseen_ratio(seen: float, unforeseen: float) -> float | None:
    """The accuracy under unforeseen attacks over that under attacks of training; None where the latter is 0.

    >>> unforeseen_ratio(0.8, 0.4), unforeseen_ratio(0.0, 0.4)
    (0.5, None)
    """
    return unforeseen / seen if seen > 0 else None


def calibration_for(data: str, name: str, folder: Path | str | None = None) -> Calibration | None:
    """The calibration of the attack listed as `name` (see `family`) on a data set; None where there is none.

    A calibration in `folder`, a run of ``vizrobust calibrate``, comes before those that ship with the package, and
    of these one measured here before a published one.

    >>> calibration_for("cifar10", "Elastic").ata[0], calibration_for("cifar10", "Fog")
    (0.8738, None)
    """
    known = (*(_in_folder(Path(folder)) if folder is not None else ()), *sorted(packaged(), key=lambda c: c.published))
    return next((found for found in known if (found.data, found.name) == (data, name)), None)


@cache
def packaged() -> tuple[Calibration, ...]:
    """The calibrations that ship with the package."""
    found = sorted(files("vizrobust.robustness").joinpath("calibrations").iterdir(), key=lambda file: file.name)
    return tuple(
        calibration for file in found if file.name.endswith(".json") for calibration in _read(file.read_text("utf-8"), file.name)
    )


def read_calibrations(file: Path | str) -> tuple[Calibration, ...]:
    """The calibrations in a JSON file, one or a list; ``ValueError`` where they are not what they should be."""
    return tuple(_read(Path(file).read_text("utf-8"), str(file)))


def _in_folder(folder: Path) -> Iterator[Calibration]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no calibration in {folder}; `vizrobust calibrate --out {folder}` makes one")
    inner = folder / "calibrations"
    for file in sorted((inner if inner.is_dir() else folder).glob("*.json")):
        # The run's own record is no calibration.
        if file.name != "run.json":
            yield from read_calibrations(file)


def _read(text: str, where: str) -> Iterator[Calibration]:
    try:
        rows = json.loads(text)
        for row in rows if isinstance(rows, list) else [rows]:
            if row["format"] != FORMAT:
                raise ValueError(f"its format is {row['format']!r}, and this version reads {FORMAT}")
            eps, ata = (tuple(float(value) for value in row[key]) for key in ("eps", "ata"))
            published = bool(row.get("published", False))
            yield Calibration(
                row["data"], row["name"], eps, ata, row["attack"], row["arch"], _provenance(row, published), published
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where} holds no calibration: {what}") from error


def _provenance(row: dict[str, Any], published: bool) -> str:
    """All that qualifies the numbers, as sentences."""
    parts = [f"{row['arch']} only" if published else f"networks of architecture {row['arch']}"]
    parts += [str(row[key]) for key in ("protocol", "source") if key in row]
    made = [f"{row['images']} images" if "images" in row else "", f"made {row['date']}" if "date" in row else ""]
    parts += [", ".join(part for part in made if part)]
    sentences = [part.rstrip(".") for part in parts if part]
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences) + "."
