"""Threat models: the perturbations that an attack may use, as norm, projections, steepest step and sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vizrobust.rng import Streams
from vizrobust.spec import lookup, named, spec

# The least divisor where a norm may be 0.
TINY = 1e-12
# The share of an image's values that an L1 step moves: the 99 % quantile of Tramèr & Boneh (2019).
L1_SPARSITY = 0.01


@runtime_checkable
class Ball(Protocol):
    """A threat model: perturbations (N, C, H, W) of norm at most `eps`, in units of [0, 1] pixels.

    ``eps=None`` stands for the usual eps of the data set, which `configured` fills in.
    """

    @property
    def eps(self) -> float | None: ...
    def norm(self, delta: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,)"""

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation in the ball."""

    def project_image(self, x: Tensor, adv: Tensor) -> Tensor:
        """`adv` projected into the ball around `x` and into [0, 1]; all (N, C, H, W), `x` in [0, 1].

        For L-inf, L1 and L0 the nearest such image; for L2, as usual, the projection onto the ball and then onto [0, 1].
        """

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        """The direction of norm 1 in which a function with this gradient grows fastest; 0 where the gradient is 0.

        `at` are the images where the step starts, for balls that leave out values that cannot move there.
        """

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        """Uniform in the ball, shaped and typed like `like`, each image from its own stream."""


def epsilon(ball: Ball) -> float:
    """The ball's eps; ``ValueError`` if it is not chosen yet.

    >>> epsilon(Linf(eps=0.25))
    0.25
    """
    if ball.eps is None:
        name = type(ball).__name__
        raise ValueError(f"{name}() has no eps: write {name}(eps=8/255), or give the attack eps=8/255")
    return ball.eps


@dataclass(frozen=True)
class EpsShare:
    """A share of the attack's own eps, whatever that is: a step size ``alpha=eps/16``, which ``EpsShare(1 / 16)`` is too.

    >>> EpsShare() / 16, 2.5 * EpsShare() / 100, EpsShare(1 / 16).of(8 / 255) == 0.5 / 255
    (eps/16, eps/40, True)
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float):
            raise ValueError(f"EpsShare: share must be a number, got {self.share!r}")

    def of(self, eps: float) -> float:
        """The number that it stands for."""
        return self.share * eps

    def __mul__(self, by: float) -> EpsShare:
        return EpsShare(self.share * by) if isinstance(by, int | float) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, by: float) -> EpsShare:
        return EpsShare(self.share / by) if isinstance(by, int | float) else NotImplemented

    def __repr__(self) -> str:
        parts = round(1 / self.share) if self.share > 0 else 0
        if parts > 0 and 1 / parts == self.share:
            return "eps" if parts == 1 else f"eps/{parts}"
        return f"{self.share!r} * eps"


def step_size(attack: object, eps: float, usual: float) -> float:
    """The length of an attack's steps: its `alpha`, a share of `eps` where that is an `EpsShare`, `usual` for None."""
    alpha: float | EpsShare | None = getattr(attack, "alpha", None)
    if isinstance(alpha, EpsShare):
        return alpha.of(eps)
    return usual if alpha is None else alpha


def is_positive(number: float | EpsShare) -> bool:
    """Whether a step size is finite and not negative."""
    value = number.share if isinstance(number, EpsShare) else number
    return 0 <= value < math.inf


@dataclass(frozen=True)
class _Radius:
    """The field of all balls."""

    eps: float | None = None

    def __post_init__(self) -> None:
        if self.eps == math.inf:
            raise ValueError(f"{type(self).__name__}: eps must be finite, got {self.eps:g}")
        if self.eps is not None and self.eps < 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {self.eps:g}")


