"""The decision boundaries around an image, linearised: which of them is nearest, and how it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.attacks.balls import Ball, per_image
from vizrobust.attacks.boundary_projection import dual_norm


def rivals(logits: Tensor, y: Tensor) -> Tensor:
    """(N, classes), (N,) -> (N, classes - 1): the wrong classes, the likeliest first."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return torch.where(own, -torch.inf, logits).argsort(dim=1, descending=True, stable=True)[:, :-1]


@dataclass(frozen=True)
class Boundary:
    """For each image one linearised decision boundary: the plane of all z with gap + <grad, z - point> = 0.

    `gap` (N,) is the wrong class's logit minus the label's, `grad` (N, C, H, W) its gradient, `distance` (N,) how far the
    plane is in the ball's norm: inf where the gradient is 0.
    """

    gap: Tensor
    grad: Tensor
    distance: Tensor


def nearest_boundary(ball: Ball, logits: Tensor, point: Tensor, y: Tensor, against: Tensor) -> Boundary:
    """The nearest of the boundaries between the class y and the classes `against` (N, k), for k backward passes.

    `logits` (N, classes) come from `point` (N, C, H, W) and carry its graph.
    """
    gaps = (logits.gather(1, against) - logits.gather(1, y[:, None])).to(point.dtype)
    count = against.shape[1]
    nearest: Boundary | None = None
    for k in range(count):
        (grad,) = torch.autograd.grad(gaps[:, k].sum(), point, retain_graph=k + 1 < count)
        gap, size = gaps[:, k].detach(), dual_norm(ball, grad)
        new = Boundary(gap, grad, torch.where(size > 0, gap.abs() / size.masked_fill(size == 0, 1), torch.inf))
        nearest = new if nearest is None else _nearer(nearest, new)
    if nearest is None:
        raise ValueError("a network with one class has no decision boundary; give one with at least two")
    return nearest


def _nearer(a: Boundary, b: Boundary) -> Boundary:
    nearer = b.distance < a.distance
    return Boundary(
        torch.where(nearer, b.gap, a.gap),
        torch.where(per_image(nearer, b.grad), b.grad, a.grad),
        torch.where(nearer, b.distance, a.distance),
    )
