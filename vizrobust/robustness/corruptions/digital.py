"""Corruptions of the camera and of the file: noise, blur, contrast, pixels, JPEG."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.corruption import Array, eight_bit, published


@published(at32=(0.75, 0.5, 0.4, 0.3, 0.15), at64=(0.4, 0.3, 0.2, 0.1, 0.05), at224=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(x: Array, streams: Streams, factor: float) -> Array:  # noqa: ARG001
    """Draws every value towards the mean of its image and channel."""
    mean = x.reshape(*x.shape[:2], -1).mean(2, dtype=np.float64)[..., None, None]
    return (x - mean) * factor + mean


@published(
    at32=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    at64=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    at224=((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
)
def saturate(x: Array, streams: Streams, factor: float, more: float) -> Array:  # noqa: ARG001
    """Changes the saturation: severities 1 and 2 take colour away, 3 to 5 add to it.

    Images of one channel have no colour and stay as they are. Grey pixels of colour images have hue 0 and turn
    red at severities 4 and 5, as in the published sets.
    """
    from skimage.color import hsv2rgb, rgb2hsv

    if x.shape[1] == 1:
        return x
    hsv = rgb2hsv(x, channel_axis=1)
    hsv[:, 1] = np.clip(hsv[:, 1] * factor + more, 0, 1)
    return np.asarray(hsv2rgb(hsv, channel_axis=1))


@published(
    at32=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    at64=((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    # The published program multiplies these by 244 where the images have 224 px.
    at224=tuple(
        tuple(value * 244 / 224 for value in row)
        for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ),
)
def elastic_transform(x: Array, streams: Streams, strength: float, smoothness: float, shear: float) -> Array:
    """Moves three points and the image with them (affine), then every pixel by a smooth random field.

    The three constants are fractions of the shorter side. Severity 1 of the two smaller sets is the affine part
    alone; its share falls and that of the field grows with severity.
    """
    from scipy.ndimage import map_coordinates

    height, width = x.shape[2:]
    side = min(height, width)
    corners, field = streams.child("corners").uniform(3, 2).numpy(), streams.child("field").uniform(2, height, width).numpy()
    field = (2 * field.astype(np.float64) - 1) * strength * side
    if smoothness:
        tall, wide = _smoothing(height, smoothness * side), _smoothing(width, smoothness * side)
        field = tall @ field @ wide.T
    grid = np.mgrid[:height, :width].astype(np.float64)
    out = np.empty_like(x)
    for image, target, corner, shift in zip(x, out, corners, field, strict=True):
        places = _affine(grid, shear * side * (2 * corner.astype(np.float64) - 1))
        moved = [map_coordinates(channel, places, order=1, mode="mirror") for channel in image]
        for channel, source in zip(target, moved, strict=True):
            map_coordinates(source, grid + shift, order=1, mode="reflect", output=channel)
    return out


@published(at32=(0.95, 0.9, 0.85, 0.75, 0.65), at64=(0.9, 0.8, 0.7, 0.6, 0.5), at224=(0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(x: Array, streams: Streams, factor: float) -> Array:  # noqa: ARG001
    """Reduces the image by this factor and enlarges it again, with box filters."""

    def coarse(image: Image.Image) -> Image.Image:
        small = (int(image.width * factor), int(image.height * factor))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return np.stack([_pixels(coarse(image)) for image in _pictures(x)])


@published(at32=(80, 65, 58, 50, 40), at64=(65, 58, 50, 40, 25), at224=(25, 18, 15, 10, 7))
def jpeg_compression(x: Array, streams: Streams, quality: float) -> Array:  # noqa: ARG001
    """Stores the image as JPEG of this quality and reads it back."""

    def stored(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=round(quality))
        return Image.open(file)

    return np.stack([_pixels(stored(image)) for image in _pictures(x)])


def _smoothing(size: int, sigma: float) -> NDArray[np.float64]:
    """The Gaussian filter along one axis as a matrix: a filter as wide as the image is slow otherwise."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3))


def _affine(grid: NDArray[np.float64], moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each place of the grid (2, H, W) came from, when three points moved by `moves` (3, 2)."""
    height, width = grid.shape[1:]
    centre, arm = np.array([height // 2, width // 2]), min(height, width) // 3
    before = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    to_before = np.linalg.solve(np.column_stack([before + moves, np.ones(3)]), before)
    return np.tensordot(to_before[:2].T, grid, 1) + to_before[2][:, None, None]


def _pictures(x: Array) -> list[Image.Image]:
    levels = eight_bit(x)
    return [Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))) for image in levels]


def _pixels(image: Image.Image) -> Array:
    pixels = np.asarray(image)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)) / 255


@published(at32=(0.04, 0.06, 0.08, 0.09, 0.10), at64=(0.04, 0.08, 0.12, 0.15, 0.18), at224=(0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(x: Array, streams: Streams, deviation: float) -> Array:
    """Adds normal noise of one deviation to every value."""
    return x + deviation * streams.normal(*x.shape[1:]).numpy()


@published(at32=(500, 250, 100, 75, 50), at64=(250, 100, 50, 30, 15), at224=(60, 25, 12, 5, 3))
def shot_noise(x: Array, streams: Streams, photons: float) -> Array:
    """Counts photons (Poisson), so many on average where the image is white."""
    from scipy.special import pdtr

    level = np.rint(x * 255).astype(np.int64)
    # Beyond 8 deviations no draw of 24 bits falls.
    most = int(photons + 8 * photons**0.5 + 8)
    counts = pdtr(np.arange(most)[None], photons * np.arange(256)[:, None] / 255)
    # One search in all 256 distributions, laid end to end: that of level k lies between k and k + 1.
    ladder = (np.arange(256)[:, None] + counts).ravel()
    drawn = np.searchsorted(ladder, level + streams.uniform(*x.shape[1:]).numpy().astype(np.float64), side="right")
    return (drawn - level * most) / photons


@published(at32=(0.01, 0.02, 0.03, 0.05, 0.07), at64=(0.01, 0.02, 0.05, 0.08, 0.14), at224=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(x: Array, streams: Streams, share: float) -> Array:
    """Salt and pepper: this share of the values becomes 0 or 1, each as often as the other."""
    u = streams.uniform(*x.shape[1:]).numpy()
    return np.where(u < share, u < share / 2, x)


@published(at32=(0.06, 0.1, 0.12, 0.16, 0.2), at64=(0.15, 0.2, 0.25, 0.3, 0.35), at224=(0.15, 0.2, 0.35, 0.45, 0.6))
def speckle_noise(x: Array, streams: Streams, deviation: float) -> Array:
    """Multiplies every value by 1 plus normal noise."""
    return x + x * deviation * streams.normal(*x.shape[1:]).numpy()


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
