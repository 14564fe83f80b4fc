"""How a picture was made: what its PNG says, its files by hash, and the same picture rendered again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizrobust.compute import Compute, changes, versions
from vizrobust.data import load
from vizrobust.data.images import FORMATS
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.features.objectives import Objective, parse_objective
from vizrobust.features.picture_runs import number_or_none, trajectory_of
from vizrobust.features.pictures import reference_image, reference_sha256
from vizrobust.features.recipes import Recipe, parse_recipe
from vizrobust.features.render import Batch, FeatureImage, render_batches
from vizrobust.models import Checkpoint
from vizrobust.models.dictionaries import read_dictionary
from vizrobust.models.folding import folded_net
from vizrobust.models.object_code import own_sources
from vizrobust.requests.request import MARK, parts_of
from vizrobust.runs import ROW_TEXT, RUN_TEXT, Row, file_sha256, picture_texts

OWN_CODE = "its own code"


def sources(*specs: Any) -> tuple[tuple[str, str], ...]:
    """What objectives and recipes read, each as (name, sha256): images, vectors, spectra, dictionaries, a person's own code.

    Raises what reading them raises where one is not there.

    >>> from vizrobust.features import Channel, Inversion
    >>> [name for name, _ in sources(Channel("conv2") + Inversion("conv1", "mnist5k#3"))]
    ['mnist5k#3']
    """
    found = dict.fromkeys(pair for one in specs for pair in _named(one))
    own = own_sources(*specs)
    return (*((name, HASHES[field](name)) for field, name in found), *(((OWN_CODE, own),) if own else ()))


def _named(x: Any) -> Iterator[tuple[str, str]]:
    """(field, text) for every field of a spec, or of one inside it, that names a file or data set."""
    if isinstance(x, tuple):
        for item in x:
            yield from _named(item)
    elif is_dataclass(x):
        for field in fields(x):
            value = getattr(x, field.name)
            if field.name in HASHES and isinstance(value, str) and (field.name != "layer" or MARK in value):
                yield field.name, value
            else:
                yield from _named(value)


def _vector_sha256(path: str) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r} (the vector of Direction)")
    return file_sha256(path)


def _spectrum_sha256(source: str) -> str:
    """Of a .npy file, or the fingerprint of a data set's training images."""
    if not source.lower().endswith(".npy"):
        return str(ImageSource(load(source), "train").identity["sha256"])
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {source!r} (the spectrum of MACO)")
    return file_sha256(path)


def _dictionary_sha256(layer: str) -> str:
    return read_dictionary(parts_of(layer).file).sha256


# By the name of the field, which is the same in every spec that has one; a layer counts where it is one of a dictionary.
HASHES: Mapping[str, Callable[[str], str]] = {
    "layer": _dictionary_sha256,
    "image": reference_sha256,
    "vector": _vector_sha256,
    "spectrum": _spectrum_sha256,
}


Pixels = np.ndarray[Any, Any]
MOST_THREADS = 1024
MOST_IMAGES = 1024  # in a batch that a picture states, which may be from somebody else


