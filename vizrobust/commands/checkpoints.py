"""`import` and `layers`: someone else's checkpoint into our format, and what a network consists of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

import torch

from vizrobust.compute import Compute
from vizrobust.data import head
from vizrobust.intervals import mcnemar
from vizrobust.models import Checkpoint, Layer
from vizrobust.models import layers as layers_of
from vizrobust.models.foreign_files import Normalizer
from vizrobust.models.importing import NORMALIZATIONS, import_file, normalization, task
from vizrobust.models.references import is_user_code
from vizrobust.requests import ParameterError
from vizrobust.requests.study import LayersRequest
from vizrobust.requests.training import ImportRequest
from vizrobust.results import Event, Note, Result, Row, Table, percent
from vizrobust.robustness.evaluation_runs import predicted
from vizrobust.session import Session
from vizrobust.training import recorded_threads
from vizrobust.training.training_runs import check_target, store_half

# A network's accuracy on so many test images (a quarter of them where images are large) tells whether its normalization is wrong,
# where another is right on so many more of them, with so small a p.
LOOKED_AT, LARGE, POINTS, SURE = 200, 128, 0.1, 0.001


def next_command(command: str, ref: str, arch: str) -> Note:
    """Names the command that comes next for a checkpoint; it works as it stands, pasted into a shell."""
    return Note(f"next: vizrobust {command} {typed(ref, arch)}")


def own_code(arch: str) -> str:
    """The option by which a command may run a person's own code for a network; nothing for ours."""
    return f" --arch {shlex.quote(arch)}" if is_user_code(arch) else ""


def typed(ref: str, arch: str) -> str:
    """A network as a person types it behind a command; `arch` is its architecture, which may be their own code."""
    return f"{shlex.quote(ref)}{'' if '::arch=' in ref else own_code(arch)}"


def layers_command(checkpoint: Checkpoint) -> str:
    """The command that lists a network's layers."""
    return f"vizrobust layers {typed(checkpoint.reference, checkpoint.info.arch)}"


@dataclass(frozen=True, repr=False)
class Imported(Result):
    """A converted or stored checkpoint: its file, and what was found out on the way."""

    request: ImportRequest
    checkpoint: Checkpoint
    row: Row
    table: Table

    def rows(self) -> list[Row]:
        return [self.row]

    def tables(self) -> list[Table]:
        return [self.table]

    def __repr__(self) -> str:
        return f"Imported({self.request.out!r}, {self.checkpoint.info.arch}, weights {self.checkpoint.sha256[:8]})"


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
    notes = (*converted.notes, *_seen_through_another(converted.checkpoint, request, session))
    about, sha256 = converted.checkpoint.info, converted.checkpoint.sha256
    row: Row = {
        "checkpoint": out, "weights_sha256": sha256, "arch": arch, "input_shape": about.input_shape, "classes": about.classes,
        "normalization": {"mean": about.mean, "std": about.std}, "data": request.data, "notes": notes,
    }  # fmt: skip
    mean, std = (",".join(f"{value:g}" for value in values) for values in (about.mean, about.std))
    size = " x ".join(map(str, about.input_shape))
    cells = [out, arch, size, str(len(about.classes)), f"{mean} / {std}", sha256[:8]]
    header = ["checkpoint", "arch", "input", "classes", "normalization", "weights"]
    return Imported(request, converted.checkpoint, row, Table("imported", header, [cells], "; ".join(notes)))


