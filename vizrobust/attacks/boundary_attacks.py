"""Minimum-norm attacks along the linearised decision boundary: DeepFool and FAB, with the geometry that both use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks.attack import AttackRun, State, initial_state, input_gradient, num_classes
from vizrobust.attacks.minimum_norm import MinimumNormAttack, MinimumNormRun, projected, record_minimum_norm
from vizrobust.attacks.threat_models import L2, Ball, Linf, dual_norm, epsilon, per_image
from vizrobust.rng import Streams
from vizrobust.spec import spec, vary

AXES = (1, 2, 3)


def to_boundary(ball: Ball, point: Tensor, gap: Tensor, grad: Tensor) -> Tensor:
    """The smallest move in the ball's norm with gap + <grad, move> = 0 and point + move in [0, 1].

    `point` and `grad` are (N, C, H, W), `gap` (N,). Where no point of the box lies on the plane, it is the move to the
    box's corner nearest to it; where the gradient is 0 the move is 0.
    (The projections of Croce & Hein 2020, section 2.2, in another form.)
    """
    gap = gap.nan_to_num()  # a gradient near the largest number can make it infinite, or undefined
    largest = grad.abs().amax(AXES)
    # Brought to size 1, so that neither squares nor quotients of vanishing gradients under- or overflow.
    largest = largest.masked_fill(largest == 0, 1)
    heading = -grad.sign() * per_image(gap.sign(), grad)
    steepness, rise = grad.abs() / per_image(largest, grad), gap.abs() / largest
    room = torch.where(heading > 0, 1 - point, point)  # of no consequence where there is no heading
    if isinstance(ball, Linf):
        # Every pixel moves by the same length, those with less room to their bound.
        length = torch.minimum(room, per_image(_level(steepness, room, steepness * room, rise), room))
    elif isinstance(ball, L2):
        # Every pixel moves in proportion to its gradient, those with less room to their bound.
        reach = room / steepness.masked_fill(steepness == 0, 1)
        level = per_image(_level(steepness**2, reach, steepness * room, rise), room)
        length = torch.where(reach <= level, room, level * steepness)
    else:
        raise ValueError(f"there is no projection onto a decision boundary in {type(ball).__name__}; use Linf or L2")
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
        # Rounding must not lower the level, or the loop might not end.
        new = torch.maximum(level, torch.where(slope > 0, rest / slope.masked_fill(slope == 0, 1), torch.inf))
        if torch.equal(new, level):
            return level
        level = new


def competing_classes(logits: Tensor, y: Tensor) -> Tensor:
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


def nearest_boundary(
    ball: Ball, logits: Tensor, point: Tensor, y: Tensor, against: Tensor, state: State | None = None
) -> Boundary:
    """The nearest of the boundaries between the class y and the classes `against` (N, k), for k backward passes.

    `logits` (N, classes) come from `point` (N, C, H, W) and carry its graph; `state` as in `input_gradient`.
    """
    gaps = (logits.gather(1, against) - logits.gather(1, y[:, None])).to(point.dtype)
    count = against.shape[1]
    nearest: Boundary | None = None
    for k in range(count):
        grad = input_gradient(gaps[:, k], point, state, retain_graph=k + 1 < count)
        finite = gaps[:, k].isfinite()
        gap = gaps[:, k].detach().masked_fill(~finite, 0)
        grad = grad * per_image(finite, grad)  # there is no boundary where the outputs are not finite
        size = dual_norm(ball, grad)
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


# Every step goes this much beyond the boundary, in the ball's norm, as in the authors' code: without it steps vanish
# in front of a boundary and never cross it.
BEYOND = 1e-4


class DeepFoolRun(MinimumNormRun["DeepFool"]):
    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        with torch.no_grad():
            # The label is one of the candidates.
            against = competing_classes(net(x), y)[:, : self.attack.candidates - 1]
        shared = initial_state(x, y, x, streams)
        return {**shared, "at": x, "moves": torch.zeros_like(x), "against": against, "done": shared["misclassified"]}

    def step(self, net: nn.Module, state: State) -> None:
        ball, x = self.attack.ball, state["x"]
        at = state["at"].detach().requires_grad_()
        logits = net(at)
        boundary = nearest_boundary(ball, logits, at, state["y"], state["against"], state)
        at = at.detach()
        state["done"] = record_minimum_norm(state, ball, logits.detach(), at)
        # No boundary is farther off than the box is wide; a flat network has none, and `steepest_direction` is 0 there.
        length = torch.minimum(boundary.distance, ball.norm(torch.ones_like(x))) + BEYOND
        state["moves"] = state["moves"] + per_image(length, x) * ball.steepest_direction(boundary.grad)
        moved = (x + (1 + self.attack.overshoot) * state["moves"]).clamp_(0, 1)
        state["at"] = torch.where(per_image(state["done"], x), at, moved)
        state["adv"] = projected(ball, x, state["at"])

    def evaluate(self, net: nn.Module, state: State) -> None:
        state["done"] = record_minimum_norm(state, self.attack.ball, net(state["at"]), state["at"])


@spec
@dataclass(frozen=True)
class DeepFool(MinimumNormAttack):
    """DeepFool (Moosavi-Dezfooli et al. 2016): a quick, rough search for a small perturbation.

    Each step adds the shortest move to the nearest linearised boundary between the label and one of the wrong classes
    among the `candidates` likeliest ones; what is tried is the sum of all moves, longer by the share `overshoot`,
    clipped to [0, 1]. An image stays where it was first misclassified. The ball is Linf or L2; without eps it is
    unbounded, with one an image whose first misclassified point is outside is not broken.

    Here logits are pixels, and the boundary is 0.6 / sqrt(2) away:

    >>> x = torch.tensor([[[[0.9, 0.1], [0.2, 0.3]]]])
    >>> (DeepFool(steps=20)(nn.Flatten(), x, torch.tensor([0])).best - x).norm()
    tensor(0.4329)
    """

    steps: int = 50
    ball: Ball = L2()
    overshoot: float = 0.02
    candidates: int = 10

    balls = (Linf, L2)
    least: ClassVar = {"steps": 0, "overshoot": 0, "candidates": 2}
    run = DeepFoolRun


# Distances are kept above this before they are weighed against each other, as in the authors' code.
SHORTEST = 1e-8


@spec
@dataclass(frozen=True)
class FAB(MinimumNormAttack):
    """The fast adaptive boundary attack (Croce & Hein 2020), which looks for the smallest perturbation.

    Each step goes to the boundary of the linearised network, `eta` times as far as needed, from a point between where
    it is and the image (the share of the image at most `alpha_max`); a misclassified point is pulled back to `beta` of its
    distance. `targeted` (FAB-T) goes towards each of the `targets` likeliest wrong classes in turn, at most classes - 1:
    one gradient per step; without it every step needs a gradient for each wrong class. Restarts after the first start at
    random within half of eps, or half of the distance to the nearest boundary if the ball has no eps.
    The ball is Linf or L2; without eps it is unbounded, with one only points in it break an image.

    >>> FAB(steps=5, norm="L2")(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 6 evaluated points each)
    """

    steps: int = 100
    ball: Ball = Linf()
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    balls = (Linf, L2)
    least: ClassVar = {"steps": 0, "targets": 1, "restarts": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha_max", "beta"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"FAB: {name} must be between 0 and 1, got {share:g}")
        if self.eta < 1:
            raise ValueError(f"FAB: eta must be at least 1 (to the boundary), got {self.eta:g}")

    def runs(self, net: nn.Module, x: Tensor) -> tuple[AttackRun, ...]:
        ranks = range(max(1, min(self.targets, num_classes(net, x) - 1))) if self.targeted else (None,)
        return tuple(FABRun(self, rank, restart) for rank in ranks for restart in range(self.restarts))


@dataclass(frozen=True)
class FABRun(MinimumNormRun[FAB]):
    """One run of FAB against the wrong class of a `rank` by the clean image's logits, 0 the likeliest; None means all of them."""

    rank: int | None = None
    restart: int = 0

    @property
    def name(self) -> str:
        target = "" if self.rank is None else f" {self.rank + 1}"
        return f"{self.component}{target}{f' restart {self.restart + 1}' if self.restart else ''}"

    @property
    def component(self) -> str:
        return "FAB" if self.rank is None else "FAB-T"

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        elsewhere = self.restart > 0
        clean = x.detach().requires_grad_(elsewhere)
        with torch.set_grad_enabled(elsewhere):
            logits = net(clean)
        against = competing_classes(logits.detach(), y)
        if self.rank is not None:
            against = against[:, self.rank : self.rank + 1]
        start = self._elsewhere(logits, clean, y, against, streams) if elsewhere else x
        state = initial_state(x, y, projected(self.attack.ball, x, start), streams)
        return {**state, "at": start, "against": against, "nearest": torch.full_like(state["loss"], torch.inf)}

    def _elsewhere(self, logits: Tensor, x: Tensor, y: Tensor, against: Tensor, streams: Streams) -> Tensor:
        """A random start point."""
        ball = self.attack.ball
        if ball.eps is None:
            # No image is farther from a boundary than the box is wide.
            wide = ball.norm(torch.ones_like(x))
            far = torch.minimum(nearest_boundary(ball, logits, x, y, against).distance, wide)
        else:
            far = torch.full_like(x[:, 0, 0, 0], epsilon(ball))
        x = x.detach()
        unit = vary(ball, eps=1.0).sample(x, streams.child(self.name))
        return (x + unit * per_image(far / 2, x)).clamp_(0, 1)

    def step(self, net: nn.Module, state: State) -> None:
        attack, x, at = self.attack, state["x"], state["at"]
        with torch.no_grad():
            norm = attack.ball.norm(at - x)
            wrong = record_minimum_norm(state, attack.ball, net(at), at, norm=norm)
            state["nearest"] = torch.minimum(state["nearest"], norm.masked_fill(~wrong, torch.inf))
        at = torch.where(per_image(wrong, x), x + attack.beta * (at - x), at).requires_grad_()
        boundary = nearest_boundary(attack.ball, net(at), at, state["y"], state["against"], state)
        gap, grad, at = boundary.gap, boundary.grad, at.detach()
        # The same plane seen from the iterate and from the image.
        gap_at_x = gap + (grad * (x - at)).sum((1, 2, 3))
        move = to_boundary(attack.ball, torch.cat((at, x)), torch.cat((gap, gap_at_x)), torch.cat((grad, grad)))
        length = attack.ball.norm(move).clamp_min(SHORTEST)
        move_at, move_x = move.chunk(2)
        far_at, far_x = length.chunk(2)
        alpha = per_image((far_at / (far_at + far_x)).clamp_max(attack.alpha_max), x)
        moved = (1 - alpha) * (at + attack.eta * move_at) + alpha * (x + attack.eta * move_x)
        state["at"] = moved.clamp_(0, 1)
        state["adv"] = projected(attack.ball, x, state["at"])