@dataclass(frozen=True)
class Provenance:
    """What a PNG says about how it was made.

    `reference` named its checkpoint; `start` is what named its start image and the hash, empty for noise; `sources` are
    the hashes of the files and data sets that objective and recipe read. `row` and `run` are its lines of rows.jsonl
    and run.json as they stand there, `pixels` (H, W) or (H, W, 3) uint8, with an opacity (H, W, 2) or (H, W, 4).
    """

    file: str
    reference: str
    weights_sha256: str
    objective: Objective
    recipe: Recipe
    unit: int
    seed: int
    sign: int
    batch_size: int
    precision: str
    start: tuple[str, str]
    sources: Mapping[str, str]
    threads: int
    device: str
    versions: Mapping[str, str]
    row: Row = field(repr=False)
    run: Mapping[str, Any] = field(repr=False)
    pixels: Pixels = field(repr=False)

    @staticmethod
    def read(path: Path | str) -> Provenance:
        """From a PNG that a command of vizrobust wrote. Raises ``ValueError`` or ``FileNotFoundError`` for any other file."""
        file = str(path)
        pixels, texts = _png(file)
        if ROW_TEXT not in texts:
            sheet = texts.get("Software") == "vizrobust"
            raise ValueError(
                f"{file!r} is a sheet or figure; each picture on it is a file of its own in a run folder's images"
                if sheet
                else f"{file!r} does not say how it was made: vizrobust did not render it, or another program saved it again"
            )
        if RUN_TEXT not in texts:
            raise ValueError(f"{file!r} is from a vizrobust that did not yet record enough; render it once more")
        try:
            return Provenance._parsed(file, json.loads(texts[ROW_TEXT]), json.loads(texts[RUN_TEXT]), pixels)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"what {file!r} says about how it was made cannot be read ({reason})") from error

    @staticmethod
    def _parsed(file: str, row: Row, run: Mapping[str, Any], pixels: Pixels) -> Provenance:
        identity, facts = run["identity"], run["checkpoints"][row["checkpoint"]]
        return Provenance(
            file=file,
            reference=str(facts["ref"] if "ref" in facts else facts["name"]),
            weights_sha256=str(row["weights_sha256"]),
            objective=parse_objective(row["objective"]),
            recipe=parse_recipe(row["recipe_text"]),
            unit=_whole(row["unit"], 0),
            seed=_whole(row["seed"]),
            sign=-1 if _whole(row["sign"]) < 0 else 1,
            batch_size=_batch_size(row.get("batch_size") or identity["batch_size"]),
            precision=str(identity["precision"]),
            start=(str(run["start"]), str(identity["start"])) if identity["start"] else ("", ""),
            sources={str(name): str(sha256) for about in (identity, row) for name, sha256 in about.get("references", [])},
            threads=min(_whole(run["threads"], 1), MOST_THREADS),
            device=str(run["device"]),
            versions={str(name): str(version) for name, version in run["versions"].items()},
            row=row,
            run=run,
            pixels=pixels,
        )

    def texts(self, done: FeatureImage, device: str | None, argv: str, checkpoint: Checkpoint) -> dict[str, str]:
        """The text chunks for the picture made once more: score, command, device and versions are those of now."""
        facts = {**self.run["checkpoints"][self.row["checkpoint"]], "ref": checkpoint.reference}
        now = {"argv": argv, "versions": versions(), "device": device or self.device}
        run = {**self.run, **now, "checkpoints": {self.row["checkpoint"]: facts}}
        return picture_texts({**self.row, "score": number_or_none(done.score), "trajectory": trajectory_of(done)}, run)

    def differences(self, device: str | None = None) -> list[str]:
        """One sentence for each thing that differs from when it was made and that may change pixels."""
        changed = changes({**self.versions, "device": self.device}, {**versions(), "device": device or self.device})
        if torch.get_num_threads() != self.threads:
            changed.append(f"number of threads was {self.threads} and is so again; usual here: {torch.get_num_threads()}")
        return changed


