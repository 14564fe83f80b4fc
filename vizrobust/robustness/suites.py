"""Robustness beyond a norm: accuracy under common corruptions (mCE), and UAR, accuracy under unforeseen attacks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vizrobust.attacks import Attack, ball_of, configured, family, parse_attack
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.intervals import share, wilson
from vizrobust.models import evaluating
from vizrobust.models.forward import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.corruptions import COMMON, CORRUPTIONS, SEVERITIES
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.spec import lookup, vary

Row = dict[str, Any]

OWN_FROST = "frost: own texture"
NO_COLOUR = "one channel has no colour to saturate"


def corrupted(
    net: nn.Module,
    images: Split,
    compute: Compute,
    corruptions: Sequence[str] = tuple(COMMON),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    done: Collection[tuple[str, int]] = (),
) -> Iterator[Row]:
    """Accuracy on the images as they are (``clean``, severity 0), then under each corruption at each severity.

    One row each, as soon as it is known: ``corruption, severity, n, accuracy, ci_low, ci_high, note, seconds``, with
    Wilson's 95 % interval; of a network that predicts one class for all clean images that row names it as
    ``constant_prediction``. What is `done` already, as (corruption, severity), is left out. An image draws the same
    random numbers at every severity and for every network. Raises ``ValueError`` for an unknown corruption or
    severity, or no images, before anything is computed.

    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.rand(2, 1, 28, 28), torch.tensor([3, 3]))
    >>> rows = corrupted(nn.Flatten(), images, Compute("cpu"), ["contrast"], [5])
    >>> [(row["corruption"], row["severity"], row["n"]) for row in rows]
    [('clean', 0, 2), ('contrast', 5, 2)]
    """
    if not len(images):
        raise ValueError("there are no images to corrupt; choose a split that has some")
    chosen = [(name, lookup(CORRUPTIONS, name, "corruption")) for name in corruptions]
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"no severity {severity!r}; there are: {', '.join(map(str, SEVERITIES))}")
    conditions = [(corruption.__name__, severity) for _, corruption in chosen for severity in severities]
    wanted = [one for one in [(CLEAN, 0), *conditions] if one not in done]
    processes = compute.processes
    return processes.interleave(_row(net, images, compute, *one, seed, batch_size) for one in processes.shard(wanted))


@dataclass(frozen=True)
class CorruptionError:
    """Errors under the common corruptions that were evaluated, as fractions (an mCE of 0.767 is written 76.7 %).

    `by_type` is each corruption's error averaged over the severities, `mean` their mean: the plain, unnormalised mean
    corruption error. `mce` divides each type's error by the baseline's before the mean; `relative_mce` does so with
    what each error exceeds the clean one by. Both are None without a baseline, or where its errors leave nothing to
    divide by. `note` says what keeps the numbers from being the published ones.
    """

    mean: float
    clean: float
    by_type: dict[str, float]
    mce: float | None
    relative_mce: float | None
    note: str


def mean_corruption_error(rows: Iterable[Row], baseline_rows: Iterable[Row] | None = None) -> CorruptionError:
    """The mean corruption error of rows of `corrupted` (Hendrycks and Dietterich 2019, section 4.2).

    With E the errors and B a baseline's, mCE = mean over types of (sum of E over severities) / (sum of B over
    severities), and relative mCE the same of E - E_clean and B - B_clean. The four extra corruptions do not count.
    The baseline is the rows of a reference checkpoint; compare only numbers with the same one.

    Raises ``ValueError`` for rows without a clean one, without a common corruption, with gaps in the severities, or
    with a baseline that lacks some of them.

    >>> clean = {"corruption": "clean", "severity": 0, "accuracy": 1.0}
    >>> fog = [{"corruption": "fog", "severity": severity, "accuracy": 0.4} for severity in (1, 2)]
    >>> mean_corruption_error([clean, *fog]).by_type
    {'fog': 0.6}
    """
    errors, clean = _errors(rows, "the rows")
    types = [name for name in COMMON if name in errors]
    if not types:
        raise ValueError("the rows hold none of the common corruptions, so there is no mean; evaluate some of COMMON")
    severities = sorted({severity for name in types for severity in errors[name]})
    for name in types:
        if sorted(errors[name]) != severities:
            raise ValueError(f"{name} has severities {sorted(errors[name])} where others have {severities}; evaluate the rest")
    by_type = {name: sum(errors[name].values()) / len(severities) for name in types}
    mce = relative = None
    notes = [OWN_FROST] if "frost" in types else []
    if len(types) < len(COMMON):
        notes.append(f"{len(types)} of {len(COMMON)} types")
    if severities != list(SEVERITIES):
        notes.append(f"severities {', '.join(map(str, severities))} alone")
    if baseline_rows is not None:
        base_errors, base_clean = _errors(baseline_rows, "the baseline")
        lacking = [f"{name} {severity}" for name in types for severity in severities if severity not in base_errors.get(name, {})]
        if lacking:
            raise ValueError(f"the baseline has no {', '.join(lacking[:3])}; evaluate it on the same corruptions")
        base = {name: sum(base_errors[name][severity] for severity in severities) / len(severities) for name in types}
        mce = _ratio([by_type[name] for name in types], [base[name] for name in types])
        relative = _ratio([by_type[name] - clean for name in types], [base[name] - base_clean for name in types])
        if mce is None or relative is None:
            notes.append("the baseline loses nothing under some type")
    return CorruptionError(sum(by_type.values()) / len(types), clean, by_type, mce, relative, "; ".join(notes))


def _row(net: nn.Module, images: Split, compute: Compute, name: str, severity: int, seed: int, batch_size: int) -> Row:
    began = time.perf_counter()
    compute.place(net)
    network, hits, channels, seen = PerImageNoise(net), [], 0, set[int]()
    for index, count in full_batches(len(images), batch_size):
        x, y = images.take(index), images.labels[index]
        if name != CLEAN:
            x = CORRUPTIONS[name](x, severity, Streams(seed, index.tolist(), "corruption"))
        network.noise_from(partial(Streams, seed, index.tolist(), name))
        with evaluating(net), compute.autocast(), torch.no_grad(), seeded(seed, compute.device):
            logits = network(compute.images(x)).cpu()
        hits.append(((logits.argmax(1) == y) & logits.isfinite().all(1))[:count])
        seen |= set(logits.argmax(1)[:count].tolist())
        channels = x.shape[1]
    correct = torch.cat(hits)
    low, high = wilson(int(correct.sum()), len(correct))
    note = {"frost": OWN_FROST, "saturate": NO_COLOUR if channels == 1 else ""}.get(name, "")
    return {
        "corruption": name,
        "severity": severity,
        "n": len(correct),
        "accuracy": share(correct),
        "ci_low": low,
        "ci_high": high,
        "note": note,
        **({"constant_prediction": seen.pop()} if name == CLEAN and len(seen) == 1 and not correct.all() else {}),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _errors(rows: Iterable[Row], whose: str) -> tuple[dict[str, dict[int, float]], float]:
    """The errors by corruption and severity, and the clean error."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["corruption"], {})[row["severity"]] = 1 - row["accuracy"]
    clean = found.pop(CLEAN, None)
    if clean is None:
        raise ValueError(f"{whose} hold no {CLEAN!r} accuracy; evaluate the images as they are too")
    return found, clean[0]


def _ratio(errors: list[float], base: list[float]) -> float | None:
    """The mean of the ratios; None where the baseline leaves nothing to divide by."""
    if min(base) <= 0:
        return None
    return sum(error / by for error, by in zip(errors, base, strict=True)) / len(base)


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
