"""Networks that are masked in one way each, built around one sound network whose robustness is known exactly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.data import ArraySplit

SHAPE, CLASSES, IMAGES = (2, 9, 7), 4, 150  # every axis differs
# The linear network below is right at least up to half of this and wrong at 0.5, where every pixel can be grey.
SAFE, WIDE = 0.15, 0.6


def templates() -> Tensor:
    """(CLASSES, *SHAPE) of 0 and 1: each class's own picture."""
    return torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(3)).round()


def split(n: int = IMAGES) -> ArraySplit:
    """Templates with a tenth of their pixels flipped: black and white only, as in MNIST."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    flips = (torch.rand(n, *SHAPE, generator=generator) < 0.1).float()
    return ArraySplit((templates()[labels] - flips).abs(), labels)


class Sound(nn.Module):
    """The template that an image has most in common with: linear, so gradients say all."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter((templates().flatten(1) - 0.5) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


class Around(nn.Module):
    """A network with something done to it."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or Sound()


class Clamped(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.clamp(0, 1))


class Quantised(Around):
    """Rounding has no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((3 * x).round() / 3)


class Undifferentiable(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach())


class Softmax(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


class Hot(Around):
    """Logits so large that plain cross entropy has no gradient; a temperature of 1/1000."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class Dropping(Around):
    """Dropout that ``net.eval()`` does not switch off."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.3, training=True))


class OfTheBatch(Around):
    """Batch normalization without running statistics: an image's logits depend on the other images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(SHAPE[0], track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(0.5 + 0.3 * self.norm(x))


class Shattered(Around):
    """The right logits with a gradient that is noise."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = _Noise.apply(x, self.net)
        return logits


class Labelled(Around):
    """The predicted class and nothing else, with a gradient that is noise."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = _Noise.apply(x, lambda x: F.one_hot(self.net(x).argmax(1), CLASSES).to(x))
        return logits


class TwoFaced(Around):
    """Another network for whoever asks for gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).roll(1, dims=1) if x.requires_grad and torch.is_grad_enabled() else self.net(x)


class Purifying(Around):
    """Moves the image up its likeliest class before it answers."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(point).square().sum(), point)
        return self.net(x + 1e-3 * gradient.sign())


class Rippled(Around):
    """A fine ripple on the loss: its slope at an image says nothing of the fall over the ball."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.05 * torch.sin(400 * x))


class Jumpy(Around):
    """A ripple that is larger than the loss itself."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + 40 * torch.sin(1000 * x.flatten(1)[:, :CLASSES]) * F.one_hot(logits.argmax(1), CLASSES)


class Cratered(Around):
    """Wrong where two pixels are a little off black or white, which no step of PGD ends in and blind draws often do."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        off = torch.minimum(x, 1 - x).flatten(1)[:, :2]
        return torch.where(((off > 0) & (off < 0.03)).all(1, keepdim=True), logits.roll(1, dims=1), logits)


class Rooted(Around):
    """The right logits, whose gradient at black pixels is 0 times infinity."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sqrt().square())


class Undefined(Around):
    """Without any answer where the first pixel is neither black nor white."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return self.net(x).masked_fill((first > 0) & (first < 1), torch.nan)


class Decoys(Around):
    """Many classes just below the second best, whose gradient leads the other way: cross entropy follows the many."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        second = logits.topk(2, dim=1).values[:, 1:]
        decoy = second.detach() - 0.1 - 10 * (second - second.detach())
        return torch.cat((logits, decoy.expand(-1, 20)), dim=1)


class _Noise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, net: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        return net(x).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Another for each batch of points, and not from torch's global generator: the network itself is not random.
        (x,) = ctx.saved_tensors
        seed = int(x.double().sum() * 1e6) % 2**31
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)), None