def rerender(made: Provenance, checkpoint: Checkpoint, device: str | None = None) -> FeatureImage:
    """The picture once more: the same weights, objective, recipe, batch size, precision and number of threads.

    `device` is the recorded one unless named. Raises ``ValueError`` where the weights, the start image or another
    file behind the picture are not the same as then, ``FileNotFoundError`` where one is gone.
    """
    if checkpoint.sha256 != made.weights_sha256:
        raise ValueError(
            f"{checkpoint.name!r} has the weights {checkpoint.sha256[:8]}, and {made.file!r} was made with "
            f"{made.weights_sha256[:8]}; name that checkpoint as REF"
        )
    for name, sha256 in sources(made.objective, made.recipe):
        if name != OWN_CODE or name in made.sources:  # earlier versions did not record it
            _same(name, sha256, made.sources.get(name), made.file)
    own, size = checkpoint.info.input_shape, made.recipe.size
    shape = own if size is None else (own[0], size, size)
    _check_size(made, shape)
    start = _start(made, shape)
    net = folded_net(checkpoint, made.objective.layers)[0] if made.row.get("folded") else checkpoint.net()
    with _threads(made.threads):
        (done,) = render_batches(
            net, made.objective, [Batch(((made.unit, made.seed),), made.batch_size)], made.recipe, shape=own,
            sign=made.sign, start=start, compute=Compute(device or made.device, made.precision),
        )  # fmt: skip
    return done


@dataclass(frozen=True)
class PixelDifference:
    """How two pictures differ: `differing` of `pixels` pixels, by at most `largest` and on average `mean` of 255."""

    pixels: int
    differing: int
    largest: int
    mean: float

    @staticmethod
    def between(before: Pixels, after: Pixels) -> PixelDifference:
        """For (H, W) or (H, W, planes) uint8; ``ValueError`` where the sizes differ."""
        if before.shape != after.shape:
            sizes = " and ".join(" x ".join(map(str, pixels.shape)) for pixels in (before, after))
            raise ValueError(f"the pictures are {sizes} (height, width, colours): one of them was changed after it was made")
        apart = np.abs(before.astype(int) - after.astype(int)).reshape(*before.shape[:2], -1)
        differing = (apart > 0).any(2)
        return PixelDifference(differing.size, int(differing.sum()), int(apart.max()), round(float(apart.mean()), 4))

    def __bool__(self) -> bool:
        return self.differing > 0

    def __str__(self) -> str:
        if not self:
            return "same pixels"
        return f"{self.differing} of {self.pixels} pixels differ, by at most {self.largest} and on average {self.mean:.3g} of 255"


def _png(path: str) -> tuple[Pixels, dict[str, str]]:
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path!r} is no file but a folder, pipe or device; give the PNG of a run folder's images")
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            if picture.format != "PNG":
                raise ValueError(f"{path!r} is a {picture.format}, not a PNG: how a picture was made is kept in PNGs alone")
            picture.load()
            texts = {str(key): str(value) for key, value in getattr(picture, "text", {}).items()}
            return np.asarray(picture if picture.mode in ("L", "LA", "RGB", "RGBA") else picture.convert("RGB")), texts
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path!r}") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path!r} is truncated or not a picture ({error})") from error


def _check_size(made: Provenance, shape: tuple[int, int, int]) -> None:
    """A recipe of another size than the picture has is not of this picture, and its images may fill the memory."""
    height, width = made.pixels.shape[:2]
    if (height, width) not in ((shape[1], shape[2]), (shape[1], shape[0] * shape[2])):
        raise ValueError(
            f"{made.file!r} is {height} x {width} pixels large, and what it says about how it was made gives {shape[1]} x "
            f"{shape[2]}: one of them was changed"
        )


def _start(made: Provenance, shape: tuple[int, int, int]) -> Tensor | None:
    name, sha256 = made.start
    if not sha256:
        return None
    _same(name, reference_sha256(name), sha256, made.file)
    return reference_image(name, shape)


def _same(name: str, now: str, then: str | None, file: str) -> None:
    if now != then:
        raise ValueError(f"{name!r} is not what it was when {file!r} was made ({now[:8]}, then {(then or 'unknown')[:8]})")


def _batch_size(value: Any) -> int:
    size = _whole(value, 1)
    if size > MOST_IMAGES:
        raise ValueError(f"a batch size of {size}, more than the {MOST_IMAGES} images that are rendered at once here")
    return size


def _whole(value: Any, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise ValueError(f"{value!r} where a whole number{'' if least is None else f' of at least {least}'} belongs")
    return value


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
