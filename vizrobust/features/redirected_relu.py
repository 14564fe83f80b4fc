"""Redirected ReLU: a gradient for images whose own gradient dies in a ReLU (Mordvintsev and Olah, in Lucid)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
