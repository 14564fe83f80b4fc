"""Tables of units: the scores of their pictures, means over units, paired differences, and the words that describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.clarity import NATURAL_IMAGES, RANDOM_NETWORK, Clarity, PictureScores
from vizrobust.commands.targets import Target
from vizrobust.data import Split
from vizrobust.features import Logit, RenderJob, main_term, picture_key
from vizrobust.features.unit_facts import ACTIVE, LIMIT, UnitLabel, nonsense, unit_labels
from vizrobust.intervals import SCOPE, Difference, auc_text, paired
from vizrobust.models import Checkpoint
from vizrobust.models.clip import BATCH_SIZE, ImageTextEncoder, clip_file
from vizrobust.requests import MissingFileError, ParameterError
from vizrobust.results import Row, Table, percent
from vizrobust.runs import RunFolder, digest, write_atomic
from vizrobust.session import Session

# The measures that checkpoints are compared in, and the largest difference that each can show.
MEASURES = {"transfer": "transfer, log-odds", "recognised": "recognised, share", "forced_choice": "two-alternative AUC"}
LARGEST = {"recognised": 1.0, "forced_choice": 1.0}
NAMES = {"transfer": "log-odds of the intended class", "recognised": "share recognised", "forced_choice": "two-alternative AUC"}
TITLES = {"score": "score", "transfer": "log-odds", "recognised": "recognised", "forced_choice": "AUC"}
# More columns than this do not fit a terminal.
WIDEST = 8
Column = Mapping[int, float]


def unit_table(
    rows: Sequence[Row], checkpoints: Sequence[Checkpoint], job: RenderJob, scores: Mapping[str, PictureScores] | None,
    judge: str, order: str,
) -> Table:  # fmt: skip
    """One row for each unit: activation and, where a judge scored the pictures, each measure of each checkpoint.

    Many checkpoints show one measure alone, what the units are sorted by or the log-odds: others would not fit.
    """
    columns: dict[tuple[str, str], Column] = {}
    for one in checkpoints:
        for measure in ("score", *MEASURES):
            values = _activations(rows, one, job) if measure == "score" else _scores(scores, one, job, measure)
            if values:
                columns[one.name, measure] = values
    units = sorted(job.units, key=_key(columns, checkpoints, order))
    several = len(checkpoints) > 1
    if len(columns) > WIDEST:
        there = {measure for _, measure in columns}
        shown = next(one for one in (order, "transfer", "forced_choice", "score") if one in there)
        columns = {key: values for key, values in columns.items() if key[1] == shown}
    header = ["unit", *(f"{name} {TITLES[measure]}" if several else TITLES[measure] for name, measure in columns)]
    names = checkpoints[0].info.classes if isinstance(main_term(job.objective), Logit) else ()
    body = [
        [_name(unit, names), *(_number(values.get(unit), measure) for (_, measure), values in columns.items())] for unit in units
    ]
    judged = [NAMES[measure] for measure in MEASURES if any(key == measure for _, key in columns)]
    told = f"judge {judge}: {', '.join(judged)}; " if judged else ""
    count = len(job.seeds)
    means = f"; means over {count} pictures" if count > 1 else ""
    return Table("Units", header, body, f"{told}score: activation{means}")


def _activations(rows: Sequence[Row], checkpoint: Checkpoint, job: RenderJob) -> Column:
    wanted = set(job.keys(checkpoint))
    found: dict[int, list[float]] = {}
    for row in rows:
        if picture_key(row) in wanted:
            found.setdefault(row["unit"], []).append(math.nan if row["score"] is None else row["score"])
    return {unit: fmean(values) for unit, values in found.items()}


def _scores(scores: Mapping[str, PictureScores] | None, checkpoint: Checkpoint, job: RenderJob, measure: str) -> Column:
    if scores is None:
        return {}
    values = getattr(scores[checkpoint.name], measure)
    return {unit: value for unit, value in zip(job.units, values, strict=True) if value is not None}


def _key(columns: Mapping[tuple[str, str], Column], checkpoints: Sequence[Checkpoint], order: str) -> Callable[[int], float]:
    """Falling by what is asked for; ``ValueError`` where it was not measured."""
    if order == "unit":
        return lambda unit: unit
    first, last = checkpoints[0].name, checkpoints[-1].name
    if order == "difference":
        measure = next((one for one in ("transfer", "forced_choice") if (first, one) in columns), None)
        if measure is None or first == last:
            raise ParameterError("{sort} difference needs two checkpoints or more and a judge of their pictures; sort by score")
        a, b = columns[first, measure], columns[last, measure]
        return lambda unit: a.get(unit, 0.0) - b.get(unit, 0.0)
    if (first, order) not in columns:
        raise ParameterError("{sort} %s was not measured here, because no judge scored these pictures; sort by score", order)
    values = columns[first, order]
    return lambda unit: -values.get(unit, float("-inf"))


def _name(unit: int, classes: Sequence[str]) -> str:
    return f"{unit} {classes[unit]}" if unit < len(classes) and classes[unit] != str(unit) else str(unit)


def _number(value: float | None, measure: str) -> str:
    if value is None:
        return "-"
    return {"forced_choice": f"{value:.3f}", "recognised": f"{value:.2f}"}.get(measure, f"{value:.2f}")


def clarity_rows(clarity: Clarity, checkpoints: Sequence[Checkpoint], units: Sequence[int]) -> list[Row]:
    """The scores and differences as numbers, for --json: one row for each set of pictures, one for each difference."""
    rows: list[Row] = []
    for judge, scores in clarity.scores.items():
        rows += [{"pictures": name, "judge": judge, "units": list(units), **asdict(one)} for name, one in scores.items()]
        for other, base, differences in _differences(scores, checkpoints):
            found = {measure: asdict(difference) for measure, difference in differences.items()}
            rows.append({"difference": [other, base], "judge": judge, "scope": SCOPE, **found})
    for name, one in clarity.natural.items():
        rows.append({"natural_equivalent_of": name, "units": list(units), **one.row()})
    return rows


def natural_table(clarity: Clarity, checkpoints: Sequence[Checkpoint]) -> list[Table]:
    """Each checkpoint's clarity on the scale of natural photographs, with each judge's log-odds; empty without a scale."""
    if not clarity.natural:
        return []
    judges = list(clarity.scales)
    base = clarity.natural.get(checkpoints[0].name)
    others = {one.name for one in checkpoints[1:]}
    rows = [
        [name, str(one), str(one.minus(base)) if base is not None and name in others else "-",
         *(_number(_mean(clarity.scores[judge][name].transfer), "transfer") for judge in judges)]
        for name, one in clarity.natural.items()
    ]  # fmt: skip
    left_out = [f"{name} is left out: {why}" for name, scale in clarity.scales.items() if (why := scale.disqualified)]
    scale = "share of phase coherence at which natural images of the same classes are seen as well: 1 a photograph, 0 scrambled"
    flat = [f"{name} lies where the judges tell nothing from scrambled" for name, one in clarity.natural.items() if one.below]
    note = "; ".join([scale, "95 % intervals over units and judges, these checkpoints only", *flat, *left_out])
    return [
        Table(
            "Clarity",
            ["pictures of", "natural-equivalent", f"against {checkpoints[0].name}", *(f"{judge}, log-odds" for judge in judges)],
            rows,
            note,
        )
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def difference_table(scores: Mapping[str, PictureScores], checkpoints: Sequence[Checkpoint], judge: str) -> Table:
    """The paired difference of each checkpoint from the first, in the measures that this judge has."""
    found = _differences(scores, checkpoints)
    told = [measure for measure in MEASURES if any(differences[measure].mean is not None for _, _, differences in found)]
    rows = [
        [f"{other} - {base}", *(str(differences[measure]) for measure in told), str(len(scores[other].forced_choice))]
        for other, base, differences in found
    ]
    header = ["difference", *(MEASURES[measure] for measure in told), "units"]
    note = f"judge {judge}; mean paired difference with its 95 % t interval {SCOPE}"
    return Table("Clarity: paired differences", header, rows, note)


def _differences(
    scores: Mapping[str, PictureScores], checkpoints: Sequence[Checkpoint]
) -> list[tuple[str, str, dict[str, Difference]]]:
    """(other, base, difference by measure) for each checkpoint behind the first."""
    base, *others = (asdict(scores[one.name]) for one in checkpoints)
    names = [one.name for one in checkpoints]
    return [
        (
            name,
            names[0],
            {measure: paired(base[measure], other[measure], largest=LARGEST.get(measure, math.inf)) for measure in base},
        )
        for name, other in zip(names[1:], others, strict=True)
    ]


def score_table(scores: Mapping[str, PictureScores], judge: str) -> Table:
    """Means over units, the references last."""

    def mean(values: Sequence[float | None], digits: int) -> str:
        found = _mean(values)
        return "-" if found is None else f"{found:.{digits}f}"

    def last(name: str) -> bool:
        return name == RANDOM_NETWORK or name.startswith(NATURAL_IMAGES)

    there = [name for name in MEASURES if any(value is not None for one in scores.values() for value in getattr(one, name))]
    rows = [
        [name, *(mean(getattr(one, measure), 3 if measure == "forced_choice" else 2) for measure in there)]
        for name, one in sorted(scores.items(), key=lambda item: last(item[0]))
    ]
    chance = "; AUC chance .5" if "forced_choice" in there else ""
    header = ["pictures of", *(MEASURES[measure] for measure in there)]
    return Table("Measures of clarity", header, rows, f"judge {judge}; means over units{chance}")


SHOWN = 20  # units of the table


def words_of(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """The words of a text file, one word or phrase a line, each once; in Python they may be given themselves."""
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            raise MissingFileError("no file %r of {words}; give a text file with a word or phrase a line", str(path))
        try:
            given = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ParameterError("{words} %r is no text in UTF-8 (%s); save it as such", str(path), error) from error
    found = tuple(dict.fromkeys(line.strip() for line in given if line.strip()))
    if not found:
        raise ParameterError("{words} holds no word; give one word or phrase a line")
    return found


def encoder_of(clip: Any, session: Session) -> ImageTextEncoder:
    """The encoder of a reference; in Python an object with its methods may be given."""
    return clip_file(str(clip), session.compute("fp32").device) if isinstance(clip, str | Path) else clip


class WordLabels:
    """Labels by words and an encoder; what was encoded is kept in the run folder, and for the next layer and checkpoint."""

    def __init__(self, words: Any, clip: Any, seed: int, session: Session) -> None:
        self.words, self.encoder = words_of(words), encoder_of(clip, session)
        self.seed, self.session, self.strings = seed, session, nonsense(self.words, seed)
        self._encoded: dict[tuple[str, int], Tensor] = {}

    @property
    def key(self) -> str:
        return digest([self.encoder.key, self.words])

    def rows(self, target: Target, layer: str, units: Sequence[int], activity: Tensor) -> dict[int, Row]:
        """A row for each unit, kept in the target's folder: its best word, whether that is its label, and the areas behind it."""
        about = {"checkpoint": target.checkpoint.id, "layer": layer, "images": len(target.images), "labels": self.key}
        known = {row["unit"]: row for row in target.folder.rows() if about.items() <= row.items()}
        if any(unit not in known for unit in units):
            found = self.of(target.folder, target.images, target.data.name, activity[:, list(units)])
            for unit, label in zip(units, found, strict=True):
                if unit not in known:
                    known[unit] = target.folder.add({**about, "unit": unit, **_row(label)})
        texts = {"words": len(self.words), "strings": len(self.strings), "by": self.encoder.name}
        return {unit: {**{key: known[unit][key] for key in _row(None)}, **texts} for unit in units}

    def of(self, folder: RunFolder, images: Split, data: str, activity: Tensor) -> list[UnitLabel | None]:
        """A label for each unit of `activity` (n, units) on the `images` (n) that the text `data` names."""
        texts = (*self.words, *self.strings)
        pictures = self._all(
            folder, "images", digest([self.encoder.key, folder.content, data]), len(images),
            lambda index: self.encoder.images(images.take(index)),
        )  # fmt: skip
        read = self._all(
            folder, "texts", digest([self.encoder.key, texts]), len(texts),
            lambda index: self.encoder.texts([texts[place] for place in index.tolist()]),
        )  # fmt: skip
        return unit_labels(activity, pictures @ read.T, self.words, self.seed)

    def _all(self, folder: RunFolder, what: str, key: str, n: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, d): what `encode` gives for each index, in batches that the run folder keeps; those that are there are read."""
        known = (key, n)
        if known not in self._encoded:
            parts = []
            for index in torch.split(torch.arange(n), BATCH_SIZE):
                path = folder.folder / "encoded" / key / f"{int(index[0])}-{len(index)}.npy"
                if folder.writes and path.is_file():
                    parts.append(torch.from_numpy(np.load(path, allow_pickle=False)))
                else:
                    parts.append(encode(index).float().cpu())
                    if folder.writes:
                        write_atomic(path, partial(np.save, arr=parts[-1].numpy(), allow_pickle=False))
                self.session.progress(f"{what} by {self.encoder.name}", int(index[-1]) + 1, n)
            self._encoded[known] = torch.cat(parts)
        return self._encoded[known]


def _row(label: UnitLabel | None) -> Row:
    if label is None:
        empty = dict.fromkeys(UnitLabel.__dataclass_fields__)
        return {"label": None, **empty}
    return {"label": label.label, **asdict(label)}


def label_table(name: str, layer: str, rows: Sequence[Row]) -> Table:
    """The units that have a label, then those whose word predicts them best."""
    ordered = sorted(rows, key=lambda row: (row["label"]["label"] is None, -(row["label"]["low"] or -1)))
    shown = []
    for row in ordered[:SHOWN]:
        one = row["label"]
        found = ["-"] * 4
        if one["word"] is not None:
            held_out = auc_text(one["auc"], one["active"], one["n"] - one["active"])
            found = [one["word"], f"{one['chosen_auc']:.2f}", f"{one['nonsense_auc']:.2f}", held_out]
        shown.append([str(row["unit"]), one["label"] or "no label", *found])
    words, strings, clip = (rows[0]["label"][key] for key in ("words", "strings", "by"))
    left = f", the {SHOWN} best of {len(rows)}" if len(rows) > SHOWN else ""
    has = sum(row["label"]["label"] is not None for row in rows)
    header = ["unit", "label", "best word", "its AUC", "best nonsense's", "on images held out"]
    note = (
        f"{has} of {len(rows)} units {'has' if has == 1 else 'have'} a label. AUC: how well the similarity to a text tells the "
        f"images that excite the unit (the {100 * ACTIVE:.0f} % with the largest mean activation) from the rest. The best of "
        f"{words} words is chosen on one random half of the images and tested on the other. It is a label if the lower end of "
        f"the 95 % interval there is above {LIMIT:g} and none of {strings} strings of random letters fits as well (so a network "
        f"that knows no word labels at most {percent(words / (words + strings))} of units)"
    )
    return Table(f"{name}, {layer}: words by {clip}{left}", header, shown, note)
