"""The conversion of another group's checkpoint, with an architecture and a normalization, to our format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from vizrobust.compute import versions
from vizrobust.data import load, metadata_of
from vizrobust.data.published import class_places, imagenet_classes
from vizrobust.models.checkpoints import Checkpoint, CheckpointInfo, body_state, check_finite, load_strictly, save_checkpoint
from vizrobust.models.foreign_files import Fit, Normalizer, find_state, fit, read_tensors, take_normalizer
from vizrobust.models.forward import NoLogits
from vizrobust.models.packages import IMAGENET_MEAN, IMAGENET_STD
from vizrobust.models.references import architecture, code_sha256
from vizrobust.requests import ParameterError
from vizrobust.spec import unknown

Shape = tuple[int, int, int]

NORMALIZATIONS: dict[str, Normalizer] = {
    "none": Normalizer((0.0,), (1.0,)),
    "imagenet": Normalizer(IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": Normalizer((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "mnist": Normalizer((0.1307,), (0.3081,)),
}
# Networks of this zoo normalize their images themselves.
TAKES_ZERO_TO_ONE = "robustbench:"
HALVES = (torch.float16, torch.bfloat16)
# A buffer and the decimals of a paper agree to this.
SAME_NORMALIZATION = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
SAME_IN_FLOAT32 = 1e-4


@dataclass(frozen=True)
class Task:
    """What a network was made for: images of `shape` (C, H, W), `classes` by name, a data reference or ""."""

    shape: Shape
    classes: tuple[str, ...]
    data: str = ""


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our terms; `notes` are sentences about what had to be done to the file."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def task(data: str = "", shape: str = "", classes: str = "", download: bool = False) -> Task:
    """The task from a data reference, or from texts for data that is not on this machine.

    `shape` is ``C,H,W``, `classes` a number or names with commas between; where both are given nothing is loaded. The
    data may have some of the `classes` only, by name, as a folder of a few of ImageNet's has.
    """
    given_shape, given_classes = _shape(shape), _classes(classes)
    info = metadata_of(data) if data else None
    if info is None:
        if given_shape and given_classes:
            return Task(given_shape, given_classes, data)
        info = _loaded(data, download)
    if given_shape and given_shape != info[0]:
        raise ParameterError("%s has images of %s, {shape} says %s; leave out one of the two", data, info[0], given_shape)
    some = all(len(places) == 1 for places in class_places(given_classes, info[1]))
    if given_classes and len(given_classes) != len(info[1]) and not some:
        raise ParameterError(
            "%s has %s classes, {classes} says %s; leave out one of the two", data, len(info[1]), len(given_classes)
        )
    return Task(info[0], given_classes or info[1], data)


def normalization(text: str, channels: int) -> Normalizer:
    """The mean and standard deviation per channel that a name or ``mean,mean,mean/std,std,std`` gives.

    >>> normalization("0.5/0.25", 3)
    Normalizer(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), keys=())
    """
    named = NORMALIZATIONS.get(text.strip().lower())
    if named is None:
        if "/" not in text:
            raise ValueError(unknown(text, NORMALIZATIONS, "normalization") + ", or MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2")
        try:
            means, _, stds = text.partition("/")
            named = Normalizer(
                tuple(float(value) for value in means.split(",")), tuple(float(value) for value in stds.split(","))
            )
        except ValueError as error:
            raise ValueError(f"cannot read normalization {text!r}: write MEAN/STD such as 0.5,0.5,0.5/0.2,0.2,0.2") from error
    if not {len(named.mean), len(named.std)} <= {1, channels}:
        counts = f"{len(named.mean)} means and {len(named.std)} deviations"
        raise ValueError(f"normalization {text!r} has {counts}, the images have {channels} channel{'s' * (channels > 1)}")
    mean, std = (values * channels if len(values) == 1 else values for values in (named.mean, named.std))
    return _checked(Normalizer(mean, std), f"normalization {text!r}")


def convert(
    path: Path | str, arch: str, task: Task, normalize: str | None = None, drop: Sequence[str] = (), key: str = ""
) -> Converted:
    """Someone else's checkpoint as one of ours. The file is only read; `arch` may be code that is run.

    `normalize` is needed unless the file has a normalizing layer's buffers; `drop` are patterns of keys to leave
    out; `key` says where in the file the network is, if there are several. Raises ``ValueError`` or
    ``FileNotFoundError`` in one sentence for whatever does not fit.
    """
    what = repr(str(path))
    if normalize is None and arch.startswith(TAKES_ZERO_TO_ONE):
        normalize = "none"
    chosen = normalization(normalize, task.shape[0]) if normalize is not None else None
    where, state = find_state(read_tensors(path), what, key)
    kept = _without(state, drop, what)
    build = architecture(arch, task.shape, len(task.classes))
    with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator
        body = build()
    found = fit(kept, body.state_dict(), what)
    in_file, rest = take_normalizer(found.rest, task.shape[0], what)
    _load(body, found, rest, task, what, arch)
    agreed = _agreed(chosen, in_file, found.rest, what)
    buffers = {name: value for name, value in found.weights.items() if name not in dict(body.named_parameters())}
    inside, _ = take_normalizer(buffers, task.shape[0], what)
    info = CheckpointInfo(
        arch=arch,
        input_shape=task.shape,
        classes=task.classes,
        mean=agreed.mean,
        std=agreed.std,
        data=task.data,
        versions=versions(),
        arch_sha256=code_sha256(arch),
    )
    checkpoint = Checkpoint(str(path), info, body_state(body), build, code=info.arch_sha256)
    _try_out(checkpoint, task, what)
    return Converted(checkpoint, tuple(_notes(where, found, len(state) - len(kept), agreed, inside)))


def import_file(
    path: Path | str, out: Path | str, arch: str, task: Task,
    normalize: str | None = None, drop: Sequence[str] = (), key: str = "",
) -> Converted:  # fmt: skip
    """Convert a file and write the result to `out`, which must end in .safetensors and not be `path`."""
    if Path(out).suffix != ".safetensors":
        raise ParameterError("{out} %r must end in .safetensors, the format of the converted checkpoint", str(out))
    if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        raise ParameterError("{out} %r is the file to import itself; give another name", str(out))
    converted = convert(path, arch, task, normalize, drop, key)
    save_checkpoint(out, converted.checkpoint.state, converted.checkpoint.info)
    return converted


def _loaded(data: str, download: bool) -> tuple[Shape, tuple[str, ...]]:
    if not data:
        raise ParameterError("the images are not known; give {data}, or both {shape} C,H,W and {classes}")
    try:
        loaded = load(data, download)
    except (ValueError, FileNotFoundError) as error:
        raise ParameterError("%s (or give both {shape} C,H,W and {classes})", error) from error
    return loaded.shape, loaded.classes


def _shape(text: str) -> Shape | None:
    if not text:
        return None
    sizes = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if len(sizes) != 3 or min(sizes) < 1:
        raise ParameterError("{shape} %r is not C,H,W, such as 3,32,32", text)
    return sizes[0], sizes[1], sizes[2]


def _classes(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    if text.strip().lower() == "imagenet":
        return imagenet_classes()
    names = [str(number) for number in range(int(text))] if text.isdigit() else [name.strip() for name in text.split(",")]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise ParameterError("{classes} %r must be a number of at least 2, or different names with commas between", text)
    return tuple(names)


def _checked(normalizer: Normalizer, what: str) -> Normalizer:
    if not all(map(isfinite, normalizer.mean + normalizer.std)) or min(normalizer.std) <= 0:
        got = f"{_text(normalizer.mean)} / {_text(normalizer.std)}"
        raise ValueError(f"{what}: means must be finite and standard deviations positive, got {got}")
    if max(map(abs, normalizer.mean)) > 1:
        divide = "divide mean and standard deviation by 255"
        raise ValueError(f"{what}: images are in [0, 1], a mean of {_text(normalizer.mean)} is not; {divide}")
    return normalizer


def _agreed(chosen: Normalizer | None, in_file: Normalizer | None, state: Mapping[str, Tensor], what: str) -> Normalizer:
    """The file's own normalization if it has one (a choice must agree, and counts where that is rounded), else the choice."""
    if in_file is None:
        if chosen is None:
            names = ", ".join(NORMALIZATIONS)
            raise ParameterError("%s does not say how its images were normalized; give {normalize} (%s or MEAN/STD)", what, names)
        return chosen
    if chosen is not None:
        pairs = zip(chosen.mean + chosen.std, in_file.mean + in_file.std, strict=True)
        stored = state[in_file.keys[0]].dtype
        if any(abs(a - b) > SAME_NORMALIZATION.get(stored, SAME_IN_FLOAT32) for a, b in pairs):
            file_says = f"{in_file.keys[0]} is {_text(in_file.mean)} / {_text(in_file.std)}"
            wanted = f"{_text(chosen.mean)} / {_text(chosen.std)}"
            raise ParameterError(
                "in %s %s, but {normalize} says %s; leave out {normalize}, or these keys with {drop}", what, file_says, wanted
            )
        if stored in HALVES:
            return replace(chosen, keys=in_file.keys)
    return _checked(in_file, f"{what}, {in_file.keys[0]}")


