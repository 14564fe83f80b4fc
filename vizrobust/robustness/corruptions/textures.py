"""Random textures: clouds and ice, one of each for every image."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.published import Array, paint

# Ice: how many feathers, the side of the tile that holds the grain of their needles, how many times longer than wide
# these are, and their colour.
FEATHERS, TILE, SLENDER = 10, 64, 7
ICE = (214, 235, 255)


def plasma(shape: tuple[int, ...], streams: Streams, decay: float) -> Array:
    """(N, 1, H, W) clouds in [0, 1] by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982).

    From level to level the noise shrinks by the square of `decay`, as in the published fog.
    """
    height, width = shape[2:]
    size = 1 << (max(height, width) - 1).bit_length()
    # Every point but the first is set once, so one field holds the noise of all levels.
    noise = 2 * streams.uniform(size, size).numpy().astype(np.float64) - 1
    field = np.zeros_like(noise)
    step, loudness = size, 1.0
    while step >= 2:
        half = step // 2
        corner = field[:, ::step, ::step]
        pairs = corner + np.roll(corner, -1, 1)
        middle = (pairs + np.roll(pairs, -1, 2)) / 4 + loudness * noise[:, half::step, half::step]
        field[:, half::step, half::step] = middle
        above = middle + np.roll(middle, 1, 1) + corner + np.roll(corner, -1, 2)
        beside = middle + np.roll(middle, 1, 2) + corner + np.roll(corner, -1, 1)
        field[:, ::step, half::step] = above / 4 + loudness * noise[:, ::step, half::step]
        field[:, half::step, ::step] = beside / 4 + loudness * noise[:, half::step, ::step]
        step, loudness = half, loudness / decay**2
    field -= field.min((1, 2), keepdims=True)
    field /= field.max((1, 2), keepdims=True)
    return field[:, None, :height, :width]


def ice(shape: tuple[int, ...], streams: Streams) -> Array:
    """(N, C, H, W) sheets of ice: feathers that each grow in a direction of their own, thick here and thin there."""
    n, channels, height, width = shape
    side = min(height, width)
    seats = streams.child("seats").uniform(FEATHERS, 2).numpy() * np.array([height, width])
    turns = 2 * np.pi * streams.child("turns").uniform(FEATHERS).numpy()
    grain = streams.child("grain").uniform(TILE, TILE).numpy()
    bends = gaussian_filter(
        streams.child("bends").normal(3, height, width).numpy(), side / 12, mode="wrap", truncate=2, axes=(2, 3)
    )
    bends /= bends.std((2, 3), keepdims=True)
    grid = np.mgrid[:height, :width].astype(np.float32)
    fine = max(1.0, side / TILE)
    out = np.empty((n, 1, height, width), dtype=np.float32)
    for sheet, seat, turn, tile, bend in zip(out, seats, turns, grain, bends, strict=True):
        # The crooked borders between feathers are where the bent distances to two seats are equal.
        away = (grid + side / 16 * bend[:2])[None] - seat[:, :, None, None]
        feather = (away**2).sum(1).argmin(0)
        down, right = grid - seat[feather].transpose(2, 0, 1)
        along = np.cos(turn)[feather] * down + np.sin(turn)[feather] * right
        across = np.abs(np.cos(turn)[feather] * right - np.sin(turn)[feather] * down)
        # Needles leave the shaft on both sides at 45 degrees.
        places = np.stack([along - across, (along + across) / SLENDER]) / (fine * np.sqrt(2))
        # Interpolation evens the grain out; this brings its contrast back.
        needles = np.clip(1.8 * map_coordinates(tile, places, order=1, mode="grid-wrap") - 0.4, 0, 1)
        thickness = 1 / (1 + np.exp(-0.7 - 2 * bend[2]))
        sheet[0] = 0.1 + 0.9 * (0.5 + 0.5 * needles) * thickness ** (0.3 + 1.4 * needles)
    return out * paint(ICE, channels)
