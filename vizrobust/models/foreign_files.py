"""Other people's checkpoint files: from a file to weights under an architecture's own names."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vizrobust.requests import ParameterError
from vizrobust.spec import unknown

State = Mapping[str, Tensor]

# Under which names training scripts keep the network's weights.
NETWORK_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "model_ema", "state_dict_ema", "ema_state_dict",
)  # fmt: skip
# How normalizing layers call their buffers: `robustness`, most scripts, and networks with mu and sigma.
NORMALIZER_BUFFERS = (("new_mean", "new_std"), ("mean", "std"), ("mu", "sigma"), ("means", "sds"), ("_mean", "_std"))
# Segments that DataParallel and torch.compile put anywhere into a key.
WRAPPERS = ("module", "_orig_mod")
# Files in the archives that torch.export writes, now and earlier.
EXPORTED = ("models/model.json", "serialized_exported_program.json")
DEEPEST = 8
# So many places of state dicts are named in a message.
SHOWN = 6


@dataclass(frozen=True)
class Fit:
    """Weights by the architecture's own names.

    `prefixes` are those under which the file holds the network, with equal tensors if there are several;
    `rest` is what belongs to none of them. `complete` is False where something is missing or of another shape:
    `weights` then hold the nearest attempt.
    """

    weights: dict[str, Tensor]
    prefixes: tuple[str, ...]
    rest: dict[str, Tensor]
    complete: bool = True


@dataclass(frozen=True)
class Normalizer:
    """The buffers of a normalizing layer, in [0, 1] pixels: one value per channel; `keys` are where they were."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    keys: tuple[str, ...] = field(default=(), compare=False)