def _without(state: Mapping[str, Tensor], drop: Sequence[str], what: str) -> dict[str, Tensor]:
    for pattern in drop:
        if not any(fnmatchcase(key, pattern) for key in state):
            raise ParameterError("{drop} %r fits no key of %s; there are: %s", pattern, what, _listed(state))
    return {key: value for key, value in state.items() if not any(fnmatchcase(key, pattern) for pattern in drop)}


def _load(body: nn.Module, found: Fit, rest: Mapping[str, Tensor], task: Task, what: str, arch: str) -> None:
    """Copy the weights into the network, or say in one sentence why they do not fit or are no numbers."""
    own = body.state_dict()
    into = f"{arch} ({what})"
    shapes = [(value.shape, own[name].shape) for name, value in found.weights.items() if value.shape != own[name].shape]
    if shapes and all(name in found.weights for name in own):
        theirs = {shape[:1] for shape, _ in shapes}
        if len(theirs) == 1 and all(a[1:] == b[1:] and b[0] == len(task.classes) for a, b in shapes if len(a) * len(b)):
            raise _other_classes(what, theirs.pop()[0], task)
    if not found.complete:
        load_strictly(body, {**{key: value for key, value in rest.items() if key not in own}, **found.weights}, into)
    if rest:
        raise ParameterError(
            "the weights do not fit %s; extra: %s; leave out what is not part of it with {drop} %r (* and ? work)",
            into, _listed(rest), next(iter(rest)),
        )  # fmt: skip
    for name, value in found.weights.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{name} in {what} is {value.dtype}, not floating point; save the weights before they are quantized")
    check_finite(body, found.weights, what)
    load_strictly(body, found.weights, into)


