"""What a run needs and its rows do not depend on: device, folder, loaders; and from what a user gives to checkpoints and data."""

from __future__ import annotations

import copy
import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from vizrobust.compute import Compute, has_bf16, versions
from vizrobust.data import ArraySplit, DataSet, Split, content_of, load, with_classes
from vizrobust.data.images import pair_of
from vizrobust.models import Checkpoint, CheckpointInfo, evaluating, load_checkpoint
from vizrobust.models.checkpoints import OBJECT
from vizrobust.models.dictionaries import read_dictionary
from vizrobust.models.forward import Logits, NoLogits
from vizrobust.models.object_code import object_sha256
from vizrobust.plugins import split_code
from vizrobust.requests import ParameterError, Request
from vizrobust.requests.request import parts_of
from vizrobust.results import Event, Note, Progress, answer_of
from vizrobust.rng import undisturbed
from vizrobust.runs import RunFolder, default_folder


class Session:
    """Where and how a command runs. One session may answer several requests.

    `out` is the run folder (None: ``runs/<command>-<hash>``, or with `memory` none at all). `code` are the files of the
    user's own networks (``path.py:callable``), `download` allows fetching data and published weights, `wait` waits for a
    folder that another process writes. `argv` is the command as typed, for run.json and pictures. `report` gets progress.

    >>> session = Session(memory=True, device="cpu")
    >>> session.checkpoint("mnist-k8").name, session.data_for(session.checkpoint("mnist-k8")).name
    ('mnist-k8', 'mnist5k')
    """

    def __init__(
        self, out: Path | str | None = None, *, device: str = "auto", threads: int | None = None, download: bool = False,
        code: Sequence[str] = (), wait: bool = False, memory: bool = False, argv: str = "",
        report: Callable[[Event], None] | None = None,
    ) -> None:  # fmt: skip
        self.out, self.device, self.threads, self.download = out, device, threads, download
        self.code, self.wait, self.memory, self.argv = tuple(code), wait, memory, argv
        self.report = report or (lambda _event: None)
        self._computes: dict[str, Compute] = {}
        self._folders: dict[Path, RunFolder] = {}
        self._noted: set[tuple[str, str]] = set()
        # What a DataLoader yielded: a second reading may be in another order, or empty.
        self._yielded: dict[int, tuple[Any, tuple[Tensor, Tensor]]] = {}

    def compute(self, precision: str = "fp32") -> Compute:
        if precision not in self._computes:
            made = self._computes[precision] = Compute(self.device, precision, self.threads)
            if precision == "bf16" and made.device.type == "cpu" and not has_bf16():
                self.note("note: this processor has no bfloat16 instructions, so bf16 is slower than fp32, up to tens of times")
        return self._computes[precision]

    def note(self, text: str | ParameterError) -> None:
        self.report(Note(text))

    def progress(self, task: str, done: int, total: int | None = None) -> None:
        self.report(Progress(task, done, total))

    def checkpoint(self, model: str | Path | nn.Module | Checkpoint, data: DataSet | None = None) -> Checkpoint:
        """A reference, a checkpoint or a network of images in [0, 1]; the network also needs the `data` it is used on.

        ``REF::arch=my.py:Net`` names the code of this reference alone. A network is copied, so it stays as it is; its name is
        its class and the hash of its weights.
        """
        if isinstance(model, Checkpoint):
            return model
        if isinstance(model, nn.Module):
            return _of_module(model, data)
        ref, own = split_code(str(model))
        return load_checkpoint(ref, own or self.code, self.download)

    def checkpoints(self, models: Iterable[Any], data: Any = None) -> list[tuple[Checkpoint, DataSet]]:
        """Each checkpoint once, with the data set that it is evaluated on: `data`, or its own; no two have one name."""
        found: dict[str, tuple[Checkpoint, DataSet]] = {}
        for model in models:
            if isinstance(model, nn.Module):
                given = self.dataset(data, model=model)
                checkpoint = self.checkpoint(model, given)
                found[checkpoint.id] = checkpoint, self.data_for(checkpoint, given)
            else:
                checkpoint = self.checkpoint(model)
                found[checkpoint.id] = checkpoint, self.data_for(checkpoint, data)
        named = named_apart(checkpoint for checkpoint, _ in found.values())
        return [(checkpoint, own) for checkpoint, (_, own) in zip(named, found.values(), strict=True)]

    def dataset(self, data: Any, *, classes: Sequence[str] = (), model: nn.Module | None = None, typed: bool = True) -> DataSet:
        """A data set: itself, a reference, a pair ``(x, y)``, or a DataLoader or Dataset that yields such pairs.

        x is (n, C, H, W) in [0, 1], y is (n,) of class numbers, as tensors or arrays. A reference to code of a file
        (``my.py:make``) is followed only where a person `typed` it. Raises ``ValueError`` with the range found for other images.
        """
        if isinstance(data, DataSet):
            return data
        if isinstance(data, str | Path):
            return load(str(data), self.download, typed=typed)
        if data is None:
            raise ParameterError("{data} is needed here: a data set, its name, a DataLoader or a pair (x, y)")
        x, y = self._read(data)
        names = tuple(classes) or tuple(map(str, range(_class_count(model, x, y))))
        digest = hashlib.sha256(x.contiguous().numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:8]
        split: Split = ArraySplit(x, y)
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        return DataSet(f"tensors#{digest}", names, shape, split, split, split, None)

    def _read(self, data: Any) -> tuple[Tensor, Tensor]:
        """Images and labels of a pair or a DataLoader, which is read once in a session."""
        if id(data) not in self._yielded:
            found = pair_of(data)
            if isinstance(data, tuple | list):
                return found
            self._yielded[id(data)] = data, found
        return self._yielded[id(data)][1]

    def data_for(self, checkpoint: Checkpoint, data: Any = None, images_alone: bool = False) -> DataSet:
        """The data set `data`, or the checkpoint's own; ``ValueError`` if shape or classes do not fit the network.

        With `images_alone` nothing depends on the labels, and the data set may have another number of classes.
        """
        info = checkpoint.info
        if data is None and not info.data:
            raise ParameterError("%r does not record what it was trained on; give {data} (vizrobust list data)", checkpoint.name)
        loaded = self.dataset(data if data is not None else info.data, classes=info.classes, typed=data is not None)
        if loaded.shape != info.input_shape:
            other = "@rgb" if info.input_shape[0] == 3 else "@grey"
            convertible = {loaded.shape[0], info.input_shape[0]} == {1, 3} and loaded.shape[1:] == info.input_shape[1:]
            advice = f", such as {loaded.name}{other}" if convertible else ""
            raise ParameterError(
                "%r takes images of %s, %s has %s; give another {data}%s",
                checkpoint.name, info.input_shape, loaded.name, loaded.shape, advice,
            )  # fmt: skip
        if loaded.classes == info.classes:
            return loaded
        if (mapped := with_classes(loaded, info.classes)) is not None:
            self.note(f"note: the {len(loaded.classes)} classes of {loaded.name} are those of {checkpoint.name} by name")
            return mapped
        if len(loaded.classes) != len(info.classes):
            if images_alone:
                return loaded
            raise ParameterError(
                "%r has %s classes, %s has %s; give another {data}",
                checkpoint.name, len(info.classes), loaded.name, len(loaded.classes),
            )  # fmt: skip
        own_names = {name.lower() for name in info.classes}
        for number, (theirs, own) in enumerate(zip(loaded.classes, info.classes, strict=True)):
            if theirs.lower() in own_names and theirs.lower() != own.lower():
                raise ParameterError(
                    "class %s is %r for %r and %r in %s: the labels mean other things; give another {data}, or bring its "
                    "classes into the checkpoint's order", number, own, checkpoint.name, theirs, loaded.name,
                )  # fmt: skip
        return loaded

    def pictured(
        self, model: Any, data: Any = None, shape: tuple[int, int, int] | None = None
    ) -> tuple[Checkpoint, DataSet | None]:
        """A model to be pictured, with data where they are given or at hand; a bare network needs `shape` or `data`."""
        if not isinstance(model, nn.Module):
            checkpoint = self.checkpoint(model)
            return checkpoint, self.maybe_data_for(checkpoint, data)
        if data is not None:
            loaded = self.dataset(data, model=model)
            return self.checkpoint(model, loaded), loaded
        if shape is None:
            raise ParameterError("{shape} (C, H, W), the size of its images, or {data} is needed for a network as an object")
        empty = torch.zeros(1, *shape)
        return self.checkpoint(model, self.dataset((empty, torch.zeros(1, dtype=torch.int64)), model=model)), None

    def maybe_data_for(self, checkpoint: Checkpoint, data: Any = None) -> DataSet | None:
        """As `data_for` for images alone, but None with a note where no data are given and the checkpoint's are not available."""
        if data is not None:
            return self.data_for(checkpoint, data, images_alone=True)
        if not checkpoint.info.data:
            return None
        try:
            return self.data_for(checkpoint, None, images_alone=True)
        except (ValueError, FileNotFoundError) as error:
            self.note(ParameterError("note: going on without data: %s", error))
            return None

    def folder(
        self, command: str, identity: Mapping[str, Any], compute: Compute, data: DataSet | None = None, split: str = "test",
        *, shared: bool = False, exact: bool | None = None, **record: Any,
    ) -> RunFolder:  # fmt: skip
        """The locked run folder for rows of this identity; the same object each time within a session.

        A `shared` folder is the one that the command of this name has by itself, whatever the session's own. `data` and
        `split` are the images and labels that rows depend on: where a person has changed them in place, older rows are
        kept in the folder but not used, which is said. Unless `exact` is None, it is a part of the identity, and without it
        the rows are of networks with BatchNorm folded.
        """
        identity = {**identity, "exact": True} if exact else identity
        folds = exact is False and compute.precision == "fp32"  # bfloat16 rounds folded weights more coarsely
        if self.memory and (shared or self.out is None):
            return RunFolder.memory(command, identity, compute.processes, folds)
        path = Path(self.out) if self.out is not None and not shared else default_folder(command, identity)
        if path not in self._folders:
            made = {"argv": self.argv, "threads": compute.threads, "device": compute.device.type, "versions": versions()}
            content = "" if data is None else content_of(data, split)
            self._folders[path] = run = RunFolder(
                path, command, identity, {**made, **record}, compute.processes, wait=self.wait, content=content,
                folds=folds,
            )  # fmt: skip
            if run.outdated:
                self.note(
                    f"note: {data.name if data else 'the data'} has changed: {run.outdated} older rows in {path} are kept, "
                    "but not used"
                )
        return self._folders[path]

    def remember(self, run: RunFolder, checkpoint: Checkpoint, facts: Mapping[str, Any] | None = None) -> None:
        """Record a checkpoint in the folder's run.json; what the folder holds of another network of its name is told apart."""
        others = [key for key, about in run.info.get("checkpoints", {}).items() if about.get("name") == checkpoint.name]
        if others and checkpoint.id not in others:
            self.note(
                f"note: weights, normalization or code of {checkpoint.name} have changed: older rows in {run.folder} are kept, "
                "but not used"
            )
        about = facts or {"name": checkpoint.name, "weights_sha256": checkpoint.sha256}
        run.remember("checkpoints", {checkpoint.id: dict(about)})

    def note_dictionary(self, checkpoint: Checkpoint, layer: str) -> None:
        """Say once where the dictionary in a layer's name was fitted to another network, or to another layer."""
        asked = parts_of(layer)
        made = read_dictionary(asked.file).made if asked.file else {}
        there = (made.get("network"), made.get("layer"))
        if all(there) and there != (checkpoint.network_sha256, asked.layer) and (checkpoint.id, layer) not in self._noted:
            self._noted.add((checkpoint.id, layer))
            self.note(
                f"note: the dictionary {asked.file} was fitted to {made['layer']} of {made['checkpoint']}, not to {asked.layer} "
                f"of {checkpoint.name}: its units are the same directions there, not features of that layer's own"
            )

    def close(self) -> None:
        """Release the locks of this session's folders."""
        for folder in self._folders.values():
            folder.close()
        self._folders.clear()


