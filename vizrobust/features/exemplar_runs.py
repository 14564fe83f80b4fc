"""Natural exemplars in a run folder: a finished search is read instead of repeated."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.data import DataSet, Split, Subset, content_of
from vizrobust.features.exemplars import BATCH_SIZE, Exemplars, Measure, TopK, exemplars, receptive_fields
from vizrobust.features.objectives import Channel, Logit, Neuron, Objective, Sum
from vizrobust.features.pictures import in_tiles, to_uint8
from vizrobust.models import Checkpoint
from vizrobust.requests import ParameterError
from vizrobust.runs import Row, RunFolder, digest, slug, write_atomic, write_json, write_png

SHOWN = "exemplars.json"
MOST_IMAGES = 10_000
FINGERPRINT_IMAGES = 8
FORMAT = 1


@dataclass(frozen=True)
class ImageSource:
    """The images that exemplars are chosen from: a split of a data set, of more than 10,000 images some at even distances."""

    data: DataSet = field(repr=False)
    split: str = "val"
    most: int = MOST_IMAGES

    @property
    def whole(self) -> Split:
        return self.data.split(self.split)

    @cached_property
    def index(self) -> Tensor:
        """(n,): which images of the split they are."""
        return torch.arange(0, len(self.whole), -(-len(self.whole) // self.most))

    @property
    def images(self) -> Split:
        return Subset(self.whole, self.index)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name, split and sizes, and a hash over labels and images, so that other data are told apart.

        Of a published data set, whose content does not change, a few images are enough.
        """
        about = {"data": self.data.name, "split": self.split, "n": len(self.index), "of": len(self.whole)}
        if own := content_of(self.data, self.split):
            return {**about, "sha256": own}
        some = self.index[torch.linspace(0, len(self.index) - 1, FINGERPRINT_IMAGES).round().long()]
        content = hashlib.sha256(self.whole.labels.numpy().tobytes())
        content.update(self.whole.take(some).numpy().tobytes())
        return {**about, "sha256": content.hexdigest()}


def ranking_measure(objective: Objective) -> tuple[str, Measure, int | None, int]:
    """What ranks the images for an objective: layer, measure, the unit it names itself, and the sign of its weight.

    Penalties and other parts that name no unit do not count. ``ValueError`` where no unit is left, or several.
    """
    parts = objective.parts if isinstance(objective, Sum) else ((1.0, objective),)
    about = [(weight, part) for weight, part in parts if isinstance(part, Logit | Channel | Neuron)]
    if len(about) != 1:
        raise ParameterError(
            "exemplars are images of one Logit, Channel or Neuron, and %r has %s of them; leave out {exemplars}",
            objective, len(about) or "none",
        )  # fmt: skip
    ((weight, part),) = about
    measure: Measure = (part.y, part.x) if isinstance(part, Neuron) else "mean"
    return part.layers[0], measure, part.unit, -1 if weight < 0 else 1


def cached_exemplars(
    run: RunFolder,
    checkpoint: Checkpoint,
    layers: Sequence[str],
    source: ImageSource,
    k: int,
    compute: Compute,
    measure: Measure = "mean",
    progress: Callable[[int], object] | None = None,
    *,
    net: nn.Module | None = None,
) -> dict[str, Exemplars]:
    """`exemplars` of every unit of the layers; those the run holds are read, the others found in one pass and saved."""
    files = {layer: run.folder / _cache_name(checkpoint, layer, source, k, measure) for layer in layers}
    there = {layer: _read(file.read_bytes()) for layer, file in files.items() if file.is_file()}
    known = {layer: found for layer, found in there.items() if found is not None}
    todo = [layer for layer in dict.fromkeys(layers) if layer not in known]
    if todo:
        found = exemplars(
            checkpoint.net() if net is None else net, todo, source.images, k,
            shape=checkpoint.info.input_shape, measure=measure, compute=compute, progress=progress,
        )  # fmt: skip
        for layer, one in found.items():
            write_atomic(files[layer], partial(np.savez, **_arrays(one)))
        known |= found
    return {layer: known[layer] for layer in layers}


