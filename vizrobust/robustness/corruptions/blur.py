"""Blur: out of focus, through frosted glass, in motion along a line, towards the camera, or plainly Gaussian."""

from __future__ import annotations

import math

import numpy as np

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.corruption import Array, eight_bit, published


@published(
    at32=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    at64=((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    at224=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    lengths=(0, 1),
)
def defocus_blur(x: Array, streams: Streams, radius: float, softness: float) -> Array:  # noqa: ARG001
    """The mean over a disk, mirrored at the edge."""
    from scipy.signal import oaconvolve

    kernel = disk(radius, softness)
    reach = len(kernel) // 2
    wide = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    return np.asarray(oaconvolve(wide, kernel[None, None], mode="valid", axes=(2, 3)))


@published(
    at32=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    at64=((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    at224=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    lengths=(0, 1),
)
def glass_blur(x: Array, streams: Streams, sigma: float, reach: float, rounds: float) -> Array:
    """Blurs, lets pixels take the place of neighbours, and blurs again.

    As the published program does, whatever its comment says, a pixel is not exchanged with a neighbour but becomes
    its copy: two views of one array cannot be swapped by a tuple.
    """
    x = eight_bit(_smooth(x, sigma)) / 255
    for _ in range(round(rounds)):
        x = _displaced(x, streams, round(reach))
    return _smooth(x, sigma)


@published(
    at32=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    at64=((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    at224=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    lengths=(0, 1),
)
def motion_blur(x: Array, streams: Streams, radius: float, sigma: float) -> Array:
    """Smears along a line within 45 degrees of the horizontal."""
    return smeared(x, radius, sigma, 90 * streams.uniform().numpy() - 45)


@published(
    at32=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    at64=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    at224=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)
def zoom_blur(x: Array, streams: Streams, end: float, step: float) -> Array:  # noqa: ARG001
    """The mean of the image and of enlargements of it."""
    # At an `end` that floats miss by a hair, arange includes it; the published sets were made with the same call.
    factors = np.arange(1, end, step)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


@published(at32=(0.4, 0.6, 0.7, 0.8, 1), at64=(0.5, 0.75, 1, 1.25, 1.5), at224=(1, 2, 3, 4, 6), lengths=(0,))
def gaussian_blur(x: Array, streams: Streams, sigma: float) -> Array:  # noqa: ARG001
    """Convolves with a Gaussian."""
    return _smooth(x, sigma)


def disk(radius: float, softness: float) -> Array:
    """A disk of this radius on the pixel grid, of sum 1, its rim softened by a narrow Gaussian of 3 taps (5 beyond 8 px)."""
    from scipy.ndimage import correlate1d

    reach = 8 if radius <= 8 else math.ceil(radius)
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    across = np.arange(-reach, reach + 1)
    flat = (across[:, None] ** 2 + across**2 <= radius**2).astype(float)
    narrow = np.exp(-(taps**2) / (2 * softness**2))
    for axis in (0, 1):
        flat = correlate1d(flat, narrow / narrow.sum(), axis, mode="mirror")
    used = min(reach, math.ceil(radius) + 1)
    inner = slice(reach - used, reach + used + 1)
    return flat[inner, inner] / flat.sum()


def smeared(x: Array, radius: float, sigma: float, angles: Array) -> Array:
    """Each image convolved with half a Gaussian along its angle (N,), in degrees: ImageMagick's motion blur."""
    height, width = x.shape[2:]
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(x.dtype)
    margin = len(steps)
    wide = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")
    turn = np.radians(angles.astype(np.float64))[:, None]
    downs = margin + np.ceil(steps * np.sin(turn) - 0.5).astype(int)
    rights = margin + np.ceil(steps * np.cos(turn) - 0.5).astype(int)
    out = np.zeros_like(x)
    for image, source, tops, lefts in zip(out, wide, downs, rights, strict=True):
        for weight, top, left in zip(weights, tops, lefts, strict=True):
            image += weight * source[:, top : top + height, left : left + width]
    return out


def zoomed(x: Array, factor: float) -> Array:
    """The centre enlarged by this factor of at least 1, with linear interpolation, at the size of the images."""
    for axis in (2, 3):
        size = x.shape[axis]
        kept = math.ceil(size / factor)
        enlarged = round(kept * factor)
        # Corners fall on corners, as in scipy's zoom.
        places = (np.arange(size) + (enlarged - size) // 2) * ((kept - 1) / (enlarged - 1))
        low = np.floor(places).astype(int)
        share = (places - low).astype(x.dtype).reshape(-1, *[1] * (3 - axis))
        begin = (size - kept) // 2
        before, after = x.take(begin + low, axis), x.take(begin + np.minimum(low + 1, kept - 1), axis)
        x = before + share * (after - before)
    return x


def _smooth(x: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, sigma, mode="nearest", axes=(2, 3)))


def _displaced(x: Array, streams: Streams, reach: int) -> Array:
    """From the last pixel to the first, each becomes what one at random, at most `reach` away, is by then."""
    n, channels, height, width = x.shape
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    own = rows[:, None] * width + columns
    down, right = (streams.integers(2 * reach, 2, *own.shape).numpy() - reach).swapaxes(0, 1)
    source = np.broadcast_to(np.arange(height * width), (n, height * width)).copy()
    source[:, own] += down * width + right
    # A source further on was itself replaced before: its own source counts, and so on. Following all at once doubles
    # the distance each time.
    visited = np.zeros(height * width, dtype=bool)
    visited[own] = True
    replaced = visited[source] & (source > np.arange(height * width))
    while replaced.any():
        onward = np.take_along_axis(source, source, 1)
        still = np.take_along_axis(replaced, source, 1)
        source, replaced = np.where(replaced, onward, source), replaced & still
    return np.take_along_axis(x.reshape(n, channels, -1), source[:, None], 2).reshape(x.shape)
