"""What a feature image excites: a score per image from activations, larger = more excited; and objectives about images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vizrobust.features.objectives.objective import (
    Channel,
    Direction,
    LikeImage,
    Logit,
    Neuron,
    NoLayer,
    Objective,
    OneLayer,
    Sum,
    algebra,
    group_size_of,
    main_term,
    needs_unit,
    negated,
    reference_key,
    references_of,
)
from vizrobust.plugins import Catalogue
from vizrobust.spec import named, parse, spec


@algebra
@spec
@dataclass(frozen=True)
class DeepDream(OneLayer):
    """The mean square of all activations of a layer (Mordvintsev et al. 2015, "Inceptionism").

    Activations (N, units, ...) -> (N,) scores.

    >>> DeepDream("a")({"a": torch.tensor([[1.0, 3.0]])}, torch.zeros(1, 1, 4, 3), torch.tensor([0]))
    tensor([5.])
    """

    layer: str

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return activations[self.layer].flatten(1).square().mean(1)


@algebra
@spec
@dataclass(frozen=True)
class Inversion(LikeImage):
    """Minus the squared distance to the layer's activations for `image`, over their own square (Mahendran & Vedaldi 2015, eq. 1).

    Scores (N,) are at most 0: 0 where the layer cannot tell the images apart, -1 where all activations are 0. `image` is a
    file, or ``DATA#index`` for a test image.

    >>> there = {"a": torch.tensor([[1.0, 2.0], [0.0, 0.0]]), reference_key("a", "cat.png"): torch.tensor([[1.0, 2.0]])}
    >>> Inversion("a", "cat.png")(there, torch.zeros(2, 1, 4, 3), torch.tensor([0, 0]))
    tensor([-0., -1.])
    """

    layer: str
    image: str

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return -_missed(activations[self.layer], activations[reference_key(self.layer, self.image)])


@algebra
@spec
@dataclass(frozen=True)
class Caricature(LikeImage):
    """More of what the layer makes of `image`: dot product times cosine^`power` (Lucid's caricatures, Olah et al. 2018).

    Scores (N,) are in units of the image's own square: 1 is the image itself, 2 twice its activations. `image` is a file, or
    ``DATA#index`` for a test image. Raises ``ValueError`` for a negative `power`.

    >>> there = {"a": torch.tensor([[1.0, 2.0], [2.0, 4.0]]), reference_key("a", "cat.png"): torch.tensor([[1.0, 2.0]])}
    >>> Caricature("a", "cat.png", power=0.0)(there, torch.zeros(2, 1, 4, 3), torch.tensor([0, 0]))
    tensor([1., 2.])
    """

    layer: str
    image: str
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"Caricature: power must not be negative, got {self.power:g}")

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        wanted = activations[reference_key(self.layer, self.image)].flatten(1)
        found = activations[self.layer].flatten(1)
        dot, square = (found * wanted).sum(1), wanted.square().sum(1).clamp_min(1e-12)
        if self.power == 0:
            return dot / square
        cosine = dot / (found.norm(dim=1) * square.sqrt()).clamp_min(1e-8)
        # A floor keeps the sign of the product and a gradient where the cosine is still negative.
        return dot / square * cosine.clamp_min(0.1) ** self.power


@algebra
@spec
@dataclass(frozen=True)
class Style(LikeImage):
    """Minus the squared distance of the layer's Gram matrix to that of `image`, over its square (Gatys et al. 2016, eq. 4).

    Scores (N,) are at most 0. `image` is a file, or ``DATA#index`` for a test image.

    >>> maps = torch.ones(1, 2, 3, 3)
    >>> there = {"a": torch.cat((maps, 0 * maps)), reference_key("a", "cat.png"): maps}
    >>> Style("a", "cat.png")(there, torch.zeros(2, 1, 4, 3), torch.tensor([0, 0]))
    tensor([-0., -1.])
    """

    layer: str
    image: str

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return -_missed(gram(activations[self.layer]), gram(activations[reference_key(self.layer, self.image)]))


def gram(maps: Tensor) -> Tensor:
    """(N, C, ...) -> (N, C, C): inner products of the channels, mean over positions."""
    flat = maps.reshape(*maps.shape[:2], -1)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _missed(found: Tensor, wanted: Tensor) -> Tensor:
    """(N, ...), (1, ...) -> (N,): the squared distance from what is wanted, over its own square."""
    wanted = wanted.flatten(1)
    return (found.flatten(1) - wanted).square().sum(1) / wanted.square().sum(1).clamp_min(1e-12)


@algebra
@spec
@dataclass(frozen=True)
class TotalVariation(NoLayer):
    """The mean absolute difference of neighbouring pixels, vertical plus horizontal (Rudin, Osher & Fatemi 1992).

    Images (N, C, H, W) -> (N,). A penalty, so it is subtracted.

    >>> TotalVariation()({}, torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), torch.tensor([0]))
    tensor([1.])
    """

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        down = (image[:, :, 1:] - image[:, :, :-1]).abs().flatten(1).mean(1)
        across = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().flatten(1).mean(1)
        return down + across


@dataclass(frozen=True)
class _Deviation(NoLayer):
    """The mean of a power of the pixels' distance from `center`: a penalty on images (N, C, H, W), to be subtracted."""

    center: float = 0.5
    power: ClassVar[int]

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        away = (image - self.center).abs() if self.power == 1 else (image - self.center).square()
        return away.flatten(1).mean(1)


