"""Common corruptions by name, at severities 1 to 5 (Hendrycks and Dietterich 2019)."""

from vizrobust.robustness.corruptions.corruption import SEVERITIES, Corruption
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
    speckle_noise,
    zoom_blur,
)
from vizrobust.robustness.corruptions.weather import brightness, fog, frost, snow, spatter
from vizrobust.spec import named

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