def _try_out(checkpoint: Checkpoint, task: Task, what: str) -> None:
    """One forward pass of two grey images, so that a network that cannot be used is not written."""
    arch, net = checkpoint.info.arch, checkpoint.net()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = net(torch.full((2, *task.shape), 0.5))
    except NoLogits as error:
        raise ValueError(str(error).replace("the network", arch, 1)) from error
    except Exception as error:  # whatever a network does with images that are not for it
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ParameterError("%s cannot take images of %s (%s); check {data} or {shape}", arch, task.shape, reason) from error
    if len(logits) != 2:
        raise ValueError(f"{arch} must return logits (N, classes) for N images, it returned {tuple(logits.shape)} for two")
    if logits.shape[1] != len(task.classes):
        raise _other_classes(what, logits.shape[1], task)
    if not logits.isfinite().all():
        raise ParameterError("the logits of %s for a grey image are not finite; check {arch} and {normalize}", what)


def _notes(where: str, found: Fit, dropped: int, agreed: Normalizer, inside: Normalizer | None) -> list[str]:
    notes = []
    if inside is not None and (set(agreed.mean), set(agreed.std)) != ({0.0}, {1.0}):
        notes.append(
            f"the network seems to normalize its images itself, by {' and '.join(inside.keys)} ({_text(inside.mean)} / "
            f"{_text(inside.std)}); if so, import it again with normalize none"
        )
    if where:
        notes.append(f"weights found under {where}")
    prefixes = [prefix for prefix in found.prefixes if prefix]
    if prefixes:
        notes.append(f"prefix stripped: {', '.join(prefixes)}")
    if len(found.prefixes) > 1:
        notes.append(f"{len(found.prefixes)} equal copies merged")
    if dropped:
        notes.append(f"{dropped} key{'s' * (dropped > 1)} dropped")
    stored = {str(value.dtype).removeprefix("torch.") for value in found.weights.values() if value.dtype in HALVES}
    if stored:
        notes.append(f"weights stored as {' and '.join(sorted(stored))}, used as float32")
    if agreed.keys:
        notes.append(f"normalization from {' and '.join(agreed.keys)}: {_text(agreed.mean)} / {_text(agreed.std)}")
    return notes


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _other_classes(what: str, count: int, task: Task) -> ParameterError:
    hint = ", such as {classes} imagenet" if count == len(imagenet_classes()) else ""
    if count == 1:
        return ParameterError(
            "%s has one output, which is two classes here (docs/own-checkpoint.md); give {arch} nets.py:build, a function of "
            "yours that builds the network with one", what,
        )  # fmt: skip
    return ParameterError(
        "%s has %s classes, %s has %s; give the right {data} or {classes}" + hint,
        what, count, task.data or "the task", len(task.classes),
    )  # fmt: skip
