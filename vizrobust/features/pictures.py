"""Between tensors and picture files: 8-bit pixels, PNGs read back, an image to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def start_image(path: str, shape: tuple[int, int, int]) -> Tensor:
    """An image file as (C, H, W) in [0, 1], scaled to the network's input."""
    try:
        with Image.open(path) as picture:
            mode = "L" if shape[0] == 1 else "RGB"
            scaled = picture.convert(mode).resize((shape[2], shape[1]), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path!r} (from --start)") from None
    except OSError as error:
        raise ValueError(f"{path!r} is not an image that Pillow can read ({error})") from error
    pixels = torch.from_numpy(np.asarray(scaled).copy()).reshape(shape[1], shape[2], -1).movedim(-1, 0)
    return pixels.to(torch.float32) / 255


def to_uint8(image: Tensor) -> np.ndarray[Any, Any]:
    """(C, H, W) in [0, 1] -> (H, W) or (H, W, 3) uint8."""
    pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def read_png(path: Path) -> Tensor:
    """A saved image as (C, H, W) in [0, 1]."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy())
    return (pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)).to(torch.float32) / 255
