"""What another package adds to vizrobust: one thing of each kind, found by name through its entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.attacks import PGD, Attack, AttackRun, Ball, Linf
from vizrobust.clarity import Metric
from vizrobust.data import ArraySplit, DataSet
from vizrobust.features.objectives.objective import algebra
from vizrobust.models import Checkpoint, CheckpointInfo
from vizrobust.rng import Streams
from vizrobust.spec import spec

SHAPE, CLASSES = (1, 8, 8), ("dark", "light")


@spec
@dataclass(frozen=True)
class OtherPGD(Attack):
    """PGD under another name."""

    steps: int = 3
    ball: Ball = field(default_factory=lambda: Linf(eps=0.1))

    def runs(self, model: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        return PGD(steps=self.steps, ball=self.ball).runs(model, x)


@algebra
@spec
@dataclass(frozen=True)
class Contrast:
    """The deviation of a layer's unit over the image."""

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        maps = activations[self.layer]
        return maps[torch.arange(len(maps)), unit].flatten(1).std(1)


@spec
@dataclass(frozen=True)
class Sigmoid:
    """An image is the logistic function of z."""

    deviation: float = 0.1

    def init(self, shape: tuple[int, int, int], streams: Streams) -> Tensor:
        return self.deviation * streams.normal(*shape)

    def __call__(self, z: Tensor) -> Tensor:
        return z.sigmoid()

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z


@spec
@dataclass(frozen=True)
class Invert:
    """Part of each image's negative."""

    strength: float = 0.2

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        part = self.strength * streams.uniform(1, 1, 1).to(image)
        return image + part * (1 - 2 * image)


def mean_brightness(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,)."""
    return images.flatten(1).mean(1)


brightness = Metric("brightness", "Mean brightness", "diagnostic", 1, mean_brightness, judged=False)


def one_layer(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A linear classifier of pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def stripes(rest: str, download: bool) -> DataSet:
    """Dark and light images; ``stripes:30`` has 30 in each split."""
    count = int(rest or 20)
    labels = torch.arange(count) % 2
    images = (0.25 + 0.5 * labels.reshape(-1, 1, 1, 1) + 0.1 * Streams(0, range(count)).uniform(*SHAPE)).clamp(0, 1)
    split = ArraySplit((images * 255).byte(), labels)
    return DataSet("stripes", CLASSES, SHAPE, split, split, split, 0.1)


def example_judge() -> Checkpoint:
    """An untrained judge of dark and light."""

    def build() -> nn.Module:
        return one_layer(SHAPE, len(CLASSES))

    return Checkpoint("example", CheckpointInfo("one_layer", SHAPE, CLASSES, (0.0,), (1.0,)), build().state_dict(), build)