@spec
@dataclass(frozen=True)
class Linf(_Radius):
    """The L-inf ball: no value changes by more than eps, a number from 0 to 1, such as 8/255.

    Raises ``ValueError`` for an eps below 0 or above 1.

    >>> Linf(eps=8 / 255).norm(torch.full((2, 1, 4, 3), -0.5))
    tensor([0.5000, 0.5000])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps is not None and self.eps > 1:
            raise ValueError(f"Linf: eps {self.eps:g} is above 1; images are in [0, 1], so write {self.eps:g}/255")

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)

    def project(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        if radius is None:
            return delta.clamp(-epsilon(self), epsilon(self))
        reach = per_image(radius, delta)
        return delta.clamp(-reach, reach)

    def project_image(self, x: Tensor, adv: Tensor) -> Tensor:
        return (x + self.project(adv - x)).clamp_(0, 1)

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        return grad.sign()

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        return (2 * streams.uniform(*like.shape[1:]) - 1).to(like) * epsilon(self)


@spec
@dataclass(frozen=True)
class L2(_Radius):
    """The L2 ball: the Euclidean length of the change over all pixels and channels is at most eps.

    Raises ``ValueError`` for an eps below 0.

    >>> L2(eps=1.0).project(torch.full((1, 1, 4, 4), 1.0)).norm()
    tensor(1.)
    """

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        reach = epsilon(self) if radius is None else radius
        return delta * per_image((reach / self.norm(delta).clamp_min(TINY)).clamp_max(1), delta)

    def project_image(self, x: Tensor, adv: Tensor) -> Tensor:
        return (x + self.project(adv - x)).clamp_(0, 1)

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        # Brought to size 1 first: the squares of a vanishing gradient underflow, and not to move would mask it.
        largest = grad.abs().flatten(1).amax(1)
        grad = grad / per_image(largest.masked_fill(largest == 0, 1), grad)
        return grad / per_image(self.norm(grad).clamp_min(TINY), grad)

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        direction = self.steepest_direction(streams.normal(*like.shape[1:]).to(like))
        # The volume within radius r grows as r^d, so r = u^(1/d) is uniform over the ball.
        length = streams.uniform().to(like) ** (1 / like[0].numel())
        return direction * per_image(length, like) * epsilon(self)


@spec
@dataclass(frozen=True)
class L1(_Radius):
    """The L1 ball: the absolute changes of all pixels and channels sum to at most eps.

    The true steepest direction moves a single value, which a step soon makes white or black. As in the sparse descent of
    Tramèr & Boneh (2019), `steepest_direction` moves the 1 % of the values with the largest gradient by the same amount
    each, and, where it is given the images, none that is already 0 or 1 in that direction. Raises ``ValueError`` for an
    eps below 0.

    >>> L1(eps=1.0).project(torch.tensor([[[[0.9, -0.5, 0.1]]]]))
    tensor([[[[ 0.7000, -0.3000,  0.0000]]]])
    """

    def norm(self, delta: Tensor) -> Tensor:
        # In float32 a sum over an image is off by more than the 1e-6 to which results are held.
        return delta.abs().flatten(1).sum(1, dtype=sum_type(delta)).to(delta.dtype)

    def project(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        size = delta.abs().flatten(1).to(sum_type(delta))
        reach = torch.full_like(size[:, :1], epsilon(self)) if radius is None else radius[:, None].to(size)
        # The threshold of Duchi et al. (2008): the mean excess of the k largest values, at the k where it is largest;
        # counted from the largest value down, so that nothing cancels where that is far outside the ball.
        below = size - size.amax(1, keepdim=True)
        # Values of 0 never raise it, and a sparse change has few others to sort.
        count = torch.arange(1, max(1, int((size > 0).sum(1).max())) + 1, device=size.device, dtype=size.dtype)
        excess = (below.topk(len(count), 1).values.cumsum(1) - reach * _almost(delta)) / count
        cut = (below - excess.amax(1, keepdim=True)).clamp_min(0)
        inside = size.sum(1, keepdim=True) <= reach
        return _shortened(torch.zeros_like(delta), delta, torch.where(inside, size, cut))

    def project_image(self, x: Tensor, adv: Tensor) -> Tensor:
        return nearest_in_l1(x, adv, torch.full((len(x),), epsilon(self), device=x.device, dtype=sum_type(x)))

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        share = torch.full((len(grad),), L1_SPARSITY, device=grad.device)
        return sparse_step(movable(grad, at) if at is not None else grad, share)

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        # Exponential variables over their sum, one more than there are values, are uniform in the simplex.
        draws = streams.uniform(like[0].numel() + 1).to(torch.float64)
        sides = torch.where(draws < 0.5, -1.0, 1.0)
        lengths = -torch.log1p(-(2 * draws % 1))
        inside = sides * lengths / lengths.sum(1, keepdim=True)
        return (inside[:, :-1] * epsilon(self)).reshape(like.shape).to(like)


@spec
@dataclass(frozen=True)
class L0(_Radius):
    """The L0 ball: at most eps of an image's values change, each by any amount.

    A value is one number of the tensor, as in FMN and sigma-zero, so a pixel of three channels is three values. An eps
    between two whole numbers allows the smaller of them. The steepest direction has no length of its own here: it is the
    gradient, scaled so that its largest value moves by 1. `project_image` is the nearest image in the ball and in [0, 1],
    `sample` uniform over the values changed and, for each, over [-1, 1]. Raises ``ValueError`` for an eps below 0.

    >>> L0(eps=2).project(torch.tensor([[[[0.9, -0.5, 0.1]]]]))
    tensor([[[[ 0.9000, -0.5000,  0.0000]]]])
    """

    def norm(self, delta: Tensor) -> Tensor:
        return (delta != 0).flatten(1).sum(1).to(delta.dtype)

    def project(self, delta: Tensor, radius: Tensor | None = None) -> Tensor:
        return delta * self._kept(delta.abs(), radius)

    def project_image(self, x: Tensor, adv: Tensor, radius: Tensor | None = None) -> Tensor:
        inside = adv.clamp(0, 1)
        # What keeping a value saves in squared distance: all of it, but for the part outside [0, 1].
        return torch.where(self._kept((adv - x) ** 2 - (adv - inside) ** 2, radius), inside, x)

    def steepest_direction(self, grad: Tensor, at: Tensor | None = None) -> Tensor:
        grad = movable(grad, at) if at is not None else grad
        largest = grad.abs().flatten(1).amax(1)
        return grad / per_image(largest.masked_fill(largest == 0, 1), grad)

    def sample(self, like: Tensor, streams: Streams) -> Tensor:
        draws = streams.uniform(2, *like.shape[1:])
        return self.project_image(torch.zeros_like(like), draws[:, 0].to(like)).sign() * (2 * draws[:, 1] - 1).to(like)

    def _kept(self, gain: Tensor, radius: Tensor | None) -> Tensor:
        """Whether a value is among the eps (or `radius` (N,)) of largest gain, the first of equal ones."""
        flat = gain.flatten(1)
        if radius is None:
            radius = torch.full_like(flat[:, 0], min(epsilon(self), flat.shape[1]))
        count = radius.floor().long().clamp(0, flat.shape[1])[:, None]
        most = int(count.max())
        if most == 0:
            return torch.zeros_like(gain, dtype=torch.bool)
        least = flat.topk(most, 1).values.gather(1, (count - 1).clamp_min(0))
        above, equal = flat > least, flat == least
        first = equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True))
        return ((above | first) & (count > 0) & (flat > 0)).reshape(gain.shape)


def dual_norm(ball: Ball, grad: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,): the most that a linear function with this gradient grows per unit of the ball's norm.

    >>> dual_norm(Linf(), torch.tensor([[[[3.0, -4.0]]]])), dual_norm(L2(), torch.tensor([[[[3.0, -4.0]]]]))
    (tensor([7.]), tensor([5.]))
    """
    if isinstance(ball, Linf):
        return grad.abs().sum((1, 2, 3))
    if isinstance(ball, L2):
        # Brought to size 1 first: the squares of a vanishing gradient underflow.
        largest = grad.abs().amax((1, 2, 3))
        return largest * ball.norm(grad / per_image(largest.masked_fill(largest == 0, 1), grad))
    if isinstance(ball, L1):
        return grad.abs().amax((1, 2, 3))
    raise ValueError(f"no dual norm is known for {type(ball).__name__}; use Linf, L2 or L1")


