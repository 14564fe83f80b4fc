"""Objectives that couple the faces of one unit: how alike their styles are, how alike their layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vizrobust.features.objectives.objective import algebra
from vizrobust.features.objectives.references import gram
from vizrobust.spec import spec


@algebra
@spec
@dataclass(frozen=True)
class Diversity:
    """How alike an image is to the other faces of its unit: mean cosine of their Gram matrices (Olah et al. 2017).

    Likeness is what it measures, so it is subtracted: ``Channel("conv2") - 2 * Diversity("conv2", faces=4)``.
    Images come in groups of `faces` consecutive rows and meet within a group only.
    """

    layer: str
    faces: int = 4

    def __post_init__(self) -> None:
        check_faces("Diversity", self.faces)

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return likeness(gram(activations[self.layer]), self.faces)


@algebra
@spec
@dataclass(frozen=True)
class Alignment:
    """How alike an image is to the other faces of its unit, place by place: mean cosine of their activations.

    Added, it keeps the same thing at the same place in all faces (Mordvintsev et al. 2018, aligned interpolation).
    """

    layer: str
    faces: int = 4

    def __post_init__(self) -> None:
        check_faces("Alignment", self.faces)

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return likeness(activations[self.layer], self.faces)


def likeness(x: Tensor, faces: int) -> Tensor:
    """(N, ...) -> (N,): the mean cosine of each row with the other rows of its group of `faces`."""
    if len(x) % faces:
        raise ValueError(f"{len(x)} images are no whole number of groups of {faces} faces")
    unit = torch.nn.functional.normalize(x.flatten(1), dim=1, eps=1e-12)
    groups = unit.reshape(-1, faces, unit.shape[1])
    # Pair by pair and not as one matrix product, whose rounding depends on where a row stands.
    others = [torch.stack([(groups[:, i] * groups[:, j]).sum(1) for j in range(faces) if j != i]).mean(0) for i in range(faces)]
    return torch.stack(others, 1).flatten()


def check_faces(owner: str, faces: int) -> None:
    if faces < 2:
        raise ValueError(f"{owner}: faces must be at least 2, got {faces}")
