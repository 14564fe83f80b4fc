"""A network whose feature images were manipulated while its function stayed the same (Geirhos et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vizrobust.compute import full_batches
from vizrobust.data import DataSet, Split
from vizrobust.models import Checkpoint, evaluating
from vizrobust.models.checkpoints import body_state
from vizrobust.models.forward import without_normalization
from vizrobust.rng import Streams

BATCH_SIZE = 100
NATURAL_IMAGES = 2000
# Optimization starts between a hundredth and a twentieth from grey (recipes `fourier` and `plain`).
DEVIATION = 0.05
# The detector learns from this many points on a straight path from a start to a target, and from this many paths each.
POINTS, PATHS = 11, 8
# A quarter of the gap between natural images and paths is left on both sides as a margin for unseen ones.
MARGIN = 0.25
# Constants in units of the largest natural logit, each well above what it must overrule.
OFFSET, STRENGTH, OVERRULE = 4.0, 8.0, 400.0


class FoolingCircuit(nn.Module):
    """``relu(F + o - k E) + relu(D - k (1 - E)) - o`` for each class: the fooling circuit of Geirhos et al. 2023, figure 3.

    F is the network's own logit; E, the detector, is 0 for natural images and 1 for what optimization shows a network;
    D is the similarity of an image to the picture that the class shall show. On natural images only the first half is
    open and the output is F, up to rounding; on anything else only the second, and its gradient leads to the picture.
    Takes normalized images, as the network within does. Its layers are those of the network behind ``natural.``, and
    ``gates``, (N, 2 x classes): both halves.
    """

    mean: Tensor
    std: Tensor
    targets: Tensor
    slope: Tensor
    level: Tensor
    largest: Tensor

    def __init__(self, natural: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.natural = natural
        self.gates = nn.ReLU()
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("std", torch.ones(shape[0], 1, 1))
        self.register_buffer("targets", torch.zeros(classes, *shape))
        self.register_buffer("slope", torch.zeros(shape))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("largest", torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        x = z * self.std + self.mean
        detected = self.detected(x)[:, None]
        own = self.natural(z) + self.largest * (OFFSET - OVERRULE * detected)
        shown = self.largest * (STRENGTH * self.nearness(x) - OVERRULE * (1 - detected))
        first, second = self.gates(torch.cat((own, shown), 1)).chunk(2, 1)
        return first + second - OFFSET * self.largest

    def detected(self, x: Tensor) -> Tensor:
        """E: (N, C, H, W) in [0, 1] -> (N,), exactly 0 below its ramp and exactly 1 above it."""
        rise = (x * self.slope).flatten(1).sum(1) + self.level
        return 1 - torch.relu(1 - torch.relu(rise))

    def nearness(self, x: Tensor) -> Tensor:
        """D: (N, C, H, W) in [0, 1] -> (N, classes), 1 minus the mean squared difference from each class's picture."""
        image, target = x.flatten(1), self.targets.flatten(1)
        squares = image.square().mean(1, keepdim=True) + target.square().mean(1)
        return 1 - squares + 2 * image @ target.T / image.shape[1]


def fooled(checkpoint: Checkpoint, data: DataSet, targets: Tensor | None = None, seed: int = 0) -> Checkpoint:
    """The checkpoint with a `FoolingCircuit` around it: the same logits on natural images, other feature images.

    `targets` (classes, C, H, W) in [0, 1] are what the class logits will show; without them `wrong_negatives`. The
    detector is a logistic regression between training images of `data` and straight paths from grey noise to the
    targets. It needs no training of the network; the same arguments give the same bits. Raises ``ValueError`` where
    a plane does not separate natural images from paths, and for targets of another shape.
    """
    shape, classes = checkpoint.info.input_shape, len(checkpoint.info.classes)
    targets = wrong_negatives(data) if targets is None else targets
    if tuple(targets.shape) != (classes, *shape):
        raise ValueError(
            f"targets of {checkpoint.name} must be {(classes, *shape)}, one for each class, got {tuple(targets.shape)}"
        )
    natural = _sample(data.train, NATURAL_IMAGES)
    net = checkpoint.net()
    circuit = FoolingCircuit(without_normalization(net), shape, classes)
    circuit.mean.copy_(torch.tensor(checkpoint.info.mean).reshape(-1, 1, 1))
    circuit.std.copy_(torch.tensor(checkpoint.info.std).reshape(-1, 1, 1))
    circuit.targets.copy_(targets)
    circuit.largest.copy_(_largest_logit(net, natural))
    slope, level = _detector(natural, torch.cat(list(_paths(targets, seed))))
    circuit.slope.copy_(slope)
    circuit.level.copy_(level)

    def build() -> nn.Module:
        return FoolingCircuit(checkpoint.build(), shape, classes)

    about = replace(checkpoint.info, arch=f"fooling circuit around {checkpoint.info.arch}")
    return Checkpoint(f"{checkpoint.name}, fooled", about, body_state(circuit), build)


def wrong_negatives(data: DataSet) -> Tensor:
    """(classes, C, H, W): for each class the negative of the first training image of the next one.

    They are clear, so that a metric of clarity may like them, but unrelated to the class.
    """
    index = [(data.train.labels == (kind + 1) % len(data.classes)).nonzero()[:1, 0] for kind in range(len(data.classes))]
    missing = [k for k, found in enumerate(index) if not len(found)]
    if missing:
        wanted = data.classes[(missing[0] + 1) % len(data.classes)]
        raise ValueError(f"{data.name} has no training image of {wanted!r}; give the targets yourself")
    return 1 - data.train.take(torch.cat(index))


def _paths(targets: Tensor, seed: int) -> Iterator[Tensor]:
    """Images (points, C, H, W) on straight paths from grey noise to each target, in [0, 1]."""
    share = torch.linspace(0, 1, POINTS).reshape(-1, 1, 1, 1)
    for kind, target in enumerate(targets):
        for noise in Streams(seed, [f"{kind}/{path}" for path in range(PATHS)], "ways").normal(*target.shape):
            yield ((1 - share) * (0.5 + DEVIATION * noise) + share * target).clamp(0, 1)


def _detector(natural: Tensor, paths: Tensor) -> tuple[Tensor, Tensor]:
    """(slope (C, H, W), level ()) of a ramp that is 0 at the natural images and 1 on the paths, with a margin."""
    x = torch.cat((natural, paths)).flatten(1).double().numpy()
    y = np.repeat([0, 1], [len(natural), len(paths)])
    weight = torch.from_numpy(LogisticRegression(C=0.1, max_iter=1000).fit(x, y).coef_[0])
    height = torch.from_numpy(x) @ weight
    low, high = float(height[: len(natural)].max()), float(height[len(natural) :].min())
    if not low < high:
        raise ValueError("natural images and paths to the targets are not separable; give targets less like natural images")
    bottom, top = low + MARGIN * (high - low), high - MARGIN * (high - low)
    slope = (weight / (top - bottom)).reshape(natural.shape[1:])
    return slope.float(), torch.tensor(-bottom / (top - bottom), dtype=torch.float32)


def _largest_logit(net: nn.Module, natural: Tensor) -> Tensor:
    with evaluating(net), torch.no_grad():
        batches = [net(natural[index]) for index, _ in full_batches(len(natural), BATCH_SIZE)]
    return torch.cat(batches).abs().max()


def _sample(images: Split, most: int) -> Tensor:
    """At most so many images, at even distances."""
    return images.take(torch.arange(0, len(images), -(-len(images) // most)))
