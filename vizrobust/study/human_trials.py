"""Blind two-alternative trials for a person, chosen from a finished study: the human version of the 2AFC."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from statistics import mode
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.clarity import QueryRanking, excitations, shared_rankings
from vizrobust.clarity.picture_scores import QUERIES
from vizrobust.compute import Compute
from vizrobust.data import DataSet, Subset, load
from vizrobust.features import Channel, Logit, Objective
from vizrobust.features.pictures import in_tiles, picture_inside, read_png, to_uint8
from vizrobust.models import LOGITS, Checkpoint, load_checkpoint
from vizrobust.requests import MissingFileError, ParameterError
from vizrobust.rng import Streams
from vizrobust.runs import Row, digest, read_rows
from vizrobust.spec import unknown
from vizrobust.study.protocol import SWEEP

IMAGES = "images"
DEAD = "dead"


@dataclass(frozen=True)
class UnitPictures:
    """A unit's picture files, relative to the study's folder: its `own`, and those of the `negated` unit, if any."""

    layer: str
    own: tuple[str, ...]
    negated: tuple[str, ...] = ()


def _kind(error: Exception) -> type[ParameterError]:
    return MissingFileError if isinstance(error, FileNotFoundError) else ParameterError


def data_of(report: Mapping[str, Any], download: bool = False) -> DataSet:
    """The study's data set, whose test images are the queries; one sentence where it is not available."""
    name = report["data"]["name"]
    try:
        data = load(name, download)
    except (ValueError, FileNotFoundError) as error:
        raise _kind(error)(
            "the trials ask about test images of the study's data set %r, which are not here: %s", name, error
        ) from error
    if tuple(report["data"]["shape"]) != data.shape or tuple(report["data"]["classes"]) != data.classes:
        raise ValueError(
            f"{name!r} has other classes or another shape than when the study was made; bring back the data it was made with"
        )
    return data


def pictures_of(
    folder: Path, report: Mapping[str, Any], recipe: str, layer: str, names: Sequence[str]
) -> dict[str, dict[int, UnitPictures]]:
    """Checkpoint name -> unit -> pictures, for the checkpoints `names`, or for one of each K.

    The report lists one seed of a unit; the others are in the run folder beside it, if that is there. Dead units have
    no pictures. Raises ``ValueError`` for names, recipes and layers that the study has no pictures of.
    """
    listed = [row for row in report["pictures"] if row["recipe"] == recipe]
    if not listed:
        there = dict.fromkeys(row["recipe"] for row in report["pictures"])
        raise ValueError(unknown(recipe, there, "recipe with pictures in this study"))
    there = dict.fromkeys(row["layer"] for row in listed)
    if layer not in there:
        raise ValueError(unknown(layer, there, f"layer with pictures under {recipe} in this study"))
    listed = [row for row in listed if row["layer"] == layer]
    have = dict.fromkeys(row["checkpoint"] for row in listed)
    for name in names:
        if name not in have:
            raise ValueError(unknown(name, have, f"checkpoint with pictures of {layer} under {recipe}"))
    chosen = list(dict.fromkeys(names)) or _one_of_each_k(report, have)
    found: dict[str, dict[int, UnitPictures]] = {name: {} for name in chosen}
    rows_of = cache(read_rows)  # a run folder holds the pictures of many units
    for row in listed:
        if row["checkpoint"] in found and row["status"] != DEAD:
            before = found[row["checkpoint"]].get(row["unit"], UnitPictures(layer, ()))
            own, negated = _seeds(folder, row["image"], rows_of)
            both = (dict.fromkeys([*before.own, *own]), dict.fromkeys([*before.negated, *negated]))
            found[row["checkpoint"]][row["unit"]] = UnitPictures(layer, *(tuple(files) for files in both))
    empty = [name for name, by_unit in found.items() if not by_unit]
    if empty:
        raise ParameterError(
            "all units of %r are dead: there are no pictures to ask about; leave it out with {checkpoints}", empty[0]
        )
    return found


def exemplars_of(folder: Path, report: Mapping[str, Any]) -> dict[int, list[str]]:
    """Class unit -> files of its natural exemplars, the most exciting first."""
    found = {row["unit"]: list(row["images"]) for row in report["exemplars"] if row["layer"] == LOGITS and row["images"]}
    for name in (name for images in found.values() for name in images):
        _there(folder, name)
    return found