def read_tensors(path: Path | str) -> Any:
    """What a torch or safetensors file holds: tensors, numbers and texts in dicts and lists; code is never run.

    Raises ``FileNotFoundError``, or ``ValueError`` where the file is truncated, is no such file, or holds
    pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is a folder, not a file" if path.is_dir() else f"no file {str(path)!r}")
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{str(path)!r} is empty; get it again")
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():  # about pickle protocols and TorchScript: said below, in one sentence
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way: KeyError, struct.error, EOFError, …
        raise ValueError(_why_unreadable(path, start, str(error))) from error


def find_state(content: Any, what: str, key: str = "") -> tuple[str, dict[str, Tensor]]:
    """Where in a file's content the network's weights are, and the weights.

    `key` says where (``ema``, ``models.0``); otherwise the usual names are tried, and the items of a list.
    Raises ``ValueError`` where there are none, or several that differ, or tensors that are not plain numbers.
    """
    found = list(_states(_walk(content, key, what), key, set()))
    if not found:
        raise ParameterError(f"%s holds no weights{_instead(content).replace('%', '%%')}", what)
    for where, state in found:
        for name, value in state.items():
            if kind := _unusual(value):
                place = f"{where}.{name}" if where else name
                raise ValueError(f"{place} in {what} is a {kind} tensor; save it as an ordinary one where it came from")
    where, state = found[0]
    if any(list(other) != list(state) or not all(_equal(state[name], other[name]) for name in state) for _, other in found[1:]):
        places = [place or "the file itself" for place, _ in found]
        named = ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
        raise ParameterError(
            "%s holds several networks: %s; choose with {key}, such as {key} %s", what, named, where or places[1]
        )
    return where, state


def _unusual(value: Tensor) -> str:
    """What kind of tensor it is, if its numbers cannot be copied as they are; else empty."""
    if value.is_meta:
        return "meta"
    if value.layout != torch.strided:
        return "sparse"
    return "quantized" if value.is_quantized else ""


def fit(state: State, own: State, what: str) -> Fit:
    """The weights in `state` that an architecture with the state dict `own` asks for, whatever stands before their names.

    A prefix is stripped only where that makes the names fit. The step counters of BatchNorm, which old files lack
    and evaluation does not read, may be missing. Raises ``ValueError`` where copies under several prefixes differ.
    """
    first = _fit(state, own, what)
    if first.complete:
        return first
    bare = {".".join(part for part in key.split(".") if part not in WRAPPERS): key for key in state}
    if len(bare) == len(state) and list(bare) != list(state):
        second = _fit({name: state[key] for name, key in bare.items()}, own, what)
        if second.complete:
            return second
    return first


def take_normalizer(rest: State, channels: int, what: str) -> tuple[Normalizer | None, dict[str, Tensor]]:
    """The normalization that buffers among `rest` describe, if any, and what else there is.

    Raises ``ValueError`` where there are several that differ.
    """
    partners = dict(NORMALIZER_BUFFERS)
    found: list[Normalizer] = []
    for key in rest:
        head, dot, last = key.rpartition(".")
        partner = f"{head}{dot}{partners.get(last, '?')}"
        if partner in rest and {rest[key].numel(), rest[partner].numel()} <= {1, channels}:
            found.append(Normalizer(_values(rest[key], channels), _values(rest[partner], channels), (key, partner)))
    if not found:
        return None, dict(rest)
    for other in found:
        if other != found[0]:
            names = f"{found[0].keys[0]} and {other.keys[0]}"
            raise ParameterError("%s holds two normalizers that differ, %s; leave one out with {drop}", what, names)
    used = {key for normalizer in found for key in normalizer.keys}
    return found[0], {key: value for key, value in rest.items() if key not in used}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            if "vizrobust" in (file.metadata() or {}):
                raise ValueError(f"{str(path)!r} is in vizrobust's format already; use it as it is")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is truncated or not a safetensors file ({error}); get it again") from error


def _why_unreadable(path: Path, start: bytes, reason: str) -> str:
    name = str(path)
    zipped = start[:4] == b"PK\x03\x04"
    members = _members(path) if zipped else []
    # 148 and 149 open a pickle of protocol 4 or 5: torch.save does not write them, pickle.dump does.
    refused = re.search(r"GLOBAL\s+([\w.]+)|Unsupported operand 14[89]|Trying to call|Can only build", reason)
    if any(member.endswith(EXPORTED) for member in members):
        problem = "is a program of torch.export, which can run code when it is read"
        return _recipe(name, problem, f"torch.export.load({name!r}).state_dict")
    if any(member.endswith("constants.pkl") for member in members):
        return _recipe(name, "is a TorchScript program", f"torch.jit.load({name!r}).state_dict()")
    if refused and not (refused.group(1) and _ends_within(path, refused.group(1))):
        kind, key = f" ({refused.group(1)})" if refused.group(1) else "", _key_of_weights(path)
        weights = f"[{key!r}]" if key else ".state_dict()  # or however that project loads its network"
        read = f"torch.load({name!r}, weights_only=False){weights}"
        return _recipe(name, f"holds pickled objects{kind}, which can run code when they are read", read)
    if members and not any(member.endswith("data.pkl") for member in members):
        return f"{name!r} is a zip archive without torch weights; give a file written by torch.save or a .safetensors file"
    if zipped or start[:1] == b"\x80":
        return f"{name!r} is truncated or damaged; get it again"
    return f"{name!r} is not a torch file; give a file written by torch.save or a .safetensors file"


def _ends_within(path: Path, name: str) -> bool:
    """Whether the file was cut inside the name of something that it imports, of which torch reports all but the end."""
    last = name.rpartition(".")[2].encode()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(last) - 1))
        return last in file.read()


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # as damaged as the file
        return []


def _key_of_weights(path: Path) -> str:
    """Under which key a file's pickle, which is not run, holds a state dict beside other things; else empty."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except Exception:  # an older file, or a damaged one
        return ""
    keys = (key for key in NETWORK_KEYS if "state_dict" in key)
    return next((key for key in keys if b"X" + len(key).to_bytes(4, "little") + key.encode() in content), "")


