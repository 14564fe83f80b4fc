"""What a parametrization is: free numbers behind an image; and the plainest one, the pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from vizrobust.attacks import Ball
from vizrobust.rng import Streams
from vizrobust.spec import spec

Shape = tuple[int, int, int]


@runtime_checkable
class Parametrization(Protocol):
    """Free numbers z behind an image. Every image of a batch has its own, and its own stream.

    Some methods are optional. ``invert(image)`` gives z for images (N, C, H, W) in [0, 1]. ``for_shape(shape)`` gives
    the parametrization for images of `shape`, where z alone does not tell their size. ``composite(image, streams)``
    and ``alpha_penalized(scores, image)`` are for pictures with an opacity: the images that the network sees, and the
    scores less what opacity costs. Both take the picture, not z, so that the render loop makes it once a step (see
    `composited` and `alpha_penalized`). A parametrization with a field `group_size` couples the rows of each group of so
    many consecutive images, and no others.
    """

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        """z (N, …) for one image of `shape` (C, H, W) from each of N streams."""

    def __call__(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1], or pictures that `composite` turns into such; differentiable."""

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        """z after a step, brought back to what is allowed, given the z it started from; outside the graph."""


def for_shape(parametrization: Parametrization, shape: Shape) -> Parametrization:
    """The parametrization for images of `shape` (C, H, W); most do not depend on it.

    >>> from vizrobust.features import CPPN
    >>> for_shape(CPPN(), (3, 32, 32)), for_shape(Pixels(), (3, 32, 32))
    (CPPN(shape=(3, 32, 32)), Pixels())
    """
    resize = getattr(parametrization, "for_shape", None)
    return parametrization if resize is None else cast(Parametrization, resize(shape))


def composited(parametrization: Parametrization, image: Tensor, streams: Streams | None = None) -> Tensor:
    """What a network sees of pictures, (N, C, H, W): over backgrounds drawn from `streams`, or without any over mid grey."""
    composite = getattr(parametrization, "composite", None)
    return image if composite is None else cast(Tensor, composite(image, streams))


def alpha_penalized(parametrization: Parametrization, scores: Tensor, image: Tensor) -> Tensor:
    """What is optimized, (N,): the network's scores (N,), less what the pictures' opacity costs where they have one."""
    own = getattr(parametrization, "alpha_penalized", None)
    return scores if own is None else cast(Tensor, own(scores, image))


@spec
@dataclass(frozen=True)
class Pixels:
    """z is the image; it starts at .5 + `deviation` * noise and is clipped to [0, 1] after each step.

    With a `ball`, the image stays within that distance of its start (Engstrom et al. 2019 render this way).

    >>> Pixels()(Pixels().init((3, 5, 4), Streams(0, range(2)))).shape
    torch.Size([2, 3, 5, 4])
    """

    deviation: float = 0.05
    ball: Ball | None = None

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        return (0.5 + self.deviation * streams.normal(*shape)).clamp(0, 1)

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        if self.ball is not None:
            z = start + self.ball.project(z - start)
        return z.clamp(0, 1)

    def invert(self, image: Tensor) -> Tensor:
        return image.clone()
