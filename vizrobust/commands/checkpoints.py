"""`import` and `layers`: someone else's checkpoint into our format, and what a network consists of."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from vizrobust.compute import Compute
from vizrobust.models import Checkpoint, Layer
from vizrobust.models import layers as layers_of
from vizrobust.models.architectures import is_user_code
from vizrobust.models.importing import import_file, task
from vizrobust.report.training_report import write_card_beside
from vizrobust.requests.study import LayersRequest
from vizrobust.requests.training import ImportRequest
from vizrobust.results import Event, Note, Row, Table, percent, tables_html
from vizrobust.session import Session
from vizrobust.training import recorded_threads
from vizrobust.training.half_precision import check_target, store_half


def next_command(command: str, ref: str, arch: str) -> Note:
    """Names the command that comes next for a checkpoint; it works as it stands, pasted into a shell."""
    own_code = f" --arch {shlex.quote(arch)}" if is_user_code(arch) else ""
    return Note(f"next: vizrobust {command} {shlex.quote(ref)}{own_code}")


@dataclass(frozen=True, repr=False)
class Imported:
    """A converted or stored checkpoint: its file, and what was found out on the way."""

    request: ImportRequest
    checkpoint: Checkpoint
    row: Row
    table: Table
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return [self.row]

    def tables(self) -> list[Table]:
        return [self.table]

    def __repr__(self) -> str:
        return f"Imported({self.request.out!r}, {self.checkpoint.info.arch}, weights {self.checkpoint.sha256[:8]})"

    def _repr_html_(self) -> str:
        return tables_html(self.tables())


def import_(request: ImportRequest, session: Session) -> Generator[Event, None, Imported]:
    """Convert a file, or with `half` store a checkpoint of ours in half precision."""
    found = _stored(request, session) if request.half else _converted(request, session)
    yield found.row
    if not request.half:
        # Without data only pictures can be made.
        yield next_command("attack" if request.data else "neurons", request.out, str(request.arch))
    return found


def _converted(request: ImportRequest, session: Session) -> Imported:
    wanted = task(request.data, request.shape, request.classes, session.download)
    arch, out = str(request.arch), request.out
    converted = import_file(request.file, out, arch, wanted, request.normalize, request.drop, request.key)
    about, sha256 = converted.checkpoint.info, converted.checkpoint.sha256
    row: Row = {
        "checkpoint": out, "weights_sha256": sha256, "arch": arch, "input_shape": about.input_shape, "classes": about.classes,
        "normalization": {"mean": about.mean, "std": about.std}, "data": request.data, "notes": converted.notes,
    }  # fmt: skip
    mean, std = (",".join(f"{value:g}" for value in values) for values in (about.mean, about.std))
    size = " x ".join(map(str, about.input_shape))
    cells = [out, arch, size, str(len(about.classes)), f"{mean} / {std}", sha256[:8]]
    header = ["checkpoint", "arch", "input", "classes", "normalization", "weights"]
    return Imported(request, converted.checkpoint, row, Table("imported", header, [cells], "; ".join(converted.notes)))


def _stored(request: ImportRequest, session: Session) -> Imported:
    out, ref = request.out, request.file
    check_target(out, ref)
    if request.arch is not None:
        session.code = (request.arch,)
    checkpoint = session.checkpoint(ref)
    run = Path(ref) if Path(ref).is_dir() else Path(ref).parent if Path(ref).is_file() else None
    # The run's thread count: another one rounds otherwise, which moves an image or two.
    threads = recorded_threads(run) if run else None
    loaded = session.data_for(checkpoint, request.data or None)
    shipped = store_half(checkpoint, loaded, Compute(threads=threads), out, request.eps, request.data)
    card = write_card_beside(out, shipped, run)
    measured, size = shipped.info.metrics, Path(out).stat().st_size
    row: Row = {"checkpoint": out, "card": str(card), "bytes": size, "weights_sha256": shipped.sha256, **measured}
    cells = [out, *(percent(measured[key]) for key in ("clean", "fgsm", "robust")), f"{size / 1000:,.0f} kB", shipped.sha256[:8]]
    note = f"of the stored weights; robust: {measured['attack']} on the first {measured['n']} test images; card: {card}"
    header = ["checkpoint", "clean", "FGSM", "robust", "size", "weights"]
    return Imported(request, shipped, row, Table("stored in half precision", header, [cells], note))


@dataclass(frozen=True, repr=False)
class LayerList:
    """The layers of a network, in the order in which it runs them."""

    name: str
    checkpoint: Checkpoint
    layers: tuple[Layer, ...]
    ok: bool | None = True

    def rows(self) -> list[Row]:
        return [
            {"layer": layer.name, "kind": layer.kind, "shape": layer.shape, "units": layer.units, "layout": layer.layout,
             "visualizable": layer.visualizable, "reason": layer.reason}
            for layer in self.layers
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        reasons = list(dict.fromkeys(layer.reason for layer in self.layers if layer.reason))
        rows = [
            [layer.name, layer.kind, "x".join(map(str, layer.shape)) or "-", str(layer.units or "-"), layer.layout,
             f"no ({reasons.index(layer.reason) + 1})" if layer.reason else "yes"]
            for layer in self.layers
        ]  # fmt: skip
        info = self.checkpoint.info
        size = " x ".join(map(str, info.input_shape))
        shown = sum(layer.visualizable for layer in self.layers)
        notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
        example = f"vizrobust neurons {shlex.quote(self.name)} --layer {self._example()}"
        notes.append(f"{shown} of {len(self.layers)} layers can be rendered: {example}")
        header = ["layer", "kind", "output", "units", "layout", "renders"]
        return [Table(f"{self.name}: {info.arch}, input {size}", header, rows, "\n".join(notes), narrow=True)]

    def _example(self) -> str:
        """A layer worth looking at: the last that is a map of several positions, else the last."""
        maps = [layer for layer in self.layers if layer.visualizable and layer.shape[1:] > (1, 1)]
        return (maps or list(self.layers))[-1].name

    def __repr__(self) -> str:
        return f"LayerList({len(self.layers)} layers of {self.name})"

    def _repr_html_(self) -> str:
        return tables_html(self.tables())


def layers(request: LayersRequest, session: Session) -> Generator[Event, None, LayerList]:
    """The layers of one checkpoint."""
    checkpoint = session.checkpoint(request.model)
    found = tuple(layers_of(checkpoint.net(), checkpoint.info.input_shape))
    name = request.model if isinstance(request.model, str) else checkpoint.name
    answer = LayerList(name, checkpoint, found)
    yield from answer.rows()
    return answer