def answered(command: Any, request: Request, session: Session) -> Any:
    """The result of a command; its run folder is free again afterwards, also after an error."""
    # A caller's own inference mode would leave no gradients, whatever is enabled within it.
    with closing(session), torch.inference_mode(False):
        return answer_of(command(request, session))[0]


def answered_with_files(
    command: Any, request: Request | Callable[[Path], Request], out: str | Path | None, device: str
) -> Any:  # fmt: skip
    """The result of a command that writes files: to `out`, or to a temporary folder that goes with the result.

    `request` may be a function of the folder, for one that names a file in it.
    """
    folder = Path(mkdtemp(prefix="vizrobust-") if out is None else out)
    try:
        asked = request if isinstance(request, Request) else request(folder)
        found = answered(command, asked, Session(folder, device=device, memory=True))
    except BaseException:
        if out is None:
            rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(found, rmtree, folder, ignore_errors=True)
    return found


def named_apart(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints; where several have one name, a part of their hash tells them apart, as rows and tables are by name.

    >>> from vizrobust.models import load_checkpoint
    >>> one, other = load_checkpoint("mnist-k1"), load_checkpoint("mnist-k8")
    >>> [found.name[:9] for found in named_apart([one, replace(other, name="mnist-k1")])]
    ['mnist-k1#', 'mnist-k1#']
    """
    checkpoints = list(checkpoints)
    counts = Counter(one.name for one in checkpoints)

    def apart(one: Checkpoint) -> Checkpoint:
        return replace(one, name=f"{one.name}#{one.network_sha256[:8]}", ref=one.reference)

    return [apart(one) if counts[one.name] > 1 else one for one in checkpoints]


def several(value: Any) -> tuple[Any, ...]:
    """One thing, or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _class_count(model: nn.Module | None, x: Tensor, y: Tensor) -> int:
    if model is None:
        return int(y.max()) + 1
    net = _copied(model)
    place = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    try:
        with evaluating(net), torch.no_grad(), undisturbed(place):
            return int(Logits(net)(x[:1].to(place).repeat(2, 1, 1, 1)).shape[1])
    except NoLogits:
        raise
    except Exception as error:  # whatever a network does with images that are not for it
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ParameterError(
            "%s cannot take images of %s (%s); give {data} as it was made for", type(model).__name__, tuple(x.shape[1:]), reason
        ) from error


def _copied(model: nn.Module) -> nn.Module:
    # Tensors that a pass has left as attributes, as weight_norm does, cannot be copied with their history.
    attributes = [value for module in model.modules() for value in vars(module).values()]
    memo = {id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a lock, a tensor that is a pass's result, …
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({reason}), and a copy is what is worked on; remove such attributes, "
            "or save its state dict and import it (vizrobust import)"
        ) from error


def _of_module(model: nn.Module, data: DataSet | None) -> Checkpoint:
    if data is None:
        raise ParameterError("{data} is needed for a network given as an object; give a data set, a DataLoader or (x, y)")
    channels, name = data.shape[0], type(model).__name__
    info = CheckpointInfo(f"{OBJECT}{name}", data.shape, data.classes, (0.0,) * channels, (1.0,) * channels)
    kept = _copied(model)
    weights = {}
    for key, value in kept.state_dict().items():
        if isinstance(value, UninitializedParameter):
            raise ValueError(f"{key} of {name} has no values yet; run the network on an image once")
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or value.is_quantized:
            kind = f"a {value.device.type} {str(value.layout).removeprefix('torch.')} tensor" if isinstance(value, Tensor) else ""
            raise ValueError(f"{key} of {name} is {kind or type(value).__name__}; give the network with ordinary weights")
        weights[key] = value.detach().cpu().contiguous().clone()
    return Checkpoint(name, info, weights, lambda: _fresh(kept), code=object_sha256(model))


def _fresh(net: nn.Module) -> nn.Module:
    """A copy with initial weights, where its modules know how to make some."""
    copied = copy.deepcopy(net)
    for module in copied.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return copied
