"""Noise: of the sensor (Gaussian), of few photons (shot), of lost pixels (impulse) and in proportion to the light (speckle)."""

from __future__ import annotations

import numpy as np
from scipy.special import pdtr

from vizrobust.rng import Streams
from vizrobust.robustness.corruptions.published import Array, published


@published(
    at32=(0.04, 0.06, 0.08, 0.09, 0.10),
    at64=(0.04, 0.08, 0.12, 0.15, 0.18),
    at224=(0.08, 0.12, 0.18, 0.26, 0.38),
)
def gaussian_noise(x: Array, streams: Streams, deviation: float) -> Array:
    """Adds normal noise of one deviation to every value."""
    return x + deviation * streams.normal(*x.shape[1:]).numpy()


@published(
    at32=(500, 250, 100, 75, 50),
    at64=(250, 100, 50, 30, 15),
    at224=(60, 25, 12, 5, 3),
)
def shot_noise(x: Array, streams: Streams, photons: float) -> Array:
    """Counts photons (Poisson), so many on average where the image is white."""
    level = np.rint(x * 255).astype(np.int64)
    # Beyond 8 deviations no draw of 24 bits falls.
    most = int(photons + 8 * photons**0.5 + 8)
    counts = pdtr(np.arange(most)[None], photons * np.arange(256)[:, None] / 255)
    # One search in all 256 distributions, laid end to end: that of level k lies between k and k + 1.
    ladder = (np.arange(256)[:, None] + counts).ravel()
    drawn = np.searchsorted(ladder, level + streams.uniform(*x.shape[1:]).numpy().astype(np.float64), side="right")
    return (drawn - level * most) / photons


@published(
    at32=(0.01, 0.02, 0.03, 0.05, 0.07),
    at64=(0.01, 0.02, 0.05, 0.08, 0.14),
    at224=(0.03, 0.06, 0.09, 0.17, 0.27),
)
def impulse_noise(x: Array, streams: Streams, share: float) -> Array:
    """Salt and pepper: this share of the values becomes 0 or 1, each as often as the other."""
    u = streams.uniform(*x.shape[1:]).numpy()
    return np.where(u < share, u < share / 2, x)


@published(
    at32=(0.06, 0.1, 0.12, 0.16, 0.2),
    at64=(0.15, 0.2, 0.25, 0.3, 0.35),
    at224=(0.15, 0.2, 0.35, 0.45, 0.6),
)
def speckle_noise(x: Array, streams: Streams, deviation: float) -> Array:
    """Multiplies every value by 1 plus normal noise."""
    return x + x * deviation * streams.normal(*x.shape[1:]).numpy()