def checkpoints_of(folder: Path, report: Mapping[str, Any], names: Sequence[str], arch: str | None = None) -> list[Checkpoint]:
    """The study's checkpoints under the names that it gives them, with the weights that its report says."""
    rows = {row["name"]: row for row in report["checkpoints"]}
    found = []
    for name in names:
        row = rows.get(name, {})
        ref = row.get("ref")
        if not ref:
            raise ValueError(
                f"the report does not say where checkpoint {name!r} is; let the study write it again: vizrobust study"
            )
        try:
            checkpoint = load_checkpoint(str(folder / ref) if (folder / ref).exists() else ref, arch)
        except (ValueError, FileNotFoundError) as error:
            raise _kind(error)(
                "the trials need the activations of checkpoint %r, which is not available: %s", name, error
            ) from error
        if checkpoint.sha256 != row["weights_sha256"]:
            raise ValueError(f"{ref!r} holds other weights than checkpoint {name!r} of the study had; bring those back")
        found.append(replace(checkpoint, name=name))
    return found


def _one_of_each_k(report: Mapping[str, Any], have: Mapping[str, None]) -> list[str]:
    """Of every K the checkpoint of the first training seed; all checkpoints where the study has no sweep."""
    rows = [row for row in report["checkpoints"] if row["name"] in have]
    sweep = sorted((row for row in rows if row["role"] == SWEEP), key=lambda row: (row["k"], row["seed"]))
    first: dict[str, str] = {}
    for row in sweep:
        first.setdefault(row["group"], row["name"])
    return list(first.values()) or [row["name"] for row in rows]


def _seeds(folder: Path, image: str, rows_of: Callable[[Path], list[Row]]) -> tuple[list[str], list[str]]:
    """All seeds of a listed picture and of its negative, by the rows of its run folder."""
    _there(folder, image)
    parts = PurePosixPath(image).parts
    if IMAGES not in parts:
        return [image], []
    at = len(parts) - 1 - parts[::-1].index(IMAGES)
    run, name = PurePosixPath(*parts[:at]), str(PurePosixPath(*parts[at:]))
    rows = rows_of(folder / run)
    listed = next((row for row in rows if row["image"] == name), None)
    if listed is None:
        return [image], []
    alike = [row for row in rows if _subject(row) == _subject(listed) and row["status"] != DEAD]
    signs = ([row for row in alike if row["sign"] == sign * listed["sign"]] for sign in (1, -1))
    own, negated = ([str(run / row["image"]) for row in one if picture_inside(folder, run / row["image"])] for one in signs)
    return own, negated


def _subject(row: Row) -> tuple[Any, ...]:
    """What pictures of one unit share, whatever their seed and sign."""
    return tuple(row[key] for key in ("checkpoint", "recipe_text", "objective", "unit"))


def _there(folder: Path, name: str) -> None:
    if picture_inside(folder, name) is None:
        raise FileNotFoundError(
            f"picture {name!r} is gone from {str(folder)!r}; bring the study's pictures back, or start it again"
        )


TRIALS = 60
REFERENCES = 9  # on each side, as Borowski et al. 2021 and Zimmermann et al. 2021 show them
QUERY_IMAGES = 1000
CATCH_SHARE, LEAST_CATCH = 0.1, 2
SIDES = ("left", "right")
CATCH = ""  # the checkpoint of a trial whose references are natural images


@dataclass(frozen=True)
class Trial:
    """One question. `exciting` and `other` are picture files of the study's folder, the queries places in its test split.

    `exciting_side` is where the pictures of the unit stand, `answer` the side of the natural image that excites it.
    """

    id: str
    checkpoint: str
    layer: str
    unit: int
    exciting: tuple[str, ...]
    other: tuple[str, ...]
    query: int
    distractor: int
    exciting_side: str
    answer: str

    @property
    def catch(self) -> bool:
        """Whether it asks about natural exemplars and has an easy right answer."""
        return self.checkpoint == CATCH


@dataclass(frozen=True)
class TrialSet:
    """The trials of one page in the order in which they are asked; `natural` are its query images, (H, W[, 3]) uint8.

    `practice` comes before them, is as easy as a catch trial and tells its answer; None without natural exemplars.
    """

    token: str
    about: Mapping[str, Any]
    trials: tuple[Trial, ...]
    natural: Mapping[int, np.ndarray[Any, Any]]
    practice: Trial | None = None

    def key(self) -> dict[str, Any]:
        """What the page must not hold: every trial with its right answer."""
        return {**self.about, "trials": [asdict(trial) for trial in self.trials]}