def movable(grad: Tensor, at: Tensor) -> Tensor:
    """The gradient without the values of images that cannot follow it, being 0 or 1 already."""
    return grad.masked_fill(((at <= 0) & (grad < 0)) | ((at >= 1) & (grad > 0)), 0)


def sparse_step(grad: Tensor, share: Tensor) -> Tensor:
    """The direction of L1 norm 1 that moves the `share` (N,) of values with the largest gradient, at least one, alike."""
    size = grad.abs().flatten(1)
    n = size.shape[1]
    rank = ((1 - share) * n).long().clamp(0, n - 1)
    least = size.topk(n - int(rank.min()), 1).values.gather(1, (n - 1 - rank)[:, None])
    # By value, not by rank: which of equal ones move must not depend on the order of a sort.
    direction = grad.sign().masked_fill((size < least).reshape(grad.shape), 0)
    return direction / per_image(direction.abs().flatten(1).sum(1).clamp_min(1), direction)


def nearest_in_l1(x: Tensor, adv: Tensor, eps: Tensor) -> Tensor:
    """The image nearest to `adv` within L1 distance `eps` (N,) of `x` and in [0, 1] (Croce & Hein 2021, Proposition 2.1)."""
    wide = sum_type(x)
    start = x.to(wide).flatten(1)
    direction = adv.to(wide).flatten(1) - start
    size = direction.abs()
    room = torch.where(direction > 0, 1 - start, start)
    # Lowered by a shift s, a value moves by clamp(size - s, 0, room). Their sum bends where one leaves its bound (at
    # size - room) and where one comes to rest (at size), so it is followed from the largest bend down.
    bends, order = torch.cat((size, (size - room).clamp_min(0)), 1).sort(1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(wide).cumsum(1)
    drops = torch.cat((bends[:, :-1] - bends[:, 1:], bends[:, -1:]), 1)
    total = (slope * drops).cumsum(1)  # the sum at the next bend, at last at s = 0
    reach = (eps.to(wide) * _almost(x))[:, None]
    k = (total < reach).sum(1, keepdim=True).clamp_max(total.shape[1] - 1)
    before = (total - slope * drops).gather(1, k)
    shift = bends.gather(1, k) - (reach - before) / slope.gather(1, k).clamp_min(1)
    shift = shift.clamp_min(0).masked_fill(total[:, -1:] <= eps[:, None], 0)
    return _shortened(x, direction.reshape(x.shape), torch.minimum((size - shift).clamp_min(0), room)).clamp_(0, 1)


def per_image(value: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to multiply with images `like` (N, C, H, W).

    >>> per_image(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 5)).shape
    torch.Size([2, 1, 1, 1])
    """
    return value.reshape(-1, *[1] * (like.dim() - 1))


def sum_type(x: Tensor) -> torch.dtype:
    """The type in which to sum many values of x: float64 where its device has that, which Apple's GPUs have not."""
    return torch.float64 if x.device.type in ("cpu", "cuda") else x.dtype


def widened(x: Tensor) -> Tensor:
    """The values in the type of `sum_type`.

    >>> widened(torch.ones(1)).dtype
    torch.float64
    """
    return x.to(sum_type(x))


def _almost(like: Tensor) -> float:
    """A hair less than 1: a norm of so many eps is at most eps also when rounded to the images' type."""
    return 1 - 2 * torch.finfo(like.dtype).eps


def _shortened(x: Tensor, direction: Tensor, size: Tensor) -> Tensor:
    """x moved by `size` along the signs of `direction`, rounded towards x: rounding away from x would add up over an image."""
    move = direction.sign() * size.reshape(x.shape)
    moved = (x + move).to(x.dtype)
    return torch.where((moved.to(move.dtype) - x).abs() > move.abs(), moved.nextafter(x), moved)


BALLS = named(Linf, L2, L1, L0)


def ball_from(name: str, ball: Any, eps: Any, norm: Any, usual: Ball) -> Any:
    """The ball that a constructor called `name` is given, as a `ball` or as `eps` and `norm`.

    >>> ball_from("PGD", None, 0.5, "l2", Linf()), ball_from("PGD", None, None, None, Linf())
    (L2(eps=0.5), Linf())
    """
    if eps is None and norm is None:
        return usual if ball is None else ball
    if ball is not None:
        raise ValueError(f"{name}: give eps and norm, or a ball, not both; got ball={ball!r}")
    if norm is None:
        return replace(usual, eps=eps)  # type: ignore[type-var]
    if not isinstance(norm, str):
        raise ValueError(f"{name}: norm must be one of {', '.join(BALLS)}, got {norm!r}")
    return lookup(BALLS, norm, "norm")(eps)
