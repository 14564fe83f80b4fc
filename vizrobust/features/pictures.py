"""Between tensors and picture files: 8-bit pixels, PNGs read back, an image to start from or to compare with."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vizrobust.data import load
from vizrobust.data.dataset import as_float, check_images
from vizrobust.data.images import pixels, read_image
from vizrobust.data.sources import LUMA
from vizrobust.features.parametrizations import over_background
from vizrobust.runs import file_sha256, write_atomic

Shape = tuple[int, int, int]
TEST_IMAGE = re.compile(r"(.+)#(\d+)")
KEPT = ".image-"  # how files of images given as tensors begin
COLOURS = (1, 3)  # channels of grey images and of coloured ones


def reference_image(reference: str, shape: Shape) -> Tensor:
    """The image that a text names, (C, H, W) in [0, 1] at `shape`: a file, or ``DATA#index``, a data set's test image.

    The file is a picture, or a .npy of the array (C, H, W) in [0, 1], which may have any number of channels.

    >>> reference_image("mnist5k#3", (1, 28, 28)).shape
    torch.Size([1, 28, 28])
    """
    image = _array(reference)
    if image is None:
        return _file_image(reference, shape)
    image = _with_channels(image, shape[0], reference)
    if image.shape == shape:
        return image
    return torch.nn.functional.interpolate(image[None], shape[1:], mode="bilinear", antialias=True)[0].clamp(0, 1)


def reference_sha256(reference: str) -> str:
    """The hash of the file that `reference` names, or of the test image's own numbers."""
    image = _array(reference)
    if image is not None:
        return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    if not Path(reference).is_file():
        raise _no_file(reference)
    return file_sha256(reference)


def _array(reference: str) -> Tensor | None:
    """(C, H, W) as the .npy file or the data set has it, or None where the text names a picture."""
    if reference.endswith(".npy") and Path(reference).is_file():
        return _npy(reference)
    named = TEST_IMAGE.fullmatch(reference)
    if named is None or Path(reference).exists():
        return None
    images = load(named[1]).test
    if int(named[2]) >= len(images):
        raise ValueError(f"no image {named[2]} in {named[1]}, whose test images are 0 to {len(images) - 1}")
    return images.take(torch.tensor([int(named[2])]))[0]


def _npy(path: str) -> Tensor:
    try:
        image = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"cannot read {path!r} as .npy ({error}); write it with numpy.save") from error
    check_images(image[None], f"{path!r}: images")
    return image


def keep_image(image: Tensor, folder: Path) -> str:
    """Write an image (C, H, W) in [0, 1] to a hidden file of a run folder; returns its reference.

    The name has the hash of the numbers, so that a folder never answers for another image.
    """
    if image.dim() != 3:
        raise ValueError(f"the image is {tuple(image.shape)}; give (C, H, W)")
    check_images(image[None], "the image's values")
    array = np.ascontiguousarray(image.detach().cpu().float().numpy())
    path = folder / f"{KEPT}{hashlib.sha256(array.tobytes()).hexdigest()[:8]}.npy"
    write_atomic(path, lambda file: np.save(file, array))
    return str(path)


def title_of(reference: str) -> str:
    """What a reference is called in a title.

    >>> title_of("runs/a/.image-12ab34cd.npy"), title_of("mnist5k#3")
    ('image 12ab34cd', 'mnist5k#3')
    """
    name = Path(reference).name
    return f"image {name.removeprefix(KEPT)[:8]}" if name.startswith(KEPT) else reference