def _recipe(name: str, problem: str, weights: str) -> str:
    plain = f"{Path(name).stem}-weights.pt"
    return (
        f"{name!r} {problem}; convert it where it came from, then import {plain!r}:\n"
        f"  weights = {weights}\n"
        f"  torch.save(weights, {plain!r})"
    )


def _walk(content: Any, key: str, what: str) -> Any:
    for part in key.split(".") if key else ():
        if isinstance(content, list | tuple) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, Mapping) and part in content:
            content = content[part]
        else:
            known = [str(name) for name in content] if isinstance(content, Mapping) else []
            raise ParameterError("%s (from {key} %s)", unknown(part, known, f"key in {what}"), key)
    return content


def _states(content: Any, where: str, visited: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All state dicts under the usual names, each with where it is, each object once."""
    # A pickled list can hold itself, and one dict can stand under many names.
    if where.count(".") > DEEPEST or id(content) in visited:
        return
    visited.add(id(content))
    if isinstance(content, list | tuple):
        for number, item in enumerate(content):
            yield from _states(item, f"{where}.{number}" if where else str(number), visited)
        return
    if not isinstance(content, Mapping):
        return
    found = False
    for name in NETWORK_KEYS:
        if isinstance(content.get(name), Mapping | list | tuple):
            for below in _states(content[name], f"{where}.{name}" if where else name, visited):
                found = True
                yield below
    tensors = {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    # Without a dotted key this is a state dict only if nothing else is there: {"err": tensor, "weights": {…}} is none.
    if not found and tensors and (len(tensors) == len(content) or any("." in key for key in tensors)):
        yield where, tensors


def _instead(content: Any) -> str:
    if isinstance(content, Mapping):
        names = [str(name) for name, value in content.items() if isinstance(value, Mapping | list | tuple)]
        return f" under a usual name; choose with {{key}} from: {', '.join(names)}" if names else " (no tensor in it)"
    return f": it is a {type(content).__name__}; save model.state_dict() where it came from"


def _fit(state: State, own: State, what: str) -> Fit:
    matches: Counter[str] = Counter({"": 0})
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in own:
                matches["".join(f"{part}." for part in parts[:cut])] += 1
    fits = {prefix: _fitting(state, own, prefix) for prefix in matches}
    needed = sum(not _optional(name) for name in own)
    whole = sorted((prefix for prefix in matches if fits[prefix] == needed), key=lambda prefix: (len(prefix), prefix))
    prefixes = whole or [max(matches, key=lambda prefix: (matches[prefix], fits[prefix], -len(prefix)))]
    weights: dict[str, Tensor] = {}
    for name, value in own.items():
        copies = [prefix for prefix in prefixes if f"{prefix}{name}" in state]
        if copies:
            weights[name] = state[f"{copies[0]}{name}"]
        elif _optional(name):
            weights[name] = value
        for other in copies[1:]:
            if not _equal(weights[name], state[f"{other}{name}"]):
                raise ParameterError(
                    "%s holds two networks: %s differs from %s; leave one network out with {drop} '%s*'",
                    what, f"{copies[0]}{name}", f"{other}{name}", other or copies[0],
                )  # fmt: skip
    taken = {f"{prefix}{name}" for prefix in prefixes for name in own}
    rest = {key: value for key, value in state.items() if key not in taken}
    return Fit(weights, tuple(prefixes), rest, bool(whole))


def _fitting(state: State, own: State, prefix: str) -> int:
    """How many of the names that must be there are there, in their shape."""
    keys = ((f"{prefix}{name}", value) for name, value in own.items() if not _optional(name))
    return sum(key in state and state[key].shape == value.shape for key, value in keys)


def _optional(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _values(tensor: Tensor, channels: int) -> tuple[float, ...]:
    """One value per channel, with as many digits as a float32 has: .485, not .48500001."""
    values = [float(str(value)) for value in tensor.to(torch.float32).reshape(-1).numpy()]
    return tuple(values if len(values) == channels else values * channels)