def exemplars_into(
    run: RunFolder,
    checkpoint: Checkpoint,
    objective: Objective,
    units: Sequence[int],
    source: ImageSource,
    k: int,
    compute: Compute,
    progress: Callable[[int], object] | None = None,
) -> list[Row]:
    """Save the k natural images that excite each unit most and least, with the place that did it; returns their rows.

    A row is one unit and one end (`sign` 1 the most, -1 the least exciting), most extreme image first: `images` holds
    file, index in the split, label, value, place in the layer's map and box in the image (see `receptive_fields`).
    Rows take the place of those that the run had of the same checkpoint, objective, unit and end.
    """
    layer, measure, fixed, direction = ranking_measure(objective)
    net = checkpoint.net()
    found = cached_exemplars(run, checkpoint, [layer], source, k, compute, measure, progress, net=net)[layer]
    asked = torch.tensor([unit if fixed is None else fixed for unit in units])
    boxes: dict[tuple[int, int], Any] = {}
    if found.size is not None:
        places = torch.cat([end.places[asked] for end in (found.most, found.least) if end.places is not None])
        shown = [(y, x) for y, x in places.flatten(0, 1).tolist() if y >= 0]
        boxes = receptive_fields(net, layer, shown, shape=checkpoint.info.input_shape, compute=compute)
    _save_images(run, source, torch.cat([found.most.images[asked], found.least.images[asked]]))
    about = {
        "checkpoint": checkpoint.id, "weights_sha256": checkpoint.sha256, "layer": layer, "objective": repr(objective),
        **{key: source.identity[key] for key in ("data", "split", "n", "of")}, "map": found.size,
    }  # fmt: skip
    rows = [
        {**about, "unit": unit, "sign": sign, "images": _images(found.end(sign * direction), int(own), boxes, source)}
        for unit, own in zip(units, asked, strict=True)
        for sign in (1, -1)
    ]
    merged = {_key(row): row for row in [*exemplar_rows(run.folder), *rows]}
    write_json(run.folder / SHOWN, list(merged.values()))
    return rows


def exemplar_rows(folder: Path | str) -> list[Row]:
    """The rows that `exemplars_into` left in a run folder; none where it never ran. ``ValueError`` if they cannot be read."""
    path = Path(folder) / SHOWN
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not readable ({error}); delete it and run the command again") from error


def _images(end: TopK, unit: int, boxes: dict[tuple[int, int], Any], source: ImageSource) -> list[dict[str, Any]]:
    entries = []
    for rank, at in enumerate(end.images[unit].tolist()):
        place = None if end.places is None else tuple(end.places[unit, rank].tolist())
        index = int(source.index[at])
        entries.append({
            "image": _image_name(source, index),
            "index": index,
            "label": source.data.classes[int(source.whole.labels[index])],
            "value": round(float(end.values[unit, rank]), 5),
            "place": None if place is None or place[0] < 0 else list(place),
            "box": None if place is None or place[0] < 0 else boxes[place],
        })  # fmt: skip
    return entries


def _save_images(run: RunFolder, source: ImageSource, among: Tensor) -> None:
    for index in sorted(set(source.index[among].flatten().tolist())):
        path = run.folder / _image_name(source, index)
        if not path.is_file():
            texts = {"data": source.data.name, "split": source.split, "index": str(index)}
            write_png(path, to_uint8(in_tiles(source.whole.take(torch.tensor([index]))[0], source.data.shape[0])), texts)


def _image_name(source: ImageSource, index: int) -> str:
    return f"images/exemplars/{source.split}-{source.identity['sha256'][:8]}/{index}.png"


def _key(row: Row) -> tuple[Any, ...]:
    return row["checkpoint"], row["objective"], row["unit"], row["sign"]


def _cache_name(checkpoint: Checkpoint, layer: str, source: ImageSource, k: int, measure: Measure) -> str:
    about = {
        "format": FORMAT, "weights": checkpoint.sha256, "layer": layer, "measure": measure, "k": k,
        "batch_size": BATCH_SIZE, **source.identity,
    }  # fmt: skip
    return f"exemplars/{checkpoint.id}-{slug(layer)}-{digest(about)}.npz"


def _arrays(found: Exemplars) -> dict[str, Any]:
    parts = {"size": np.array(found.size or (0, 0))}
    for name, end in (("most", found.most), ("least", found.least)):
        parts |= {f"{name}_values": end.values.numpy(), f"{name}_images": end.images.numpy()}
        parts |= {} if end.places is None else {f"{name}_places": end.places.numpy()}
    return parts


def _read(content: bytes) -> Exemplars | None:
    """What `_arrays` made, or None where the file is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            parts = {name: torch.from_numpy(array) for name, array in arrays.items()}
        most, least = (
            TopK(parts[f"{end}_values"], parts[f"{end}_images"], parts.get(f"{end}_places")) for end in ("most", "least")
        )
        height, width = parts["size"].tolist()
    except (ValueError, KeyError, EOFError, OSError, BadZipFile):
        return None
    return Exemplars(most, least, (height, width) if height else None)
