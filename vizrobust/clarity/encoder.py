"""A frozen network's view of images: its logits and features, whatever size and colours it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, resize

from vizrobust.compute import Compute, full_batches
from vizrobust.models import borrowed

BATCH_SIZE = 100

Kind = Literal["standard", "robust", "heavy", "given"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Opinion:
    """What a judge says of N images: `logits` (N, classes) and `features` (N, d), the input of its last linear layer."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Judge:
    """A checkpoint in the role of judge and encoder.

    `classes` are the names of its logits in an `Opinion`; `columns` says which of the network's own logits these are
    (None: all, in order). `kind` is how it was trained, `clean` its accuracy on its own test images where known.
    """

    name: str
    net: nn.Module
    classes: tuple[str, ...]
    compute: Compute
    kind: Kind = "given"
    input_shape: Shape | None = None
    columns: tuple[int, ...] | None = None
    clean: float | None = None
    sha256: str = ""

    def __call__(self, x: Tensor) -> Opinion:
        """(N, C, H, W) in [0, 1] -> opinion, on the CPU in float32, in batches of one size."""
        head = last_linear(self.net)
        logits: list[Tensor] = []
        features: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0].flatten(1)))
        self.compute.place(self.net)
        try:
            with borrowed(self.net), torch.no_grad():
                for index, count in full_batches(len(x), BATCH_SIZE):
                    images = fitted(self.compute.images(x[index]), self.input_shape)
                    logits.append(self.net(images)[:count].float().cpu())
                    features[-1] = features[-1][:count].float().cpu()
        finally:
            handle.remove()
        said = torch.cat(logits)
        return Opinion(said if self.columns is None else said[:, list(self.columns)], torch.cat(features))


def fitted(x: Tensor, shape: Shape | None) -> Tensor:
    """Images as a network takes them: (N, C, H, W) in [0, 1] -> (N, *shape), untouched where they fit or shape is None.

    Resized bilinearly with antialiasing, whatever the aspect; grey is repeated for every channel, colour becomes grey
    by its mean. Raises ``ValueError`` for any other number of channels.

    >>> fitted(torch.tensor([0.1, 0.2, 0.9]).reshape(1, 3, 1, 1), (1, 1, 1)).item()
    0.4000000059604645
    """
    if shape is None or tuple(x.shape[1:]) == shape:
        return x
    channels = x.shape[1]
    if channels != shape[0]:
        if 1 not in (channels, shape[0]):
            raise ValueError(f"the images have {channels} channels, the judge takes {shape[0]}; only grey can be made of them")
        x = x.mean(1, keepdim=True) if shape[0] == 1 else x.expand(-1, shape[0], -1, -1)
    if tuple(x.shape[2:]) != shape[1:]:
        x = resize(x, list(shape[1:]), InterpolationMode.BILINEAR, antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


def last_linear(net: nn.Module) -> nn.Linear:
    """The network's last linear layer: what stands before it is its view of an image."""
    found = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("a judge needs a linear layer at its end")
    return found[-1]
