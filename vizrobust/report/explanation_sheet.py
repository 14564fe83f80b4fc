"""The sheet of attribution maps: each image beside the maps of every method, a row for each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from torch import Tensor

from vizrobust.report.canvas import Pixels
from vizrobust.report.sheets import SheetRow, reconstruction_sheet
from vizrobust.report.style import COLORS, MARK, PAPER

FULL = 0.99  # what share of a map's pixels is not in full colour at least
DEEP = "#6d1f06"
CAPTION = (
    "orange: pixels that the answer depends on; of a method with a sign, blue is against the class. Each map has its own scale."
)


def map_pixels(values: Tensor, signed: bool) -> Pixels:
    """A map (H, W) as (H, W, 3) uint8: white for nothing, orange for, and with a sign blue against.

    >>> import torch
    >>> map_pixels(torch.tensor([[0.0, 1.0]]), signed=False)[0, 0].tolist()
    [255, 255, 255]
    """
    array = values.double().numpy()
    sizes = np.abs(array)
    largest = float(np.quantile(sizes, FULL)) or float(sizes.max()) or 1.0
    scaled = np.clip((array if signed else sizes) / largest, -1, 1)
    stops = (-1.0, 0.0, 0.6, 1.0)
    colors = np.array([to_rgb(color) for color in (COLORS[0], PAPER, MARK, DEEP)])
    channels = [np.interp(scaled, stops, colors[:, channel]) for channel in range(3)]
    return (255 * np.stack(channels, -1)).round().astype(np.uint8)


def explanation_sheet(path: Path | str, methods: Sequence[str], rows: Sequence[SheetRow], command: str = "") -> Path:
    """Draw rows of an image and its maps to a PNG; the PNG carries the command."""
    return reconstruction_sheet(path, "Which pixels the answer depends on", ["image", *methods], rows, [CAPTION], command)
