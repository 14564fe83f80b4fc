"""Dictionaries of a layer's features (sparse autoencoders, PCA, NMF): codes of its channels, and a file for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vizrobust.requests.request import parts_of
from vizrobust.runs import write_atomic
from vizrobust.spec import unknown

ACTIVATIONS = ("linear", "relu", "topk")
FORMAT = 1
# (name, needed, shape) of the tensors in a file.
TENSORS = {"encoder": (True, "uc"), "decoder": (True, "uc"), "encoder_bias": (False, "u"), "decoder_bias": (False, "c")}


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """Features of a layer: ``encode`` gives the activations of its `units`, ``decode`` what the layer is made of by them.

    A vector x of the layer's channels has the code ``f(encoder x + encoder_bias)`` and comes back as the sum of the
    decoder's rows, times the code, plus `decoder_bias`; with `centered` that bias is taken from x first. `encoder` and
    `decoder` are (units, channels). f is ``linear`` (nothing), ``relu``, or ``topk``: a ReLU of the `k` largest alone
    (Makhzani & Frey 2014; Gao et al. 2024). `made` says how it came about. Raises ``ValueError`` for shapes that do not
    fit and for numbers that are not finite.

    >>> found = Dictionary(torch.eye(3), torch.eye(3), activation="topk", k=1)
    >>> found.encode(torch.tensor([[1.0, 5.0, -7.0]]))
    tensor([[0., 5., 0.]])
    """

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor | None = None
    decoder_bias: Tensor | None = None
    activation: str = "relu"
    k: int | None = None
    centered: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    _placed: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoder.dim() != 2 or 0 in self.encoder.shape:
            raise ValueError(f"encoder is {tuple(self.encoder.shape)}; it must be (units, channels)")
        sizes = {"u": self.units, "c": self.channels}
        for name, (_, axes) in TENSORS.items():
            tensor, wanted = getattr(self, name), tuple(sizes[axis] for axis in axes)
            if tensor is not None and tuple(tensor.shape) != wanted:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}; beside an encoder of {tuple(self.encoder.shape)} it is {wanted}"
                )
            if tensor is not None and not tensor.isfinite().all():
                bad = int((~tensor.isfinite()).sum())
                raise ValueError(f"{name} is NaN or infinite in {bad} of {tensor.numel()} places; make the dictionary again")
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown(str(self.activation), ACTIVATIONS, "activation"))
        if (self.activation == "topk") != (self.k is not None) or not 1 <= (self.k or 1) <= self.units:
            raise ValueError(f"k is {self.k}; a topk dictionary has a k from 1 to its {self.units} units, the others have none")
        if self.centered and self.decoder_bias is None:
            raise ValueError("centered takes decoder_bias from the activations first, and there is none; give it")

    @property
    def units(self) -> int:
        return int(self.encoder.shape[0])

    @property
    def channels(self) -> int:
        return int(self.encoder.shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """(N, channels, ...) -> (N, units, ...); differentiable."""
        encoder, bias, _, _ = self._on(x)
        seen = F.linear(x.movedim(1, -1), encoder, bias)
        return activated(seen, self.activation, self.k).movedim(-1, 1)

    def decode(self, code: Tensor) -> Tensor:
        """(N, units, ...) -> (N, channels, ...)."""
        _, _, decoder, bias = self._on(code)
        return F.linear(code.movedim(1, -1), decoder.T, bias).movedim(-1, 1)

    def along(self, x: Tensor) -> Tensor:
        """(N, channels, ...) -> (N, units, ...): the product with each row of the decoder."""
        return F.linear(x.movedim(1, -1), self._on(x)[2]).movedim(-1, 1)

    def moved(self, x: Tensor, units: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """(..., channels): how far x, of that shape, moves when the codes (..., k) of some `units` become `change` of them."""
        code = activated(F.linear(x, *self._on(x)[:2]), self.activation, self.k)[..., units]
        return (change(code) - code) @ self._on(x)[2][units]

    def _on(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encoder, its bias, decoder and its bias where x is, in its kind of number."""
        kind = (x.device, x.dtype)
        if kind not in self._placed:
            bias = self.encoder_bias
            if self.centered and self.decoder_bias is not None:
                shift = (self.encoder.double() @ self.decoder_bias.double()).to(self.encoder)
                bias = -shift if bias is None else bias - shift
            parts = (self.encoder, bias, self.decoder, self.decoder_bias)
            self._placed[kind] = tuple(part if part is None else part.to(*kind) for part in parts)  # type: ignore[misc]
        return self._placed[kind]

    def content(self) -> bytes:
        """The file that holds it: equal dictionaries have equal files."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        state = {
            name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items() if tensor is not None
        }
        about = {"format": FORMAT, "activation": self.activation, "k": self.k, "centered": self.centered, "made": dict(self.made)}
        return save(state, metadata={"vizrobust-dictionary": json.dumps(about)})

    def save(self, path: Path | str) -> None:
        """Write it to a .safetensors file, whole or not at all."""
        content = self.content()
        write_atomic(path, lambda file: file.write(content))

    def __repr__(self) -> str:
        kind = self.activation if self.k is None else f"topk of {self.k}"
        return f"Dictionary({self.units} units of {self.channels} channels, {kind})"


def activated(seen: Tensor, activation: str, k: int | None = None) -> Tensor:
    """(..., units) -> (..., units): the codes of what an encoder sees.

    >>> activated(torch.tensor([3.0, -1.0, 2.0]), "topk", 1)
    tensor([3., 0., 0.])
    """
    if activation == "linear":
        return seen
    if k is None:
        return seen.relu()
    kept = torch.zeros_like(seen, dtype=torch.bool).scatter_(-1, seen.topk(k, -1).indices, True)
    # A ReLU of what its own positive value is taken from: 0 as it should be, and a gradient that can be redirected.
    return (seen - torch.where(kept, 0, seen.detach().clamp_min(0))).relu()


def read_dictionary(path: Path | str) -> Dictionary:
    """The dictionary in a file that `Dictionary.save` or ``vizrobust dictionary`` wrote; no code of the file runs.

    Raises ``FileNotFoundError``, or ``ValueError`` that says what is wrong with the file.

    >>> read_dictionary("nowhere.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: no file 'nowhere.safetensors'; vizrobust dictionary makes dictionaries
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; vizrobust dictionary makes dictionaries")
    state = file.stat()
    return _read(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(file: Path, _changed: int, _size: int) -> Dictionary:
    content = file.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = header.get("__metadata__", {}).get("vizrobust-dictionary", "")
        about = json.loads(text) if text else None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is truncated or not a safetensors file ({error}); get it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("made", {}), dict):
        raise ValueError(
            f"{str(file)!r} does not say what kind of dictionary it is; write it with Dictionary(...).save(...) of "
            "vizrobust.models.dictionaries, or with vizrobust dictionary"
        )
    missing = [name for name, (needed, _) in TENSORS.items() if needed and name not in tensors]
    if missing:
        raise ValueError(
            f"{str(file)!r} has no tensor {missing[0]!r}, only {', '.join(tensors) or 'none'}; a dictionary needs it"
        )
    parts: dict[str, Any] = {name: tensors[name].float() for name in TENSORS if name in tensors}
    rest = {key: about[key] for key in ("activation", "k", "centered", "made") if key in about}
    try:
        return Dictionary(**parts, **rest, sha256=hashlib.sha256(content).hexdigest())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(file)!r}: {error}") from error


def dictionary_of(name: str, channels: int) -> Dictionary:
    """The dictionary that a layer's name asks for, which must be of so many channels.

    Raises ``ValueError`` for one of another width, and where the file's content is not what the name has the hash of.
    """
    layer, file, sha256 = parts_of(name)
    found = read_dictionary(file)
    if sha256 and not found.sha256.startswith(sha256):
        raise ValueError(
            f"{file!r} holds another dictionary ({found.sha256[:8]}) than the one asked for ({sha256}): it was changed"
        )
    if found.channels != channels:
        raise ValueError(
            f"{file!r} is a dictionary of {found.channels} channels, layer {layer!r} has {channels} units; make one of this layer"
        )
    return found