@algebra
@spec
@dataclass(frozen=True)
class AbsoluteDeviation(_Deviation):
    """The mean absolute difference of the pixels from `center`, (N, C, H, W) -> (N,): an L1 penalty, to be subtracted.

    >>> AbsoluteDeviation()({}, torch.ones(1, 3, 4, 4), torch.tensor([0]))
    tensor([0.5000])
    """

    power = 1


@algebra
@spec
@dataclass(frozen=True)
class SquaredDeviation(_Deviation):
    """The mean squared difference of the pixels from `center`, (N, C, H, W) -> (N,): an L2 penalty, to be subtracted.

    >>> SquaredDeviation(center=0.0)({}, torch.full((1, 3, 4, 4), 0.5), torch.tensor([0]))
    tensor([0.2500])
    """

    power = 2


@dataclass(frozen=True)
class Grouped(OneLayer):
    """Of a layer, in groups of `group_size` consecutive images that are compared with each other alone."""

    layer: str
    group_size: int = 4

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"{type(self).__name__}: group_size must be at least 2, got {self.group_size}")


@algebra
@spec
@dataclass(frozen=True)
class Diversity(Grouped):
    """The mean cosine of an image's Gram matrix with those of the others in its group (Olah et al. 2017, "Diversity").

    It measures similarity, so it is subtracted: ``Channel("conv2") - 2 * Diversity("conv2", group_size=4)``. Images come in
    groups of `group_size` consecutive rows and are compared within a group only. Raises ``ValueError`` for groups of fewer
    than 2.

    >>> maps = torch.eye(2)[:, :, None]  # each image excites another channel
    >>> Diversity("a", group_size=2)({"a": maps}, torch.zeros(2, 1, 4, 3), torch.tensor([0, 0]))
    tensor([0., 0.])
    """

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return group_similarity(gram(activations[self.layer]), self.group_size)


@algebra
@spec
@dataclass(frozen=True)
class Alignment(Grouped):
    """The mean cosine of an image's activations, position by position, with those of the others in its group.

    Added to an objective it keeps the same thing at the same position in all images of a group of `group_size` consecutive
    rows (Mordvintsev et al. 2018, "Differentiable Image Parameterizations", aligned interpolation).

    >>> maps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)
    >>> Alignment("a", group_size=2)({"a": maps}, torch.zeros(2, 1, 4, 3), torch.tensor([0, 0]))
    tensor([0., 0.])
    """

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return group_similarity(activations[self.layer], self.group_size)


def group_similarity(x: Tensor, group_size: int) -> Tensor:
    """(N, ...) -> (N,): the mean cosine of each row with the other rows of its group of `group_size`."""
    if len(x) % group_size:
        raise ValueError(f"{len(x)} images do not divide into groups of {group_size}")
    unit = torch.nn.functional.normalize(x.flatten(1), dim=1, eps=1e-12)
    groups = unit.reshape(-1, group_size, unit.shape[1])
    # Pair by pair and not as one matrix product, whose rounding depends on where a row stands.
    others = [
        torch.stack([(groups[:, i] * groups[:, j]).sum(1) for j in range(group_size) if j != i]).mean(0)
        for i in range(group_size)
    ]
    return torch.stack(others, 1).flatten()


OBJECTIVES = Catalogue(named(
    Logit, Channel, Neuron, Direction, DeepDream, Inversion, Caricature, Style, Diversity, Alignment,
    TotalVariation, AbsoluteDeviation, SquaredDeviation,
), "objectives")  # fmt: skip


def parse_objective(text: str, *, typed: bool = False) -> Objective:
    """An objective from its text; ``ValueError`` for anything else.

    Its parts may be an installed package's, or ``my.py:Mine(...)`` where a person `typed` the text.

    >>> parse_objective("channel(layer='conv2') - 0.01 * totalvariation")
    Channel(layer="conv2") - 0.01 * TotalVariation()
    """
    found = parse(text, OBJECTIVES, "objective", typed=typed)
    if not isinstance(found, Objective):
        raise ValueError(f'{text!r} is {found!r}, not an objective; write it like Channel(layer="conv2")')
    return found


__all__ = [
    "OBJECTIVES",
    "AbsoluteDeviation",
    "Alignment",
    "Caricature",
    "Channel",
    "DeepDream",
    "Direction",
    "Diversity",
    "Inversion",
    "Logit",
    "Neuron",
    "Objective",
    "SquaredDeviation",
    "Style",
    "Sum",
    "TotalVariation",
    "group_size_of",
    "main_term",
    "needs_unit",
    "negated",
    "parse_objective",
    "reference_key",
    "references_of",
]
