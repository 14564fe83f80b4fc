"""Our checkpoint file: one .safetensors with a JSON description; loading it runs no code from it."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vizrobust.models.architectures import ARCHS
from vizrobust.models.forward import Normalized, choose_memory_format
from vizrobust.models.probing import dependence
from vizrobust.plugins import is_file_reference
from vizrobust.runs import slug, write_atomic

FORMAT = 1
OBJECT = "object:"  # before the class of a network that was given as an object
UNTRAINED = "@random"  # behind a reference: its network with fresh weights
HALF = "float16"
# What rounding to float16 takes at most from a number in its normal range: half a unit of eleven binary digits.
HALF_ERROR = 2.0**-11
Shape = tuple[int, int, int]


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _are_measures(x: Any) -> bool:
    return isinstance(x, Mapping) and all(isinstance(value, str) or value is None or _is_number(value) for value in x.values())


# What a description may hold besides shape, classes and normalization.
FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("arch", "data", "training", "norm", "arch_sha256", "storage_dtype"), (_is_text, "a text")),
    "attack_steps": (lambda x: x is None or (type(x) is int and x >= 0), "a whole number"),
    "eps": (lambda x: x is None or (_is_number(x) and x >= 0), "a number from 0"),
    "metrics": (_are_measures, "numbers and texts by name"),
    "versions": (lambda x: isinstance(x, Mapping), "texts by name"),
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself; stored as JSON in the file's metadata.

    `arch` is an architecture reference, `normalization` a mean and a standard deviation per channel,
    `training` a training spec as text (empty if unknown), `attack_steps` the K of adversarial training (None if
    unknown), `metrics` what was measured: ``clean``, ``robust`` and the attack and images behind them. `storage_dtype` is
    ``float16`` where the file holds its weights in half precision (see `to_half`), else empty.
    """

    arch: str
    input_shape: Shape
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str = ""
    training: str = ""
    attack_steps: int | None = None
    eps: float | None = None
    norm: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    arch_sha256: str = ""
    storage_dtype: str = ""

    def to_json(self) -> str:
        plain = dict(self.__dict__)
        plain["normalization"] = {"mean": plain.pop("mean"), "std": plain.pop("std")}
        storage_dtype = plain.pop("storage_dtype")
        # Files in full precision stay what they were before there was another.
        if storage_dtype:
            plain["stored"] = storage_dtype
        return json.dumps({"format": FORMAT, **plain})

    @staticmethod
    def from_json(text: str) -> CheckpointInfo:
        """Raises ``ValueError`` where the text is not a description of this format."""
        try:
            plain = json.loads(text)
            if plain.pop("format") != FORMAT:
                raise ValueError("written by a newer vizrobust")
            normalization = plain.pop("normalization")
            shape = plain.pop("input_shape")
            if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
                raise ValueError(f"input_shape is {shape!r}; expected three whole numbers, channels, height and width")
            for name in ("mean", "std"):
                values = normalization[name]
                if len(values) != shape[0] or not all(_is_number(value) for value in values):
                    raise ValueError(f"normalization {name} is {values!r}; expected one number for each channel")
            if not all(abs(value) <= 1 for value in normalization["mean"]) or not all(
                value > 0 for value in normalization["std"]
            ):
                raise ValueError(f"normalization is {normalization}; expected means of images in [0, 1] and deviations above 0")
            names = plain["classes"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("classes are not all names; expected one string for each class")
            if "stored" in plain:
                plain["storage_dtype"] = plain.pop("stored")
            for name, (fits, expected) in FIELDS.items():
                if name in plain and not fits(plain[name]):
                    raise ValueError(f"{name} is {plain[name]!r:.40}; expected {expected}")
            return CheckpointInfo(
                mean=tuple(normalization["mean"]),
                std=tuple(normalization["std"]),
                input_shape=(shape[0], shape[1], shape[2]),
                classes=tuple(plain.pop("classes")),
                **plain,
            )
        except (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"its description is not in vizrobust's format ({error})") from error


@dataclass(frozen=True)
class Checkpoint:
    """A network with what is known about it. `name` is what the user called it, `ref` what loads it, where that differs.

    `code` is the hash of the user's own code that `build` runs, empty for architectures of packages. `standard` says that an
    untrained network comes from a checkpoint that was trained here, on one of our architectures.

    >>> from vizrobust.models import load_checkpoint
    >>> found = load_checkpoint("mnist-k8")
    >>> found.name, found.info.attack_steps, found.info.input_shape
    ('mnist-k8', 8, (1, 28, 28))
    """

    name: str
    info: CheckpointInfo
    state: Mapping[str, Tensor]
    build: Callable[[], nn.Module]
    ref: str = ""
    code: str = ""
    standard: bool = False

    def __repr__(self) -> str:
        about = self.info
        size = sum(value.numel() for value in self.state.values())
        shape, classes = "x".join(map(str, about.input_shape)), len(about.classes)
        return f"Checkpoint({self.name!r}, {about.arch}, {shape} images, {classes} classes, {size:,} weights)"

    def net(self) -> nn.Module:
        """A new network with the checkpoint's weights, normalization inside, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator
            body = self.build()
        load_strictly(body, self.state, f"{self.name} ({self.info.arch})")
        return self._normalized(body)

    def random_net(self, seed: int = 0) -> nn.Module:
        """The same architecture with freshly initialised weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._normalized(self.build())

    def _normalized(self, body: nn.Module) -> Normalized:
        net = Normalized(body, self.info.mean, self.info.std).eval()
        if self.info.arch in ARCHS:
            return net
        # Tried for the first network of this checkpoint only.
        if not self._found_out:
            self._found_out["contiguous"] = choose_memory_format(net, self.info.input_shape)
            if self._found_out["contiguous"]:
                warnings.warn(f"{self.name} fails on channels-last images, so it gets contiguous ones", stacklevel=3)
            if self.info.arch.startswith(OBJECT) or is_file_reference(self.info.arch):
                alone, depends_on = dependence(net, self.info.input_shape, self.name)
                self._found_out.update(alone=alone, depends_on=depends_on)
                if depends_on:
                    how = "; accuracies are of one image at a time, all else is of batches" if alone else ""
                    warnings.warn(f"{self.name}: {depends_on}{how}", stacklevel=3)
        for key, value in self._found_out.items():
            setattr(net, key, value)
        return net

    @cached_property
    def _found_out(self) -> dict[str, Any]:
        return {}

    @property
    def reference(self) -> str:
        """What loads it again."""
        return self.ref or self.name

    def untrained(self, name: str) -> Checkpoint:
        """A checkpoint of the same architecture with fresh weights: the reference that any training must beat."""
        info = replace(self.info, training="", attack_steps=None, eps=None, norm="", metrics={})
        ref = f"{self.reference.removesuffix(UNTRAINED)}{UNTRAINED}"
        return Checkpoint(name, info, body_state(self.random_net()), self.build, ref, self.code, self._from_weights)

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights alone: the same for the same network under another name or description."""
        return weights_sha256(self.state)

    @property
    def id(self) -> str:
        """Its name in files and rows: a slug and 8 hex digits of `network_sha256`."""
        return f"{slug(self.name)}-{self.network_sha256[:8]}"

    @cached_property
    def network_sha256(self) -> str:
        """Hash of all that decides the network's outputs: weights, normalization, architecture and the user's own code.

        It is the hash of the weights alone where the rest follows from them: one of our architectures, trained here.
        """
        if self._from_weights:
            return self.sha256
        about = [self.sha256, self.info.arch.rpartition("/")[2], self.code, list(self.info.mean), list(self.info.std)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @property
    def _from_weights(self) -> bool:
        return self.info.arch in ARCHS and (self.standard or bool(self.info.training))


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def body_state(net: nn.Module) -> dict[str, Tensor]:
    """The weights of a network without its normalization, contiguous and on the CPU."""
    body = net.net if isinstance(net, Normalized) else net
    return {key: value.detach().cpu().contiguous().clone() for key, value in body.state_dict().items()}


def save_checkpoint(path: Path | str, state: Mapping[str, Tensor], info: CheckpointInfo, half: bool = False) -> None:
    """Write a checkpoint file, whole or not at all; with `half` what `to_half` names is in float16."""
    content_state = to_half(state) if half else dict(state)
    content = save(content_state, metadata={"vizrobust": replace(info, storage_dtype=HALF if half else "").to_json()})
    write_atomic(path, lambda file: file.write(content))


def to_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a half-precision file holds them: kernels and matrices in float16, the rest as it is.

    What has one axis (biases, gains, BatchNorm's running statistics) stays float32: it is about one number in a
    hundred, and a small variance would lose digits. So does a tensor that float16 cannot hold: one with a value
    above 65504, or whose rounding error is more than 2^-11 of its largest value.

    >>> state = {"weight": torch.rand(3, 4), "bias": torch.rand(3), "tiny": torch.full((3, 4), 1e-7)}
    >>> [str(tensor.dtype) for tensor in to_half(state).values()]
    ['torch.float16', 'torch.float32', 'torch.float32']
    """
    return {key: tensor.half() if _fits_half(tensor) else tensor for key, tensor in state.items()}


def _fits_half(tensor: Tensor) -> bool:
    if tensor.dtype != torch.float32 or tensor.dim() < 2 or tensor.numel() == 0:
        return False
    # An overflow or a NaN makes the error no number, which is not below anything.
    error = (tensor.half().float() - tensor).abs().amax()
    return bool(error <= HALF_ERROR * tensor.abs().amax())


def read_checkpoint(path: Path | str) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Description and weights of a file in our format. Raises ``ValueError`` that says what is wrong with it.

    Weights that are stored in half precision come back as float32, so a file has one hash whoever reads it.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is truncated or not a safetensors file ({error}); get it again") from error
    if "vizrobust" not in metadata:
        again = f"vizrobust import {shlex.quote(str(path))} --arch …"
        raise ValueError(f"{str(path)!r} was not written by vizrobust; convert it once with: {again}")
    try:
        info = CheckpointInfo.from_json(metadata["vizrobust"])
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    if info.storage_dtype == HALF:
        state = {key: tensor.float() if tensor.dtype == torch.float16 else tensor for key, tensor in state.items()}
    return info, state


def check_finite(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """``ValueError`` naming the tensor where a weight is NaN or infinite, or another entry NaN.

    >>> check_finite(nn.Linear(1, 1), {"weight": torch.tensor([[torch.nan]])}, "mine.safetensors")
    Traceback (most recent call last):
    ValueError: weight in mine.safetensors is NaN or infinite in 1 of 1 places; use an earlier checkpoint
    """
    parameters = dict(net.named_parameters())
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        bad = int((~value.isfinite()).sum() if name in parameters else value.isnan().sum())
        if bad:
            raise ValueError(f"{name} in {what} is NaN or infinite in {bad} of {value.numel()} places; use an earlier checkpoint")


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into a network; a ``ValueError`` names the keys and shapes that do not fit."""
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    problems = [
        f"{title}: {', '.join(keys[:6])}{f' and {len(keys) - 6} more' if len(keys) > 6 else ''}"
        for title, keys in (("missing", missing), ("extra", extra), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ValueError(f"the weights do not fit {what}; {'; '.join(problems)}")
    check_finite(net, state, what)
    net.load_state_dict(dict(state))
