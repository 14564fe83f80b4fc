"""Between tensors and picture files: 8-bit pixels, PNGs read back, an image to start from or to compare with."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizrobust.data import load
from vizrobust.runs import file_sha256

Shape = tuple[int, int, int]
TEST_IMAGE = re.compile(r"(.+)#(\d+)")


def reference_image(reference: str, shape: Shape) -> Tensor:
    """The image that a text names, (C, H, W) in [0, 1] at `shape`: a file, or ``DATA#index``, a data set's test image.

    >>> reference_image("mnist5k#3", (1, 28, 28)).shape
    torch.Size([1, 28, 28])
    """
    named = TEST_IMAGE.fullmatch(reference)
    if named is None or Path(reference).exists():
        return _file_image(reference, shape)
    images = load(named[1]).test
    if int(named[2]) >= len(images):
        raise ValueError(f"no image {named[2]} in {named[1]}, whose test images are 0 to {len(images) - 1}")
    image = images.take(torch.tensor([int(named[2])]))[0]
    if image.shape[0] != shape[0]:
        raise ValueError(f"{reference!r} has {image.shape[0]} channels, the network takes {shape[0]}")
    if image.shape == shape:
        return image
    return torch.nn.functional.interpolate(image[None], shape[1:], mode="bilinear", antialias=True)[0].clamp(0, 1)


def reference_sha256(reference: str, shape: Shape) -> str:
    """The hash of the file that `reference` names, or of the test image's own numbers."""
    if Path(reference).is_file():
        return file_sha256(reference)
    return hashlib.sha256(reference_image(reference, shape).contiguous().numpy().tobytes()).hexdigest()


def _file_image(path: str, shape: Shape) -> Tensor:
    """An image file, scaled to the network's input."""
    try:
        with Image.open(path) as picture:
            mode = "L" if shape[0] == 1 else "RGB"
            scaled = picture.convert(mode).resize((shape[2], shape[1]), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path!r}; give a file, or DATA#index for a test image (mnist5k#3)") from None
    except OSError as error:
        raise ValueError(f"{path!r} is not an image that Pillow can read ({error})") from error
    pixels = torch.from_numpy(np.asarray(scaled).copy()).reshape(shape[1], shape[2], -1).movedim(-1, 0)
    return pixels.to(torch.float32) / 255


def to_uint8(image: Tensor) -> np.ndarray[Any, Any]:
    """(C, H, W) in [0, 1] -> (H, W) or (H, W, 3) uint8."""
    pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def png_bytes(pixels: np.ndarray[Any, Any]) -> bytes:
    """A picture as the bytes of a PNG file, for a notebook or a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(path: Path) -> Tensor:
    """A saved image as (C, H, W) in [0, 1]."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy())
    return (pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)).to(torch.float32) / 255
