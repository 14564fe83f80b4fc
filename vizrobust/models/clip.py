"""A CLIP network of the user's own, through open_clip: how similar an image is to a text. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vizrobust.models.foreign_files import read_tensors
from vizrobust.requests import MissingFileError, ParameterError
from vizrobust.runs import digest, file_sha256
from vizrobust.spec import unknown

CONFIG = "open_clip_config.json"
# Where a Hugging Face tokenizer keeps its words.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
QUICK = "-quickgelu"
BATCH_SIZE = 32
SHOWN = 300  # letters of somebody else's message


class ImageTextEncoder(Protocol):
    """What puts images and texts into one space, where the cosine says how similar they are.

    `name` is what tables call it, `key` names its weights and preprocessing: rows of another one are not used.
    """

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    def images(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1], grey or colours of any size -> (N, d)."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> (n, d)."""


@dataclass(frozen=True)
class ClipFile:
    """A CLIP network by a file of its weights: ``MODEL:FILE``, ``MODEL@TAG:FILE``, or a folder of open_clip's format.

    MODEL is a name of open_clip and FILE what was saved of such a network. Images are prepared as the published weights of that
    name want them (SigLIP 2: mean and deviation .5, resized without regard to the sides' ratio); where these differ, TAG says
    whose. A folder says it itself, in ``open_clip_config.json``. The network is read when it is first asked.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    weights: Path
    preprocessing: Mapping[str, Any]
    tokenizer: Path | None
    device: torch.device

    @property
    def key(self) -> str:
        return digest([dict(self.config), file_sha256(self.weights), dict(self.preprocessing)])

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        """The network on its device, and what prepares a picture for it."""
        open_clip = _open_clip()
        read_tensors(self.weights)  # says what is wrong with a file, and runs no code of it
        try:
            net = open_clip.create_model(
                self.model, pretrained=None if self._is_folder else str(self.weights), pretrained_text=False,
                force_preprocess_cfg=dict(self.preprocessing),
            )  # fmt: skip
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = " ".join(str(error).split())[:SHOWN]
            raise ParameterError("{clip} %s: the weights do not fit %s: %s", self.name, self.model, reason) from error
        transform = import_module("open_clip.transform")
        prepare = transform.image_transform_v2(transform.PreprocessCfg(**net.visual.preprocess_cfg), is_train=False)
        return net.eval().requires_grad_(False).to(self.device), prepare

    @property
    def _is_folder(self) -> bool:
        return self.model.startswith("local-dir:")

    def images(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, d) float32 on the CPU, of length 1; an image is prepared from its 8-bit values."""
        from torchvision.transforms.functional import to_pil_image

        net, prepare = self._network
        pictures = (255 * x.cpu()).round().to(torch.uint8)
        with torch.no_grad():
            batch = torch.stack([prepare(to_pil_image(one)) for one in pictures]).to(self.device)
            return normalize(net.encode_image(batch).float(), dim=-1).cpu()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> (n, d) float32 on the CPU, of length 1."""
        net, _ = self._network
        reads = self._tokenizer()
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), BATCH_SIZE):
                tokens = reads(list(texts[start : start + BATCH_SIZE])).to(self.device)
                found.append(normalize(net.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(found)

    def _tokenizer(self) -> Any:
        open_clip, about = _open_clip(), self.config["text_cfg"]
        if self.tokenizer is None:
            return open_clip.get_tokenizer(self.model)
        try:
            return open_clip.tokenizer.HFTokenizer(
                str(self.tokenizer), context_length=about.get("context_length", 77), local_files_only=True,
                tokenizer_mode=about.get("tokenizer_mode"), **about.get("tokenizer_kwargs", {}),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:SHOWN]
            raise ParameterError("the tokenizer in %r (from {clip}) cannot be read: %s", str(self.tokenizer), reason) from error


def clip_file(text: str, device: torch.device | str = "cpu") -> ClipFile:
    """The CLIP network that ``MODEL:FILE``, ``MODEL@TAG:FILE`` or a folder names.

    Raises ``ValueError`` or ``FileNotFoundError`` in one sentence where open_clip, the file or the tokenizer is missing.
    """
    open_clip, device = _open_clip(), torch.device(device)
    folder = Path(text)
    if folder.is_dir():
        return _in_folder(text, folder, device)
    named, colon, file = text.partition(":")
    if not colon:
        raise MissingFileError(
            "{clip} %r is no folder; write MODEL:FILE, such as ViT-B-32:weights.safetensors, or a folder with %s", text, CONFIG
        )
    model, _, tag = named.partition("@")
    if model not in open_clip.list_models():
        raise ParameterError("%s (from {clip} %s)", unknown(model, open_clip.list_models(), "model of open_clip"), text)
    weights = Path(file)
    if not weights.is_file():
        raise MissingFileError("no file %r with the weights of %s (from {clip} %s)", file, model, text)
    config = open_clip.get_model_config(model)
    tokenizer = _words_of(config, weights.parent, text)
    return ClipFile(
        text, model, config, weights, _preprocessing(model, tag, config.get("quick_gelu", False), text), tokenizer, device
    )


def _in_folder(text: str, folder: Path, device: torch.device) -> ClipFile:
    if not (folder / CONFIG).is_file():
        raise MissingFileError("folder %r (from {clip}) has no %s; write MODEL:FILE for a file of weights", text, CONFIG)
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config, wanted = told["model_cfg"], told["preprocess_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            "%r (from {clip}) is no whole configuration of open_clip: %r", str(folder / CONFIG), error
        ) from error
    factory = import_module("open_clip.factory")
    found = factory._find_checkpoint_in_dir(folder)
    if found is None:
        raise MissingFileError("folder %r (from {clip}) has no weights: .safetensors, .bin or .pth", text)
    return ClipFile(
        folder.resolve().name, f"local-dir:{folder}", config, Path(found), wanted, _words_of(config, folder, text), device
    )


def _words_of(config: Mapping[str, Any], folder: Path, text: str) -> Path | None:
    """The folder of a tokenizer that a model needs beside its weights; None for open_clip's own."""
    about = config["text_cfg"]
    if "hf_model_name" in about:
        raise ParameterError(
            "{clip} %s reads texts by a network of Hugging Face (%s), which would be downloaded; take another model",
            text, about["hf_model_name"],
        )  # fmt: skip
    if not about.get("hf_tokenizer_name"):
        return None
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise MissingFileError(
            "{clip} %s reads texts by a tokenizer, %s, of which folder %r has no file; put %s there",
            text, about["hf_tokenizer_name"], str(folder), " and ".join(TOKENIZERS),
        )  # fmt: skip
    return folder