def choose(
    folder: Path | str, report: Mapping[str, Any], data: DataSet, compute: Compute, names: Sequence[str] = (),
    count: int = TRIALS, recipe: str = "plain", layer: str = LOGITS, seed: int = 0, arch: str | None = None,
) -> TrialSet:  # fmt: skip
    """`count` trials over the checkpoints `names` (none: one of each K), and about a tenth as many catch trials.

    After Borowski et al. 2021 and Zimmermann et al. 2021: a trial shows as many pictures of a unit as there are (at
    most 9, different seeds) and as many of other units of the same checkpoint (of the negated unit, where a hidden
    layer's were rendered), and two natural test images: one of the 20 that excite the unit most, one from ranks 10 to
    50 %. Class units are asked about images in the order of the mean rank over the chosen checkpoints, hidden units
    about the checkpoint's own. No image is both exemplar and query. Every checkpoint gets the same units; order and
    sides are random, a function of `seed`. Raises ``ValueError`` or ``FileNotFoundError`` for what is not there.
    """
    folder = Path(folder)
    if count < 1:
        raise ParameterError("{trials} must be at least 1, got %s", count)
    pictures = pictures_of(folder, report, recipe, layer, names)
    shown = min(REFERENCES, mode(len(one.own) for by_unit in pictures.values() for one in by_unit.values()))
    pictures = {
        name: {unit: face for unit, face in by_unit.items() if len(face.own) >= shown} for name, by_unit in pictures.items()
    }
    units = sorted(set.intersection(*(set(by_unit) for by_unit in pictures.values())))
    if len(units) < 2:
        what = f"{len(units)} unit{'s' * (len(units) != 1)} of {layer} under {recipe}"
        raise ValueError(f"trials need pictures of two or more units that all chosen checkpoints have, there are {what}")
    pictures = {name: {unit: by_unit[unit] for unit in units} for name, by_unit in pictures.items()}
    exemplars = exemplars_of(folder, report)
    asked = _not_shown(data, [folder / name for images in exemplars.values() for name in images])
    nets = checkpoints_of(folder, report, list(pictures), arch)
    orders = _orders(nets, Logit() if layer == LOGITS else Channel(layer=layer), units, data, asked, compute)

    identity = {
        "data": data.name, "recipe": recipe, "layer": layer, "seed": seed, "count": count, "references": shown,
        "checkpoints": {net.name: net.sha256 for net in nets},
    }  # fmt: skip
    drawn = _trials(pictures, units, orders, shown, count, seed)
    classes, practice = sorted(exemplars), None
    if len(classes) > 1:
        by_class = _orders(nets, Logit(), classes, data, asked, compute)[nets[0].name]
        easy = {unit: _easy(order, unit, data.test.labels) for unit, order in zip(classes, by_class, strict=True)}
        there = {u: exemplars[u] for u in classes if min(map(len, easy[u]))}
        if catch := _catch(there, easy, shown, _catch_count(count) + 1, seed):
            practice = _placed(catch.pop(), digest({"page": identity, "place": "practice"}), seed)
        drawn += catch
    shuffled = Streams(seed, ["trials"], "order of trials").permutation(len(drawn))[0].tolist()
    trials = tuple(_placed(drawn[old], digest({"page": identity, "place": k}), seed) for k, old in enumerate(shuffled))
    placed = [*trials, *([practice] if practice else [])]
    needed = sorted({place for trial in placed for place in (trial.query, trial.distractor)})
    natural = {place: to_uint8(in_tiles(data.test.take(torch.tensor([place]))[0], data.shape[0])) for place in needed}
    return TrialSet(digest(identity), identity, trials, natural, practice)


def _orders(
    nets: Sequence[Checkpoint], objective: Objective, units: Sequence[int], data: DataSet, asked: Tensor, compute: Compute
) -> dict[str, list[QueryRanking]]:
    """By checkpoint name, each unit's test images in falling activation; one order for all for class units."""
    images = Subset(data.test, asked)
    excited = [excitations(net.net(), objective, units, images, compute) for net in nets]
    of_class = isinstance(objective, Logit)
    found = {net.name: shared_rankings(excited if of_class else [one]) for net, one in zip(nets, excited, strict=True)}
    return {name: [QueryRanking(asked[order.index]) for order in orders] for name, orders in found.items()}


