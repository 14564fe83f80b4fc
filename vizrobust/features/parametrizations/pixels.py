"""The image itself as free numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vizrobust.attacks import Ball
from vizrobust.features.parametrizations.protocol import Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Pixels:
    """z is the image. It starts at .5 + `deviation` * noise and is clipped to [0, 1] after each step.

    With a `ball` it stays within that distance of its start.

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
