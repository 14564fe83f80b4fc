"""A network under an objective: images in, scores out, by one forward pass to the deepest layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.features.objectives import Objective, of, references_of, subject
from vizrobust.features.pictures import reference_image
from vizrobust.models import Reading, borrowed

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Scorer:
    """``scorer(image, unit)``: (N, C, H, W), (N,) int64 -> (N,) scores; differentiable. Call it with the network borrowed."""

    net: nn.Module
    objective: Objective
    reading: Reading
    known: Mapping[str, Tensor] = field(repr=False)

    @staticmethod
    def of(net: nn.Module, objective: Objective, shape: Shape, compute: Compute, batch_size: int = 1) -> Scorer:
        """For images of `shape`. What the objective compares with is looked up here, once, at the same batch size.

        Raises ``ValueError`` for an unknown layer or an objective without one, and where a reference is no image.
        """
        subject(objective)
        reading = Reading.of(net, shape, objective.layers)
        known: dict[str, Tensor] = {}
        for reference in references_of(objective):
            x = compute.images(reference_image(reference, shape).to(_dtype(net)).expand(batch_size, *shape))
            with borrowed(net), torch.no_grad(), compute.autocast():
                found = reading(net, x)
            known |= {of(layer, reference): found[layer][:1].clone() for layer in objective.layers}
        return Scorer(net, objective, reading, known)

    def seen(self, image: Tensor) -> Mapping[str, Tensor]:
        """What the objective reads for these images: their activations, and those of the references."""
        return {**self.reading(self.net, image), **self.known}

    def __call__(self, image: Tensor, unit: Tensor) -> Tensor:
        return self.objective(self.seen(image), image, unit)


def _dtype(net: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in net.parameters()), torch.float32)