def _trials(
    pictures: Mapping[str, Mapping[int, UnitPictures]], units: Sequence[int],
    orders: Mapping[str, list[QueryRanking]], shown: int, count: int, seed: int,
) -> list[Row]:  # fmt: skip
    """As many trials for every checkpoint, about the same units; a unit's queries differ from trial to trial."""
    turn = [units[k] for k in Streams(seed, ["units"], "order of units").permutation(len(units))[0].tolist()]
    found: list[Row] = []
    for number in range(count):
        unit, name = turn[number // len(pictures) % len(units)], list(pictures)[number % len(pictures)]
        streams = Streams(seed, [f"{name}/{unit}/{number}"], "pictures")
        by_unit, order = pictures[name], orders[name][list(units).index(unit)]
        queries, distractors = order.questions(count=_queries(order))
        # The n-th time that the unit is asked about, whichever the checkpoint.
        time = number // (len(pictures) * len(units)) * len(pictures) + number % len(pictures)
        if len(by_unit[unit].negated) >= shown:
            other = _drawn(by_unit[unit].negated, shown, streams)
        else:
            other = _of_others({u: one.own for u, one in by_unit.items()}, unit, shown, streams)
        found.append({
            "checkpoint": name, "unit": unit, "exciting": _drawn(by_unit[unit].own, shown, streams), "other": other,
            "layer": by_unit[unit].layer, "query": _nth(queries, time, f"queries of {unit}", seed),
            "distractor": _nth(distractors, time, f"distractors of {unit}", seed),
        })  # fmt: skip
    return found


def _catch(
    exemplars: Mapping[int, Sequence[str]], easy: Mapping[int, tuple[Tensor, Tensor]], shown: int, count: int, seed: int
) -> list[Row]:
    """Natural exemplars as references; the queries are images of the class and images as far from it as there are."""
    shown = min(shown, *(len(images) for images in exemplars.values())) if len(exemplars) > 1 else 0
    if not shown:
        return []
    turn = [list(exemplars)[k] for k in Streams(seed, ["catch"], "order of units").permutation(len(exemplars))[0].tolist()]
    found: list[Row] = []
    for number in range(count):
        unit = turn[number % len(turn)]
        streams = Streams(seed, [f"{unit}/{number}"], "catch")
        queries, distractors = easy[unit]
        found.append({
            "checkpoint": CATCH, "unit": unit, "exciting": _drawn(exemplars[unit], shown, streams),
            "other": _of_others(exemplars, unit, shown, streams), "layer": LOGITS,
            "query": _nth(queries, number // len(turn), f"catch queries of {unit}", seed),
            "distractor": _nth(distractors, number // len(turn), f"catch distractors of {unit}", seed),
        })  # fmt: skip
    return found


def _placed(row: Row, name: str, seed: int) -> Trial:
    """A trial with its name and its sides, from a stream of its own."""
    exciting, answer = (SIDES[side] for side in Streams(seed, [name], "sides").integers(2, 2)[0].tolist())
    return Trial(id=name, exciting_side=exciting, answer=answer, **row)


def _easy(order: QueryRanking, unit: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class's own images that excite it most, and others' that excite it least."""
    own = labels[order.index] == unit
    return order.index[own][:QUERIES], order.index[~own][-QUERIES:]


def _queries(order: QueryRanking) -> int:
    """How many top images are asked about: 20, of few images the top tenth, so that no rank is on both sides."""
    count = min(QUERIES, len(order.index) // 10)
    if count < 1:
        raise ValueError(f"trials need at least 10 test images that are no exemplars, there are {len(order.index)}")
    return count


def _catch_count(count: int) -> int:
    return max(LEAST_CATCH, round(CATCH_SHARE * count))


def _drawn(items: Sequence[str], count: int, streams: Streams) -> tuple[str, ...]:
    """So many different items, in random order."""
    return tuple(items[k] for k in streams.permutation(len(items))[0].tolist()[:count])


def _of_others(by_unit: Mapping[int, Sequence[str]], unit: int, count: int, streams: Streams) -> tuple[str, ...]:
    """Pictures of as many different other units as there are, one after the other, until there are `count`."""
    pools = [list(_drawn(images, len(images), streams)) for other, images in by_unit.items() if other != unit]
    turn = [pools[k] for k in streams.permutation(len(pools))[0].tolist()]
    found: list[str] = []
    while len(found) < count:
        found += [pool.pop() for pool in turn if pool]
    return tuple(found[:count])


def _nth(items: Tensor, number: int, purpose: str, seed: int) -> int:
    """The number-th of the items in a random order; from the front again after the last."""
    order = Streams(seed, [purpose], "questions").permutation(len(items))[0]
    return int(items[order[number % len(items)]])


def _not_shown(data: DataSet, shown: Sequence[Path]) -> Tensor:
    """Places of the first 1,000 test images that are none of the pictures `shown`, pixel by pixel."""
    known = {_pixels(to_uint8(read_png(path))) for path in shown}
    places = range(min(QUERY_IMAGES, len(data.test)))
    images = data.test.take(torch.arange(len(places)))
    return torch.tensor(
        [k for k in places if _pixels(to_uint8(in_tiles(images[k], data.shape[0]))) not in known], dtype=torch.int64
    )


def _pixels(image: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
