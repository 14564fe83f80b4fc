"""What layers keep of an image: which layers to ask, and how near a picture comes to the image in a layer's eyes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.features.pictures import reference_image
from vizrobust.models import ActivationReader, Checkpoint, evaluating, layers
from vizrobust.models.forward import modules
from vizrobust.requests import ParameterError

MOST_LAYERS, ENOUGH_LAYERS = 6, 4
SSIM_WINDOW = 7


@dataclass(frozen=True)
class Similarity:
    """How near a picture is to an image, in a layer's activations a (of the image a0) and in pixels.

    `error` is ``|a - a0|^2 / |a0|^2`` (0: the layer cannot tell them apart), `grey_baseline_error` that of a plain grey image,
    `relative_projection` ``a·a0 / |a0|^2`` (2: twice as much of the same) and `cosine` that of the angle between a and a0.
    `psnr` in decibel is None for equal pixels, `ssim` (Wang et al. 2004) for images of less than 7 pixels.
    """

    error: float
    grey_baseline_error: float
    relative_projection: float
    cosine: float
    psnr: float | None
    ssim: float | None

    def row(self) -> dict[str, float | None]:
        """The numbers under the keys of likeness.jsonl, some of which are older than the names here."""
        names = {"grey_baseline_error": "error_of_grey", "relative_projection": "multiple"}
        return {names.get(key, key): value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ImageActivations:
    """An image (C, H, W) and what some layers of a network make of it. Made by `of`."""

    image: Tensor
    net: nn.Module = field(repr=False)
    reading: ActivationReader = field(repr=False)
    activations: Mapping[str, Tensor] = field(repr=False)
    grey_activations: Mapping[str, Tensor] = field(repr=False)
    compute: Compute = field(repr=False)

    @staticmethod
    def of(
        checkpoint: Checkpoint, reference: str, names: Sequence[str], compute: Compute, size: int | None = None
    ) -> ImageActivations:
        """For the image that `reference` names, at the network's size or `size`; ``ValueError`` for a layer that answers 0."""
        c, h, w = checkpoint.info.input_shape
        shape = (c, h, w) if size is None else (c, size, size)
        image, net = reference_image(reference, shape), compute.place(checkpoint.net())
        reading = ActivationReader.of(net, shape, names)
        found = _read(net, reading, image, compute)
        silent = [name for name in names if not found[name].any()]
        if silent:
            raise ValueError(f"layer {silent[0]!r} of {checkpoint.name} answers {reference!r} with nothing but 0; take another")
        return ImageActivations(image, net, reading, found, _read(net, reading, torch.full_like(image, 0.5), compute), compute)

    def similarity(self, layer: str, picture: Tensor) -> Similarity:
        """Of a picture (C, H, W) in [0, 1] of the same size."""
        wanted = self.activations[layer]
        found = _read(self.net, self.reading, picture, self.compute)[layer]
        square = wanted.square().sum()

        def error(a: Tensor) -> float:
            return float((a - wanted).square().sum() / square)

        dot = (found * wanted).sum()
        cosine = float(dot / (found.norm() * square.sqrt()).clamp_min(1e-30))
        return Similarity(
            error(found), error(self.grey_activations[layer]), float(dot / square), cosine, *_in_pixels(self.image, picture)
        )


def representative_layers(net: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """At most six layers that hold weights, spread over the depth, the first and the last among them.

    They are taken from the outermost level of modules at which there are at least four: a residual network's stages,
    a transformer's blocks, the convolutions of a plain network.

    >>> from vizrobust.models import load_checkpoint
    >>> representative_layers(load_checkpoint("mnist-k8").net(), (1, 28, 28))
    ['conv1', 'conv2', 'linear1', 'linear2']
    """
    weighty = {name for name, module in modules(net).items() if any(weight.dim() > 1 for weight in module.parameters())}
    listed = [one.name for one in layers(net, shape) if one.visualizable and one.name in weighty]
    leaves = {name for name in listed if not any(other.startswith(f"{name}.") for other in listed)}
    levels = [
        [name for name in listed if name.count(".") == depth or (name.count(".") < depth and name in leaves)]
        for depth in range(1 + max((name.count(".") for name in listed), default=0))
    ]
    chosen = next((level for level in levels if len(level) >= ENOUGH_LAYERS), max(levels, key=len))
    if not chosen:
        raise ParameterError("this network has no layer with weights that can be visualized; name one as {layers}")
    count = min(MOST_LAYERS, len(chosen))
    return [chosen[round(i * (len(chosen) - 1) / max(1, count - 1))] for i in range(count)]


def _read(net: nn.Module, reading: ActivationReader, image: Tensor, compute: Compute) -> dict[str, Tensor]:
    """Each layer's activations in float64."""
    with evaluating(net), torch.no_grad():
        found = reading(net, compute.images(image[None]))
    return {name: tensor[0].cpu().double() for name, tensor in found.items()}


def _in_pixels(image: Tensor, picture: Tensor) -> tuple[float | None, float | None]:
    """PSNR and SSIM."""
    from skimage.metrics import structural_similarity

    a, b = (x.double().cpu().numpy() for x in (image, picture))
    missed = float(((a - b) ** 2).mean())
    psnr = -10 * math.log10(missed) if missed > 0 else None
    if min(a.shape[1:]) < SSIM_WINDOW:
        return psnr, None
    return psnr, float(structural_similarity(a, b, data_range=1.0, channel_axis=0))  # type: ignore[no-untyped-call]