def _seen_through_another(checkpoint: Checkpoint, request: ImportRequest, session: Session) -> Iterator[str]:
    """A sentence where the network is more often right through another normalization than through the one it was given."""
    try:
        data = session.data_for(checkpoint, request.data) if request.data else None
    except (ValueError, FileNotFoundError):
        return  # data that is not here, or does not fit, says nothing
    if data is None:
        return
    info, compute = checkpoint.info, session.compute("fp32")
    images = head(data.test, LOOKED_AT if max(data.shape[1:]) < LARGE else LOOKED_AT // 4)
    x = images.take(torch.arange(len(images)))
    channels = data.shape[0]
    candidates = {name: normalization(name, channels) for name, one in NORMALIZATIONS.items() if len(one.mean) in (1, channels)}
    right = {}
    for name, way in {"": Normalizer(info.mean, info.std), **candidates}.items():
        if name and (way.mean, way.std) == (info.mean, info.std):
            continue
        net = replace(checkpoint, info=replace(info, mean=way.mean, std=way.std)).net()
        right[name] = predicted(net, x, compute) == images.labels
    given = right.pop("")
    best = max(right, key=lambda name: int(right[name].sum()))
    test = mcnemar(right[best], given)
    if test.difference >= POINTS and test.p < SURE:
        yield (
            f"it is right on {percent(float(given.float().mean()))} of the first {len(given)} test images of {data.name}, with "
            f"normalize {best} on {percent(float(right[best].float().mean()))}: it seems to be made for that; import it again so"
        )


def _stored(request: ImportRequest, session: Session) -> Imported:
    from vizrobust.report.training_report import write_card_beside

    out, ref = request.out, request.file
    check_target(out, ref)
    checkpoint = session.checkpoint(ref if request.arch is None else f"{ref}::arch={request.arch}")
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
class LayerList(Result):
    """The layers of a network, in the order in which it runs them."""

    name: str
    checkpoint: Checkpoint
    layers: tuple[Layer, ...]
    unfolded: bool = False

    def rows(self) -> list[Row]:
        return [
            {"layer": layer.name, "kind": layer.kind, "shape": layer.shape, "units": layer.units, "layout": layer.layout,
             "visualizable": layer.visualizable, "reason": layer.reason}
            for layer in self.layers
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        listed = [(layer, layer.name) for layer in self.layers] if self.unfolded else folded(self.layers)
        reasons = list(dict.fromkeys(layer.reason for layer, _ in listed if layer.reason))
        rows = [
            [name, layer.kind, "x".join(map(str, layer.shape)) or "-", str(layer.units or "-"), layer.layout,
             f"no ({reasons.index(layer.reason) + 1})" if layer.reason else "yes"]
            for layer, name in listed
        ]  # fmt: skip
        info = self.checkpoint.info
        size = " x ".join(map(str, info.input_shape))
        shown = sum(layer.visualizable for layer in self.layers)
        notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
        example = f"vizrobust neurons {typed(self.name, self.checkpoint.info.arch)} --layer {shlex.quote(self._example())}"
        notes.append(f"{shown} of {len(self.layers)} layers can be rendered: {example}")
        header = ["layer", "kind", "output", "units", "layout", "renders"]
        return [Table(f"{self.name}: {info.arch}, input {size}", header, rows, "\n".join(notes), narrow=True)]

    def _example(self) -> str:
        """A layer worth looking at: the last that is a map of several positions, else the last."""
        maps = [layer for layer in self.layers if layer.visualizable and layer.shape[1:] > (1, 1)]
        return (maps or list(self.layers))[-1].name

    def __repr__(self) -> str:
        return f"LayerList({len(self.layers)} layers of {self.name})"


def layers(request: LayersRequest, session: Session) -> Generator[Event, None, LayerList]:
    """The layers of one checkpoint."""
    checkpoint = session.checkpoint(request.model)
    found = tuple(layers_of(checkpoint.net(), checkpoint.info.input_shape))
    pattern = f"*{request.filter.lower()}*"
    kept = tuple(one for one in found if fnmatchcase(one.name.lower(), pattern) or fnmatchcase(one.kind.lower(), pattern))
    name = request.model if isinstance(request.model, str) else checkpoint.name
    if not kept:
        raise ParameterError(
            "{filter} %r fits none of the %s layers of %s; leave it out to see them", request.filter, len(found), name
        )
    answer = LayerList(name, checkpoint, kept, request.all)
    yield from answer.rows()
    if not request.all and len(folded(kept)) < len(kept):
        yield Note(ParameterError("%s: blocks that are alike; {all} lists each", "{0-2}"))
    return answer


def folded(listed: Sequence[Layer]) -> list[tuple[Layer, str]]:
    """Layers without the blocks that are like the one before; each with a name that says which blocks it stands for.

    >>> blocks = [Layer(f"stage.{number}.conv", "Conv2d", (8, 4, 4), "NCHW", "") for number in range(3)]
    >>> [name for _, name in folded(blocks)]
    ['stage.{0-2}.conv']
    """
    return _folded([(one, tuple(re.split(r"(?=[.:])", one.name))) for one in listed], "")


def _folded(listed: Sequence[tuple[Layer, tuple[str, ...]]], before: str) -> list[tuple[Layer, str]]:
    """The same for layers with the parts of their names that are left, behind the name `before`."""
    found: list[tuple[Layer, str]] = []
    groups = [(part, list(own)) for part, own in groupby(listed, key=lambda one: one[1][:1])]
    while groups:
        part, own = groups.pop(0)
        if not part:
            found += [(layer, before) for layer, _ in own]
            continue
        inner = [(layer, rest[1:]) for layer, rest in own]
        stem, number = re.fullmatch(r"(.*?)(\d*)", part[0]).groups()  # type: ignore[union-attr]
        last = number
        while number and groups and groups[0][0] == (f"{stem}{int(last) + 1}",) and _signature(groups[0][1]) == _signature(own):
            groups.pop(0)
            last = str(int(last) + 1)
        found += _folded(inner, before + (part[0] if last == number else f"{stem}{{{number}-{last}}}"))
    return found


def _signature(block: Sequence[tuple[Layer, tuple[str, ...]]]) -> list[tuple[object, ...]]:
    return [(rest[1:], one.kind, one.shape, one.layout, one.reason) for one, rest in block]