def _with_channels(image: Tensor, channels: int, reference: str) -> Tensor:
    """(C, H, W) -> (channels, H, W): grey in all channels, or the luma of colours, as Pillow has it for files."""
    if len(image) == channels:
        return image
    if len(image) == 1:
        return image.repeat(channels, 1, 1)
    if len(image) == 3 and channels == 1:
        return (image * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    raise ValueError(f"{reference!r} has {len(image)} channels, the network takes {channels}; give an image of as many")


def _file_image(path: str, shape: Shape) -> Tensor:
    """An image file, scaled and cut to the network's input."""
    if shape[0] not in (1, 3):
        raise ValueError(f"{path!r} is grey or has three colours, the network takes {shape[0]} channels; give DATA#index")
    if not Path(path).is_file():
        raise _no_file(path)
    picture = read_image(path, shape[0])
    # Nothing is squeezed: the shorter side is scaled, and what the longer one has more is cut off on both sides.
    scaled = ImageOps.fit(picture, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    return as_float(pixels(scaled, shape[0]))


def check_pixels(images: Tensor, what: str) -> Tensor:
    """The images (..., C, H, W) themselves; ``ValueError`` unless they are floating point, finite and in [0, 1].

    >>> check_pixels(torch.tensor([0.0, 255.0]), "the start image")
    Traceback (most recent call last):
    ValueError: the start image holds values from 0 to 255; give floating point values in [0, 1]
    """
    if not images.is_floating_point():
        raise ValueError(f"{what} is of type {images.dtype}; give floating point values in [0, 1]")
    if not images.isfinite().all():
        raise ValueError(f"{what} holds {int((~images.isfinite()).sum())} NaN or infinite values; give finite values in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(f"{what} holds values from {low:g} to {high:g}; give floating point values in [0, 1]")
    return images


def _no_file(path: str) -> FileNotFoundError:
    return FileNotFoundError(f"no image file {path!r}; give a file, or DATA#index for a test image (mnist5k#3)")


def to_uint8(image: Tensor) -> np.ndarray[Any, Any]:
    """(C, H, W) in [0, 1] -> (H, W) or (H, W, C) uint8; of grey or colours with an opacity, (H, W, 2) or (H, W, 4)."""
    pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def in_tiles(image: Tensor, channels: int) -> Tensor:
    """A network's image (channels, ..., W) as it is shown: grey and colours as they are, other bands side by side, each grey.

    Bands are not colours, and a second or fourth band is no opacity.

    >>> in_tiles(torch.rand(4, 5, 6), 4).shape, in_tiles(torch.rand(3, 5, 6), 3).shape
    (torch.Size([1, 5, 24]), torch.Size([3, 5, 6]))
    """
    return image if channels in COLOURS else torch.cat(list(image), -1)[None]


def png_bytes(pixels: np.ndarray[Any, Any]) -> bytes:
    """A picture as the bytes of a PNG file, for a notebook or a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(path: Path, channels: int | None = None) -> Tensor:
    """A saved image as (C, H, W) in [0, 1], for a network of so many `channels`.

    Where it has one plane more than `channels` asks for, that is its opacity, and the image is that over mid grey. Bands
    that were saved side by side (see `in_tiles`) are taken apart.
    """
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture).copy())
    image = (pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)).to(torch.float32) / 255
    if channels is None or len(image) == channels:
        return image
    if len(image) == 1 and channels not in COLOURS:
        return torch.stack(image[0].chunk(channels, dim=1))
    return over_background(image) if len(image) == channels + 1 else image


def read_opaque(path: Path) -> np.ndarray[Any, Any]:
    """A saved image as (H, W) or (H, W, 3) uint8, to be drawn; one with an opacity over mid grey."""
    with Image.open(path) as picture:
        if picture.mode not in ("LA", "RGBA"):
            return np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
        planes = len(picture.getbands())
    return to_uint8(read_png(path, planes - 1))


# How files of the kinds that a run folder's rows name begin.
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".gif": b"GIF8"}


def picture_inside(folder: Path | str, name: Any) -> Path | None:
    """The picture that a row names; None where it is missing.

    Raises ``ValueError`` for a file outside the folder (also through a link) and for one that is no PNG or GIF: the rows may
    be from somebody else, and a page hands on what it embeds.
    """
    path, suffix = Path(folder) / str(name), Path(str(name)).suffix.lower()
    row = f"a row of {str(folder)!r} names {str(name)!r}"
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{row}, which is outside that folder; nothing outside it is shown")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begins = file.read(8)
    if suffix not in SIGNATURES or not begins.startswith(SIGNATURES[suffix]):
        raise ValueError(f"{row}, which is no PNG or GIF; nothing else is shown")
    return path
