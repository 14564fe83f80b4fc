"""Objectives about the image itself, to be subtracted from one about the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vizrobust.features.objectives.objective import algebra
from vizrobust.spec import spec


@algebra
@spec
@dataclass(frozen=True)
class TotalVariation:
    """The mean absolute difference of neighbouring pixels, down plus across (Rudin et al. 1992)."""

    @property
    def layers(self) -> tuple[str, ...]:
        return ()

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        down = (image[:, :, 1:] - image[:, :, :-1]).abs().flatten(1).mean(1)
        across = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().flatten(1).mean(1)
        return down + across


@algebra
@spec
@dataclass(frozen=True)
class AbsoluteDeviation:
    """The mean absolute difference of the pixels from `center`: an L1 penalty."""

    center: float = 0.5

    @property
    def layers(self) -> tuple[str, ...]:
        return ()

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return (image - self.center).abs().flatten(1).mean(1)


@algebra
@spec
@dataclass(frozen=True)
class SquaredDeviation:
    """The mean squared difference of the pixels from `center`: an L2 penalty."""

    center: float = 0.5

    @property
    def layers(self) -> tuple[str, ...]:
        return ()

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return (image - self.center).square().flatten(1).mean(1)
