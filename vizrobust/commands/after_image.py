"""`invert`, `caricature` and `accentuate` as Python calls them: after a tensor too, of networks given as objects."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vizrobust.commands import reconstruct
from vizrobust.commands.pictures import PictureReport
from vizrobust.features.pictures import keep_image
from vizrobust.requests.pictures import AccentuateRequest, CaricatureRequest, InvertRequest
from vizrobust.results import Event
from vizrobust.session import Session, answered_with_files, several


def invert(
    models: Any, image: str | Path | Tensor, data: Any = None, *, layers: str | Sequence[str] = (), device: str = "auto",
    out: str | Path | None = None, **parameters: Any,
) -> PictureReport:  # fmt: skip
    """What each layer keeps of an image: from noise, pictures with its activations (Mahendran & Vedaldi 2015).

    `models` are as for `compare`. `image` is a file (a picture, or a .npy of (C, H, W) in [0, 1]), ``DATA#index`` for a test
    image, or a tensor (C, H, W) in [0, 1]; it is brought to the network's size. A bare network takes its shape from
    ``shape=(C, H, W)``, from `data` or from the tensor. `layers` are names (none: up to six of them); `parameters` are the other
    fields of `requests.pictures.InvertRequest`. ``.rows()`` has each picture's error in the layer, PSNR and SSIM, ``.image()``
    the sheet; with `out` all is kept in a run folder and continued there. Raises ``ValueError`` for a layer that does not exist
    and for values outside [0, 1].

    >>> import vizrobust as vr
    >>> (row,) = vr.invert("mnist-k8", "mnist5k#3", layers="conv1", steps=2).rows()
    >>> row["layer"], row["error"] < row["error_of_grey"]
    ('conv1', True)
    """
    return _answer(reconstruct.invert, InvertRequest, models, image, data, device, out, layers=several(layers), **parameters)


def caricature(
    models: Any, image: str | Path | Tensor, data: Any = None, *, layers: str | Sequence[str] = (), device: str = "auto",
    out: str | Path | None = None, **parameters: Any,
) -> PictureReport:  # fmt: skip
    """Pictures to which layers answer as they do to an image, only more strongly (caricatures, Olah et al. 2018).

    All but the last are as for `invert`. `parameters` are the other fields of `requests.pictures.CaricatureRequest`, such as
    ``power`` and ``start``. ``.rows()`` has the projection on the image's own activations, as ``multiple`` of it, and the
    ``cosine``. Raises ``ValueError`` as `invert` does.

    >>> import torch
    >>> import vizrobust as vr
    >>> (row,) = vr.caricature("mnist-k8", torch.rand(1, 28, 28), layers="conv1", steps=2).rows()
    >>> -1 <= row["cosine"] <= 1
    True
    """
    return _answer(
        reconstruct.caricature, CaricatureRequest, models, image, data, device, out, layers=several(layers), **parameters
    )


def accentuate(
    models: Any, image: str | Path | Tensor, units: Sequence[int] | str | None = None, data: Any = None, *, near: str,
    layer: str = "logits", hold: float = 1.0, device: str = "auto", out: str | Path | None = None, **parameters: Any,
) -> PictureReport:  # fmt: skip
    """An image changed so that units are excited more, while a layer's answer to it is kept (Hamblin et al. 2024, §3).

    `models`, `image`, `data` and `out` are as for `invert`, `layer` and `units` as for `visualize`. `near` is the layer whose
    answer is kept, `hold` how much its change costs (0: nothing). `parameters` are the other fields of
    `requests.pictures.AccentuateRequest`. ``.rows()`` has the unit's activation for the image, ``activation_of_image``, and for
    the picture. Raises ``ValueError`` for a layer or unit that does not exist, and for a negative `hold`.

    >>> import vizrobust as vr
    >>> (row,) = vr.accentuate("mnist-k8", "mnist5k#3", [4], near="conv1", steps=4).rows()
    >>> row["activation"] > row["activation_of_image"]
    True
    """
    fields = {"units": units, "near": near, "layer": layer, "hold": hold, **parameters}
    return _answer(reconstruct.accentuate, AccentuateRequest, models, image, data, device, out, **fields)


def _answer(
    command: Callable[..., Generator[Event, None, PictureReport]], request: type, models: Any, image: str | Path | Tensor,
    data: Any, device: str, out: str | Path | None, shape: tuple[int, int, int] | None = None, **fields: Any,
) -> PictureReport:  # fmt: skip
    """The answer of a command to a request of these fields; a tensor is kept as a file of the run folder."""
    if shape is None and isinstance(image, Tensor) and image.dim() == 3:
        shape = (image.shape[0], image.shape[1], image.shape[2])
    session = Session(device=device, memory=True)
    known = tuple(session.pictured(one, data, shape)[0] if isinstance(one, nn.Module) else one for one in several(models))

    def asked(folder: Path) -> Any:
        kept = keep_image(image, folder) if isinstance(image, Tensor) else str(image)
        return request(models=known, image=kept, data=data, **fields)

    found: PictureReport = answered_with_files(command, asked, out, device)
    return found
