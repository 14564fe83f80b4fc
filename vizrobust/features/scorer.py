"""Redirected ReLU: a gradient for images whose own gradient dies in a ReLU (Mordvintsev and Olah, in Lucid)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vizrobust.compute import Compute
from vizrobust.features.objectives import Objective, main_term, reference_key, references_of
from vizrobust.features.objectives.objective import algebra
from vizrobust.features.pictures import reference_image
from vizrobust.models import ActivationReader, evaluating

_RELU = torch.ops.aten.threshold_backward.default
_RELU6 = torch.ops.aten.hardtanh_backward.default


class Redirections:
    """Which images were redirected, in the backward passes since the last `reset`."""

    def __init__(self) -> None:
        self._masks: list[Tensor] = []

    def reset(self) -> None:
        self._masks.clear()

    @property
    def sizes(self) -> list[int]:
        """Dimension 0 of what each ReLU saw, in the order of the backward pass."""
        return [len(mask) for mask in self._masks]

    @property
    def redirected(self) -> Tensor | None:
        """(N,) bool: the images for which some ReLU passed on what it would have held back; None without any ReLU.

        Where a network folds patches into the batch, the rows of an image follow each other and count together.
        Raises ``ValueError`` where dimension 0 cannot be the images at every ReLU.
        """
        if not self._masks:
            return None
        images = min(self.sizes)
        if any(size % images for size in self.sizes):
            sizes = ", ".join(map(str, sorted(set(self.sizes))))
            raise ValueError(
                f"dimension 0 of this network's ReLUs is not the images (sizes {sizes}); redirect one image at a time"
            )
        return torch.stack([mask.reshape(images, -1).any(1) for mask in self._masks]).any(0)


@contextmanager
def redirected_relu(one_image: bool = False) -> Iterator[Redirections]:
    """Inside, a ReLU through which an image gets no gradient at all passes on the part that would wake the ReLU up.

    That is the gradient where the input is negative and a larger input would raise what is differentiated, so
    differentiate scores, not their negatives (Lucid's redirected ReLU, here for each image by itself). No image depends
    on another, and an image that gets a gradient through every ReLU keeps it bit for bit. All ReLUs and ReLU6s that
    PyTorch differentiates count, whether modules, functions, methods or in place; a ReLU6 stuck at 6 is also released.

    Dimension 0 must be the images wherever a ReLU runs. Where it is not (``nn.TransformerEncoder`` with its defaults has
    tokens there), differentiate one image at a time with `one_image`, which takes all rows for that image's.

    Only the backward pass needs to run inside; forward values do not change, and nothing of the network is changed.
    Compiled code, and what only resembles a ReLU (``clamp``, hard swish), is differentiated as always.

    >>> x = torch.tensor([[-1.0, -2.0], [3.0, -4.0]], requires_grad=True)
    >>> with redirected_relu() as seen:
    ...     (grad,) = torch.autograd.grad((x.relu() * torch.tensor([1.0, -1.0])).sum(), x)
    >>> grad, seen.redirected
    (tensor([[1., 0.],
            [1., 0.]]), tensor([ True, False]))
    """
    seen = Redirections()
    with _Redirecting(seen._masks, one_image):
        yield seen


class _Redirecting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each elementary operation, also those of a backward pass, and replaces two of them."""

    def __init__(self, masks: list[Tensor], one_image: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masks, self.one_image = masks, one_image

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: hiding this from a compiler would load one, which takes seconds, and nothing is compiled inside."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _RELU and args[2] == 0:
            grad, result, _ = args
            return self._redirected(out, grad, (result <= 0) & (grad > 0), result > 0)
        if func is _RELU6 and args[2] == 0:
            grad, given, low, high = args
            back = ((given <= low) & (grad > 0)) | ((given >= high) & (grad < 0))
            return self._redirected(out, grad, back, (given > low) & (given < high))
        return out

    def _redirected(self, out: Tensor, grad: Tensor, back: Tensor, open_: Tensor) -> Tensor:
        """`out` for images with a gradient through what is `open_`, else the gradient at what can be brought `back`."""
        # Asked of the gradient rather than of `out`, which a second context around this one has already redirected.
        dead = ~self._any(open_ & (grad != 0))
        self.masks.append(dead & self._any(back))
        return torch.where(dead.reshape(-1, *[1] * (grad.dim() - 1)), torch.where(back, grad, 0.0), out)

    def _any(self, mask: Tensor) -> Tensor:
        """(N, ...) -> (N,), or (1,) where all of it is one image's."""
        return mask.reshape(1 if self.one_image else len(mask), -1).any(1)


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
