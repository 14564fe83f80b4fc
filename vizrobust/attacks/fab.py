"""FAB, the fast adaptive boundary attack: hops along the linearised decision boundary, ever nearer to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import L2, Ball, Linf, per_image, radius
from vizrobust.attacks.boundary_projection import to_boundary
from vizrobust.attacks.nearest import leashed, weigh
from vizrobust.attacks.rivals import nearest_boundary, rivals
from vizrobust.attacks.walk import Attacked, State, Walk, class_count, opened, run
from vizrobust.rng import Streams
from vizrobust.spec import spec, vary

# Distances are kept above this before they are weighed against each other, as in the authors' code.
SHORTEST = 1e-8


@spec
@dataclass(frozen=True)
class FAB:
    """The fast adaptive boundary attack (Croce & Hein 2020), which looks for the smallest perturbation.

    Each step goes to the boundary of the linearised network, `eta` times as far as needed, from a point between where
    it is and the image (the share of the image at most `alpha_max`); a wrong point is pulled back to `beta` of its
    distance. `targeted` (FAB-T) walks towards each of the `targets` likeliest wrong classes in turn, at most classes - 1:
    one gradient a step; without it every step needs a gradient for each wrong class. Restarts after the first begin at
    random within half of eps, or half of the way to the nearest boundary where the ball has no eps.
    The ball is Linf or L2; without eps it is unlimited, with one only points in it break an image.
    """

    steps: int = 100
    ball: Ball = Linf()
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf | L2):
            raise ValueError(f"FAB: the ball must be Linf or L2, got {type(self.ball).__name__}")
        for name, least in (("steps", 0), ("targets", 1), ("restarts", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"FAB: {name} must be at least {least}, got {value}")
        for name in ("alpha_max", "beta"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"FAB: {name} must be between 0 and 1, got {share:g}")
        if self.eta < 1:
            raise ValueError(f"FAB: eta must be at least 1 (to the boundary), got {self.eta:g}")

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        ranks = range(max(1, min(self.targets, class_count(net, x) - 1))) if self.targeted else (None,)
        return tuple(FABWalk(self, rank, restart) for rank in ranks for restart in range(self.restarts))

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class FABWalk:
    """One run of FAB against the wrong class of a `rank` by the clean image's logits, 0 the likeliest; None: against all."""

    attack: FAB
    rank: int | None = None
    restart: int = 0

    minimal = True

    @property
    def name(self) -> str:
        target = "" if self.rank is None else f" {self.rank + 1}"
        return f"{self.member}{target}{f' restart {self.restart + 1}' if self.restart else ''}"

    @property
    def member(self) -> str:
        return "FAB" if self.rank is None else "FAB-T"

    @property
    def steps(self) -> int:
        return self.attack.steps

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        elsewhere = self.restart > 0
        clean = x.detach().requires_grad_(elsewhere)
        with torch.set_grad_enabled(elsewhere):
            logits = net(clean)
        against = rivals(logits.detach(), y)
        if self.rank is not None:
            against = against[:, self.rank : self.rank + 1]
        start = self._elsewhere(logits, clean, y, against, streams) if elsewhere else x
        return {**opened(x, y, leashed(self.attack.ball, x, start), streams), "at": start, "against": against}

    def _elsewhere(self, logits: Tensor, x: Tensor, y: Tensor, against: Tensor, streams: Streams) -> Tensor:
        """A random start point."""
        ball = self.attack.ball
        if ball.eps is None:
            # No image is farther from a boundary than the box is wide.
            wide = ball.norm(torch.ones_like(x))
            far = torch.minimum(nearest_boundary(ball, logits, x, y, against).distance, wide)
        else:
            far = torch.full_like(x[:, 0, 0, 0], radius(ball))
        x = x.detach()
        unit = vary(ball, eps=1.0).sample(x, streams.child(self.name))
        return (x + unit * per_image(far / 2, x)).clamp_(0, 1)

    def step(self, net: nn.Module, state: State) -> None:
        attack, x, at = self.attack, state["x"], state["at"]
        with torch.no_grad():
            wrong = weigh(state, attack.ball, net(at), at)
        at = torch.where(per_image(wrong, x), x + attack.beta * (at - x), at).requires_grad_()
        boundary = nearest_boundary(attack.ball, net(at), at, state["y"], state["against"])
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
        state["adv"] = leashed(attack.ball, x, state["at"])

    def judge(self, net: nn.Module, state: State) -> None:
        weigh(state, self.attack.ball, net(state["at"]), state["at"])
