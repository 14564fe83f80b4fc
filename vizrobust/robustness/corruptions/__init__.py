"""Common corruptions: the catalogue, and weather, which covers the image: snow, frost, fog, bright light, spatter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.corruption import (
    SEVERITIES,
    Array,
    Corruption,
    eight_bit,
    grey,
    ice,
    paint,
    plasma,
    published,
)
from vizrobust.robustness.corruptions.digital import (
    contrast,
    defocus_blur,
    elastic_transform,
    gaussian_blur,
    gaussian_noise,
    glass_blur,
    impulse_noise,
    jpeg_compression,
    motion_blur,
    pixelate,
    saturate,
    shot_noise,
    smeared,
    speckle_noise,
    zoom_blur,
    zoomed,
)
from vizrobust.spec import named

WATER, MUD = (175, 238, 238), (63, 42, 20)
# Light and shadow at the rim of a drop.
RELIEF = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])


@published(
    at32=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    at64=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.1, 0.2, 1, 0.5, 10, 4, 0.8), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    at224=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    lengths=(2, 4, 5),
)  # fmt: skip
def snow(
    x: Array,
    streams: Streams,
    mean: float,
    deviation: float,
    size: float,
    least: float,
    radius: float,
    sigma: float,
    clear: float,
) -> Array:
    """Whitens the scene and adds flakes, enlarged and smeared downwards, twice: as drawn and turned by 180 degrees."""
    flakes = zoomed(mean + deviation * streams.normal(1, *x.shape[2:]).numpy(), size)
    flakes = eight_bit(np.where(flakes < least, 0, flakes)) / 255
    flakes = smeared(flakes, radius, sigma, -90 * streams.uniform().numpy() - 45)
    white = np.maximum(x, grey(x) * 1.5 + 0.5)
    return clear * x + (1 - clear) * white + flakes + flakes[:, :, ::-1, ::-1]


@published(
    at32=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    at64=((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    at224=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
def frost(x: Array, streams: Streams, clear: float, strength: float) -> Array:
    """Adds ice. The published sets cut it from six photographs; this ice is drawn (`corruption.ice`), not theirs."""
    return clear * x + strength * ice(x.shape, streams)


@published(
    at32=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    at64=((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    at224=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
def fog(x: Array, streams: Streams, strength: float, decay: float) -> Array:
    """Adds clouds (a plasma fractal) and brings the image back to its own greatest value."""
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + strength * plasma(x.shape, streams, decay)) * brightest / (brightest + strength)


@published(at32=(0.05, 0.1, 0.15, 0.2, 0.3), at64=(0.1, 0.2, 0.3, 0.4, 0.5), at224=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(x: Array, streams: Streams, more: float) -> Array:  # noqa: ARG001
    """Raises the value of hue, saturation and value."""
    from skimage.color import hsv2rgb, rgb2hsv

    if x.shape[1] == 1:
        return x + more
    hsv = rgb2hsv(x, channel_axis=1)
    hsv[:, 2] = np.clip(hsv[:, 2] + more, 0, 1)
    return np.asarray(hsv2rgb(hsv, channel_axis=1))


@published(
    at32=(
        (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0, 0.6), (0.65, 0.1, 0.5, 0.68, 0, 0.6),
    ),
    at64=(
        (0.62, 0.1, 0.7, 0.7, 0.6, 0), (0.65, 0.1, 0.8, 0.7, 0.6, 0), (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0, 0.6), (0.65, 0.1, 0.5, 0.67, 0, 0.6),
    ),
    at224=(
        (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 0, 1.5), (0.67, 0.4, 1, 0.65, 0, 1.5),
    ),
    lengths=(2, 5),
)  # fmt: skip
def spatter(
    x: Array, streams: Streams, mean: float, deviation: float, size: float, least: float, shine: float, rim: float
) -> Array:
    """Spatters the lens: severities 1 to 3 with drops of water, which shine, 4 and 5 with mud, which covers.

    Edges, distances and the relief of drops are scikit-image's and scipy's, not OpenCV's: alike, not the same.
    """
    from scipy.ndimage import gaussian_filter

    liquid = mean + deviation * streams.normal(*x.shape[2:]).numpy()
    liquid = gaussian_filter(liquid, size, mode="nearest", axes=(1, 2))
    if rim:
        cover = gaussian_filter((liquid > least).astype(np.float32), rim, mode="nearest", axes=(1, 2))[:, None]
        cover[cover < 0.8] = 0
        return x * (1 - cover) + cover * paint(MUD, x.shape[1])
    drops = np.stack([_drops(image) for image in eight_bit(np.where(liquid < least, 0, liquid))])
    return x + shine * drops[:, None] * paint(WATER, x.shape[1])


def _drops(liquid: NDArray[np.uint8]) -> Array:
    """How strongly a film of liquid (H, W) shines: most at the rims of its drops, at most 1."""
    from scipy.ndimage import correlate, distance_transform_edt, uniform_filter
    from skimage.feature import canny

    edges: NDArray[np.bool_] = canny(  # type: ignore[no-untyped-call]
        liquid / 255, sigma=0, low_threshold=50 / 255, high_threshold=150 / 255
    )
    if not edges.any():
        return np.zeros(liquid.shape, dtype=np.float32)
    depth = uniform_filter(np.minimum(distance_transform_edt(~edges), 20), 3, mode="mirror").astype(int)
    # Histogram equalization of whole pixels, the least at 0.
    counts = np.bincount(depth.ravel()).cumsum()
    least = counts[depth.min()]
    level = (counts - least) / max(counts[-1] - least, 1)
    relief = np.clip(correlate(level[depth], RELIEF, mode="mirror"), 0, 1)
    shine = liquid * uniform_filter(relief, 3, mode="mirror")
    return shine / max(shine.max(), 1e-6)


# The fifteen that count in the mean corruption error, in the order of the paper.
COMMON = named(
    gaussian_noise, shot_noise, impulse_noise,
    defocus_blur, glass_blur, motion_blur, zoom_blur,
    snow, frost, fog, brightness,
    contrast, elastic_transform, pixelate, jpeg_compression,
)  # fmt: skip
# Four more, which the authors keep for choosing hyperparameters.
EXTRA = named(speckle_noise, gaussian_blur, spatter, saturate)
CORRUPTIONS = {**COMMON, **EXTRA}

__all__ = ["COMMON", "CORRUPTIONS", "EXTRA", "SEVERITIES", "Corruption"]
