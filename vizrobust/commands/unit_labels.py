"""What `intervene` prints of words for units: CLIP's similarities, kept in the run folder, and the units that have a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizrobust.commands.targets import Target
from vizrobust.data import Split
from vizrobust.features.unit_facts import ACTIVE, LIMIT, UnitLabel, nonsense, unit_labels
from vizrobust.intervals import auc_text
from vizrobust.models.clip import BATCH_SIZE, ImageTextEncoder, clip_file
from vizrobust.requests import MissingFileError, ParameterError
from vizrobust.results import Row, Table, percent
from vizrobust.runs import RunFolder, digest, write_atomic
from vizrobust.session import Session

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
