"""An objective on a network: images in, one score per image out; plain functions may stand for objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.features.objectives import Objective, main_term, reference_key, references_of
from vizrobust.features.objectives.objective import algebra
from vizrobust.features.pictures import reference_image
from vizrobust.features.redirected_relu import redirected_relu
from vizrobust.models import ActivationReader, evaluating

Shape = tuple[int, int, int]
ObjectiveFunction = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scorer:
    """``scorer(image, unit)``: (N, C, H, W), (N,) int64 -> (N,) scores; differentiable. Call it within `evaluating(net)`."""

    net: nn.Module
    objective: Objective
    reading: ActivationReader
    references: Mapping[str, Tensor] = field(repr=False)
    _layout: list[bool] = field(default_factory=list, repr=False, compare=False)

    @staticmethod
    def of(net: nn.Module, objective: Objective, shape: Shape, compute: Compute, batch_size: int = 1) -> Scorer:
        """For images of `shape`. Reference images are run once, here, at the same batch size.

        Raises ``ValueError`` for an unknown layer or an objective without one, and where a reference is no image.
        """
        main_term(objective)
        reading = ActivationReader.of(net, shape, objective.layers)
        references: dict[str, Tensor] = {}
        for reference in references_of(objective):
            x = compute.images(reference_image(reference, shape).to(_dtype(net)).expand(batch_size, *shape))
            with evaluating(net), torch.no_grad(), compute.autocast():
                found = reading(net, x)
            references |= {reference_key(layer, reference): found[layer][:1].clone() for layer in objective.layers}
        return Scorer(net, objective, reading, references)

    def images_come_first(self, shape: Shape, compute: Compute) -> bool:
        """Whether dimension 0 of what each ReLU sees is the images (or images times something), as redirected ReLUs need.

        Found by two small backward passes of 2 and 3 images, once. Call it within `evaluating(net)`.
        """
        if not self._layout:
            sizes = [self._relu_sizes(images, shape, compute) for images in (2, 3)]
            self._layout.append(len(sizes[0]) == len(sizes[1]) and all(3 * a == 2 * b for a, b in zip(*sizes, strict=True)))
        return self._layout[0]

    def _relu_sizes(self, images: int, shape: Shape, compute: Compute) -> list[int]:
        noise = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0)).to(_dtype(self.net))
        x = compute.images(noise).requires_grad_()
        found = self.reading(self.net, x)
        with redirected_relu() as seen:
            torch.autograd.grad(torch.stack([one.float().sum() for one in found.values()]).sum(), x, allow_unused=True)
        return seen.sizes

    def activations(self, image: Tensor) -> Mapping[str, Tensor]:
        """What the objective reads for these images: their activations, and those of the reference images."""
        return {**self.reading(self.net, image), **self.references}

    def __call__(self, image: Tensor, unit: Tensor) -> Tensor:
        return self.objective(self.activations(image), image, unit)


@algebra
@dataclass(frozen=True)
class FunctionObjective:
    """A plain function (activations, image, unit) -> (N,) as an objective, with the layers that it read when it was tried."""

    function: ObjectiveFunction
    layers: tuple[str, ...]
    unit: int | None = None

    def __call__(self, activations: Mapping[str, Tensor], image: Tensor, unit: Tensor) -> Tensor:
        return self.function(activations, image, unit)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def as_objective(objective: Objective | ObjectiveFunction, net: nn.Module, shape: Shape, compute: Compute) -> Objective:
    """The objective itself, or a plain function as one: it is tried on a grey image to see which layers it reads.

    Raises ``ValueError`` for a function that does not return one number per image, and for an unknown layer.

    >>> from vizrobust.models import load_checkpoint
    >>> net = load_checkpoint("mnist-k8").net()
    >>> as_objective(lambda acts, image, unit: acts["conv2"][:, 3].amax((1, 2)), net, (1, 28, 28), Compute("cpu")).layers
    ('conv2',)
    """
    if isinstance(objective, Objective):
        return objective
    compute.place(net)
    image = compute.images(torch.full((2, *shape), 0.5, dtype=_dtype(net)))
    tried = _Tried(net, shape, image)
    with evaluating(net), torch.no_grad():
        scores = objective(tried, image, torch.zeros(2, dtype=torch.int64, device=image.device))
    found = FunctionObjective(objective, tuple(tried.read))
    if not isinstance(scores, Tensor) or scores.shape != (2,):
        what = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
        raise ValueError(f"objective {found!r} returned {what} for 2 images; return one number for each, shape (2,)")
    return found


class _Tried(Mapping[str, Tensor]):
    """The activations of any layer of a network, computed when asked for; `read` are the layers in order."""

    def __init__(self, net: nn.Module, shape: Shape, image: Tensor) -> None:
        self._net, self._shape, self._image = net, shape, image
        self.read: dict[str, Tensor] = {}

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self.read:
            self.read[layer] = ActivationReader.of(self._net, self._shape, [layer])(self._net, self._image)[layer]
        return self.read[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


def _dtype(net: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in net.parameters()), torch.float32)
