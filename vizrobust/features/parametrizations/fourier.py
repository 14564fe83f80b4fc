"""A decaying spectrum in decorrelated colours as free numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vizrobust.features.parametrizations.colors import from_colors, to_colors
from vizrobust.features.parametrizations.frequencies import falloff, hartley
from vizrobust.features.parametrizations.protocol import Shape
from vizrobust.rng import Streams
from vizrobust.spec import spec

GAIN = math.sqrt(2) / 4


@spec
@dataclass(frozen=True)
class Fourier:
    """z is a spectrum, scaled by 1 / frequency^`decay`, in decorrelated colours, through a sigmoid (Olah et al. 2017).

    ``image = sigmoid(C hartley(z / max(f, 1/max(H, W))^decay) * sqrt(2) / 4)``, f in cycles per pixel, z starting
    at `deviation` * noise. The orthonormal Hartley transform has exactly H * W real coefficients, so none is
    redundant and odd sizes need no care; the sqrt(2) makes its gain that of Lucid's half-plane of complex ones.
    RGB then starts between .001 and .01 away from grey at any size from 28 to 224 px: a further factor sqrt(H W),
    which belongs to the unnormalised transform, would saturate the picture. `colors` is C (channels x channels,
    row by row); None takes ImageNet's for three channels and none otherwise.
    """

    decay: float = 1.0
    deviation: float = 0.01
    colors: tuple[float, ...] | None = None

    def init(self, shape: Shape, streams: Streams) -> Tensor:
        return self.deviation * streams.normal(*shape)

    def __call__(self, z: Tensor) -> Tensor:
        scale = falloff(z.shape[2], z.shape[3], self.decay).to(z)
        return to_colors(hartley(z * scale) * GAIN, self.colors)

    def constrain(self, z: Tensor, start: Tensor) -> Tensor:
        return z

    def invert(self, image: Tensor) -> Tensor:
        """Exact for pixels from .02 to .98; the others are brought there, where the sigmoid still has a gradient."""
        planes = from_colors(image, self.colors)
        return (hartley(planes / GAIN) / falloff(image.shape[2], image.shape[3], self.decay).to(planes)).to(image.dtype)
