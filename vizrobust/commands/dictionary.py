"""`dictionary`: the features of a layer fitted by PCA, NMF or an autoencoder, kept in a file, and measured on test images."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vizrobust.commands.checkpoints import layers_command, typed
from vizrobust.commands.targets import drawn
from vizrobust.compute import versions
from vizrobust.data import DataSet
from vizrobust.features.dictionary_fits import STEPS, DictionaryQuality, Interval, fit_dictionary, layer_vectors, quality
from vizrobust.features.exemplar_runs import ImageSource
from vizrobust.models import Checkpoint
from vizrobust.models.dictionaries import Dictionary, read_dictionary
from vizrobust.requests import ParameterError
from vizrobust.requests.understanding import DictionaryRequest
from vizrobust.results import Event, Note, Result, Row, Table, interval_text, percent
from vizrobust.session import Session


@dataclass(frozen=True, repr=False)
class FittedDictionary(Result):
    """A dictionary in its file, and what it is worth on images that it was not fitted to."""

    request: DictionaryRequest
    name: str
    dictionary: Dictionary
    quality: DictionaryQuality

    @property
    def layer(self) -> str:
        """The name of the layer whose units are the dictionary's."""
        return f"{self.request.layer}:sae={self.request.out}"

    def rows(self) -> list[Row]:
        found = self.quality
        about: Row = {
            "checkpoint": self.name, "layer": self.request.layer, "file": self.request.out, "sha256": self.dictionary.sha256,
            "method": self.request.method, "units": self.dictionary.units, "channels": self.dictionary.channels,
            "images": found.images, "dead": found.dead, "dimensions": found.dimensions,
        }  # fmt: skip
        for key in ("explained", "active", "effective"):
            value, low, high = getattr(found, key)
            about |= {key: value, f"{key}_low": low, f"{key}_high": high}
        return [{**about, "shares": found.shares.tolist(), "activity": found.activity.tolist()}]

    def tables(self) -> list[Table]:
        found = self.quality
        explained, low, high = found.explained
        cells = [
            self.request.method, str(self.dictionary.units), f"{percent(explained)} ({interval_text(low, high)})",
            _number(found.active), str(found.dead), _number(found.effective), f"{found.dimensions:.1f}",
        ]  # fmt: skip
        header = ["method", "units", "explained", "active at a place", "dead", "effective units", "dimensions of the layer"]
        note = (
            f"on {found.images} test images, 95 % intervals over them, of this one fit; explained: share of the activations' "
            "variance; effective units: exp of the entropy of the units' shares of all contributions (Bereska et al. 2025); "
            "dimensions: participation ratio of the layer's covariance, without a dictionary (Gao et al. 2017)"
        )
        return [Table(f"{self.name}, {self.layer}", header, [cells], note)]

    def figure(self) -> Any:
        """Every unit's share of all contributions, and how often it is active."""
        from vizrobust.report.measurement_figures import unit_shares

        title = f"{self.name}, {self.request.layer}, {self.request.method}"
        return unit_shares(self.quality.shares.tolist(), self.quality.activity.tolist(), self.quality.effective[0], title)

    def __repr__(self) -> str:
        return f"FittedDictionary({self.layer!r}, {self.dictionary.units} units, {percent(self.quality.explained[0])} explained)"


def dictionary(request: DictionaryRequest, session: Session) -> Generator[Event, None, FittedDictionary]:
    """Fit a dictionary, or read the one that the same request left, and measure it."""
    data = session.dataset(request.data, model=request.model) if not isinstance(request.model, str | Path | Checkpoint) else None
    checkpoint = session.checkpoint(request.model, data)
    data = session.data_for(checkpoint, request.data if data is None else data, images_alone=True)
    made, net = _made(request, checkpoint, data), checkpoint.net()
    how: dict[str, Any] = {"shape": checkpoint.info.input_shape, "compute": session.compute(), "seed": request.seed}
    fitted = _there(request, made)
    try:
        if fitted is None:
            some = ImageSource(data, "train", request.images).images
            reading = _advance(session, f"{checkpoint.name} {request.layer}", len(some))
            vectors = layer_vectors(net, request.layer, some, request.places, progress=reading, **how)
            yield Note(f"{request.method} of {request.units} units on {len(vectors):,} vectors of {len(some):,} training images")
            fitted = fit_dictionary(
                vectors.to(how["compute"].device), request.method, request.units, request.largest, request.seed,
                l1=request.penalty,
                progress=lambda done: session.progress(f"{checkpoint.name} {request.layer}, training", done, STEPS),
            )  # fmt: skip
            replace(fitted, made={**made, "versions": versions()}).save(request.out)
            fitted = read_dictionary(request.out)
        held_out = ImageSource(data, "test", request.held_out).images
        measuring = _advance(session, f"{checkpoint.name} {request.layer}, test images", len(held_out))
        worth = quality(net, request.layer, fitted, held_out, progress=measuring, **how)
    except ParameterError:
        raise
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error} ({layers_command(checkpoint)} lists the layers)") from error
    report = FittedDictionary(request, checkpoint.name, fitted, worth)
    yield from report.rows()
    yield from drawn(report, request, session)
    if worth.dead:
        yield Note(f"{worth.dead} of {fitted.units} units are dead: no test image excites them")
    network = typed(checkpoint.reference, checkpoint.info.arch)
    yield Note(f"next: vizrobust neurons {network} --layer {shlex.quote(report.layer)}")
    return report


def _made(request: DictionaryRequest, checkpoint: Checkpoint, data: DataSet) -> dict[str, Any]:
    """What the file says about how it came about, without versions; the same for the same dictionary."""
    about = {key: getattr(request, key) for key in ("layer", "method", "units", "images", "places", "seed")}
    source = ImageSource(data, "train", request.images).identity
    if request.method == "relu":
        about["l1"] = request.penalty
    return {**about, "k": request.largest, "checkpoint": checkpoint.name, "network": checkpoint.network_sha256, "data": source}


def _there(request: DictionaryRequest, made: dict[str, Any]) -> Dictionary | None:
    """The dictionary that this request has already made; `ParameterError` where the file holds anything else."""
    if not Path(request.out).exists():
        return None
    try:
        found = read_dictionary(request.out)
    except (ValueError, FileNotFoundError):
        raise ParameterError("{out} %r is there and is no dictionary; give another name", request.out) from None
    if {key: value for key, value in found.made.items() if key != "versions"} != made:
        differing = sorted(key for key in made if found.made.get(key) != made[key])
        what = f"made with another {', '.join(differing)}" if found.made else "that another program made"
        raise ParameterError("{out} %r holds a dictionary %s; give another name", request.out, what)
    return found


def _advance(session: Session, task: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        session.progress(task, done, total)

    return advance


def _number(value: Interval) -> str:
    middle, low, high = value
    return f"{middle:.2f}" if low is None else f"{middle:.2f} ({low:.2f} to {high:.2f})"