def _preprocessing(model: str, tag: str, quick: bool, text: str) -> dict[str, Any]:
    """What the published weights of a model want of images; those of `tag` where it is given."""
    published = import_module("open_clip.pretrained")
    tags = published.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise ParameterError("%s (from {clip} %s)", unknown(tag, tags, f"published weights of {model}"), text)
    kinds: list[dict[str, Any]] = []
    for one in [tag] if tag else tags:
        about = published.get_pretrained_cfg(model, one)
        if tag and about.get("quick_gelu", False) != quick:
            other = model.removesuffix(QUICK) if quick else f"{model}{QUICK}"
            raise ParameterError("{clip} %s: these weights have another GELU than %s; write %s", text, model, other)
        kind = {key: list(about[key]) if isinstance(about[key], tuple) else about[key] for key in PREPROCESSING}
        kinds += [] if kind in kinds else [kind]
    if len(kinds) > 1:
        raise ParameterError(
            "published weights of %s want differently prepared images, so {clip} must say which these are: %s@TAG:FILE with TAG "
            "one of %s", model, model, ", ".join(tags),
        )  # fmt: skip
    return kinds[0] if kinds else {}


def _open_clip() -> Any:
    if find_spec("open_clip") is None:
        raise ParameterError("{clip} needs the package open_clip: pip install 'vizrobust[clip]'")
    return import_module("open_clip")
