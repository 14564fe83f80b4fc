"""An outside judge: a frozen network that none of the compared checkpoints has anything to do with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.compute import Compute, full_batches
from vizrobust.models import Checkpoint, borrowed, load_checkpoint

# Trained on MNIST images outside the 5,000 of mnist5k, with another architecture than the built-in sweep's.
BUILTIN = {"mnist5k": "mnist-judge"}
BATCH_SIZE = 100


@dataclass(frozen=True)
class Opinion:
    """What a judge says of N images: `logits` (N, classes) and `features` (N, d), the input of its last linear layer."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Judge:
    """A checkpoint in the role of judge and encoder."""

    name: str
    net: nn.Module
    classes: tuple[str, ...]
    compute: Compute

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
                    logits.append(self.net(self.compute.images(x[index]))[:count].float().cpu())
                    features[-1] = features[-1][:count].float().cpu()
        finally:
            handle.remove()
        return Opinion(torch.cat(logits), torch.cat(features))


def judge_for(data: str, compared: Sequence[Checkpoint], compute: Compute, ref: str | None = None) -> Judge | None:
    """The judge `ref`, or the built-in one for a data set; None where there is none.

    Raises ``ValueError`` where the judge is one of the compared checkpoints or takes other images or classes, and
    warns where it was trained on the same data as one of them: such a judge saturates.
    """
    ref = ref or BUILTIN.get(data)
    if ref is None:
        return None
    checkpoint = load_checkpoint(ref)
    for other in compared:
        if checkpoint.sha256 == other.sha256:
            raise ValueError(f"the judge {ref!r} is one of the compared checkpoints ({other.name}); name another --judge")
        if checkpoint.about.input_shape != other.about.input_shape or len(checkpoint.about.classes) != len(other.about.classes):
            takes = f"{checkpoint.about.input_shape} and {len(checkpoint.about.classes)} classes"
            has = f"{other.about.input_shape} and {len(other.about.classes)}"
            raise ValueError(f"the judge {ref!r} takes {takes}, {other.name} {has}; name another --judge")
        if checkpoint.about.data and checkpoint.about.data == other.about.data:
            warnings.warn(f"the judge {ref!r} was trained on {other.about.data}, as {other.name} was", stacklevel=2)
    return Judge(ref, checkpoint.net(), checkpoint.about.classes, compute)


def last_linear(net: nn.Module) -> nn.Linear:
    """The network's last linear layer: what stands before it is its view of an image."""
    found = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("a judge needs a linear layer at its end")
    return found[-1]
