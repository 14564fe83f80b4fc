"""The shortest way to a linearised decision boundary that stays in [0, 1], in each norm."""

from __future__ import annotations

import torch
from torch import Tensor

from vizrobust.attacks.balls import L2, Ball, Linf, per_image

AXES = (1, 2, 3)


def dual_norm(ball: Ball, grad: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,): how much a linear function of this gradient can change over a ball of radius 1."""
    if isinstance(ball, Linf):
        return grad.abs().sum(AXES)
    if isinstance(ball, L2):
        # Brought to size 1 first: the squares of a vanishing gradient underflow.
        largest = grad.abs().amax(AXES)
        return largest * ball.norm(grad / per_image(largest.masked_fill(largest == 0, 1), grad))
    raise _unknown(ball)


def to_boundary(ball: Ball, point: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
    """The smallest move in the ball's norm with gap + <grad, move> = 0 and point + move in [0, 1].

    `point` and `grad` are (N, C, H, W), `gap` (N,). Where no point of the box lies on the plane, it is the move to the
    box's corner nearest to it; where the gradient is 0 there is no way to go and the move is 0.
    (The projections of Croce & Hein 2020, section 2.2, in another form.)
    """
    largest = grad.abs().amax(AXES)
    # Brought to size 1, so that neither squares nor quotients of vanishing gradients under- or overflow.
    largest = largest.masked_fill(largest == 0, 1)
    heading = -grad.sign() * per_image(gap.sign(), grad)
    steepness, climb = grad.abs() / per_image(largest, grad), gap.abs() / largest
    room = torch.where(heading > 0, 1 - point, point)  # of no consequence where there is no heading
    if isinstance(ball, Linf):
        # Every pixel moves by the same length, those with less room to their bound.
        length = torch.minimum(room, per_image(_level(steepness, room, steepness * room, climb), room))
    elif isinstance(ball, L2):
        # Every pixel moves in proportion to its gradient, those with less room to their bound.
        reach = room / steepness.masked_fill(steepness == 0, 1)
        level = per_image(_level(steepness**2, reach, steepness * room, climb), room)
        length = torch.where(reach <= level, room, level * steepness)
    else:
        raise _unknown(ball)
    return heading * length


def _level(weight: Tensor, reach: Tensor, full: Tensor, height: Tensor) -> Tensor:
    """The level (N,) at which sum_i min(weight_i · level, full_i) = height, where full = weight · reach; inf where none is.

    Newton's method from level 0. The sum is concave and piecewise linear in the level, so no step goes too far, and the
    one taken in the right piece is exact. A row that has arrived stays, so it does not matter how long the others take.
    """
    weight, reach, full = weight.flatten(1), reach.flatten(1), full.flatten(1)
    level, free = torch.zeros_like(height), torch.empty_like(reach)
    while True:
        # As 0.0 and 1.0 to multiply by: filling by masks takes several times as long.
        torch.gt(reach, level[:, None], out=free)
        rest = height - torch.addcmul(full, full, free, value=-1).sum(1)
        slope = (weight * free).sum(1)
        # Rounding must not turn the way up into a circle.
        new = torch.maximum(level, torch.where(slope > 0, rest / slope.masked_fill(slope == 0, 1), torch.inf))
        if torch.equal(new, level):
            return level
        level = new


def _unknown(ball: Ball) -> ValueError:
    return ValueError(f"there is no projection onto a decision boundary in {type(ball).__name__}; use Linf or L2")
