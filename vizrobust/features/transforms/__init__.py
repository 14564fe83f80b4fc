"""Random transforms that a feature image must survive, each image with its own stream of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from vizrobust.features.transforms.geometry import Affine, Flip, Jitter, Rotate, Scale, Shift, check_share
from vizrobust.features.transforms.pixels import Blur, Crops, Noise
from vizrobust.features.transforms.sampling import EDGES, GeometricTransform, sampled
from vizrobust.plugins import Catalogue
from vizrobust.rng import Streams
from vizrobust.spec import named, spec

__all__ = [
    "TRANSFORMS", "Affine", "Blur", "Crops", "Flip", "Jitter", "Noise", "Pad", "Rotate", "Scale", "Shift", "Transform",
    "transformed",
]  # fmt: skip


class Transform(Protocol):
    """``transform(image, streams)``: (N, C, H, W) -> (N, C, H, W), from crops (count * N, …); identity at strength 0."""

    def __call__(self, image: Tensor, streams: Streams) -> Tensor: ...


@spec
@dataclass(frozen=True)
class Pad:
    """What transforms find outside of the image: `mode` constant (`value`), wrap (the image again) or reflect.

    It applies to the geometric transforms behind it in a tuple, without limit. Without a Pad the picture is mirrored. Raises
    ``ValueError`` for another mode and a value outside [0, 1].

    >>> import torch
    >>> transformed(torch.ones(1, 1, 4, 4), (Pad(value=0.0), Shift(size=0.5)), Streams(0, [0])).mean() < 1
    tensor(True)
    """

    value: float = 0.5
    mode: str = "constant"

    def __post_init__(self) -> None:
        check_share("Pad", "value", self.value)
        if self.mode not in EDGES:
            raise ValueError(f"Pad: mode must be one of {', '.join(EDGES)}, got {self.mode!r}")

    def __call__(self, image: Tensor, streams: Streams) -> Tensor:
        return image


TRANSFORMS = Catalogue(named(Jitter, Scale, Rotate, Shift, Affine, Flip, Crops, Pad, Blur, Noise), "transforms")


def transformed(image: Tensor, transforms: tuple[Transform, ...], streams: Streams) -> Tensor:
    """The images (N, C, H, W) after all transforms; each unbroken run of geometric transforms is one resampling.

    Geometric transforms multiply as matrices, so nothing is cut off between them. `Crops` makes (count * N, C, …), crop by
    crop, and transforms behind it are drawn anew for each crop.
    """
    for moves, edge, then in _stages(transforms):
        image, streams = sampled(image, moves, streams, edge.mode, edge.value)
        if then is not None:
            image = then(image, streams)
    return image


@lru_cache(maxsize=64)
def _stages(transforms: tuple[Transform, ...]) -> list[tuple[tuple[GeometricTransform, ...], Pad, Transform | None]]:
    """Runs of moves, the edge that they see, and what comes after each run."""
    stages: list[tuple[tuple[GeometricTransform, ...], Pad, Transform | None]] = []
    edge = Pad(mode="reflect")
    run: tuple[GeometricTransform, ...] = ()
    for transform in transforms:
        if isinstance(transform, GeometricTransform):
            run = (*run, transform)
            continue
        stages.append((run, edge, None if isinstance(transform, Pad) else transform))
        edge, run = transform if isinstance(transform, Pad) else edge, ()
    return [*stages, (run, edge, None)]
