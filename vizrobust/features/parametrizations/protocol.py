"""What a parametrization is: free numbers behind an image."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from vizrobust.rng import Streams

Shape = tuple[int, int, int]


@runtime_checkable
class Parametrization(Protocol):
    """Free numbers z behind an image. Every image of a batch has its own, and its own stream.

    Two methods are optional. ``invert(image)`` gives z for images (N, C, H, W) in [0, 1], where there is a way
    back. ``sized(shape)`` gives the parametrization for images of `shape`, where z alone does not tell their size.
    One with a field `faces` couples the rows of each group of so many consecutive images, and no others.
    """

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        """z (N, …) for one image of `shape` (C, H, W) from each of N streams."""

    def __call__(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1]; differentiable."""

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        """z after a step, brought back to what is allowed, given the z it started from; outside the graph."""


def sized(parametrization: Parametrization, shape: Shape) -> Parametrization:
    """The parametrization as it is used for images of `shape` (C, H, W)."""
    fit = getattr(parametrization, "sized", None)
    return parametrization if fit is None else cast(Parametrization, fit(shape))
