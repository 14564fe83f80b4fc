"""DeepFool: step after step to the nearest linearised decision boundary, until the network is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import L2, Ball, Linf, per_image
from vizrobust.attacks.nearest import leashed, weigh
from vizrobust.attacks.rivals import nearest_boundary, rivals
from vizrobust.attacks.walk import Attacked, State, Walk, opened, run
from vizrobust.rng import Streams
from vizrobust.spec import spec

# Every step goes this much beyond the boundary, in the ball's norm, as in the authors' code: without it steps vanish
# in front of a boundary and never cross it.
BEYOND = 1e-4


@spec
@dataclass(frozen=True)
class DeepFool:
    """DeepFool (Moosavi-Dezfooli et al. 2016): a quick, rough look for a small perturbation.

    Each step adds the shortest move to the nearest linearised boundary between the label and one of the wrong classes
    among the `candidates` likeliest ones; what is tried is the sum of all moves, longer by the share `overshoot`,
    clipped to [0, 1]. An image stays where it was first wrong. The ball is Linf or L2; without eps it is unlimited,
    with one an image whose first wrong point is outside is not broken.
    """

    steps: int = 50
    ball: Ball = L2()
    overshoot: float = 0.02
    candidates: int = 10

    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf | L2):
            raise ValueError(f"DeepFool: the ball must be Linf or L2, got {type(self.ball).__name__}")
        for name, least in (("steps", 0), ("overshoot", 0), ("candidates", 2)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"DeepFool: {name} must be at least {least}, got {value:g}")

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return (DeepFoolWalk(self),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class DeepFoolWalk:
    attack: DeepFool

    minimal = True
    name = member = "DeepFool"

    @property
    def steps(self) -> int:
        return self.attack.steps

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        with torch.no_grad():
            # The label is one of the candidates.
            against = rivals(net(x), y)[:, : self.attack.candidates - 1]
        shared = opened(x, y, x, streams)
        return {**shared, "at": x, "moves": torch.zeros_like(x), "against": against, "done": shared["wrong"]}

    def step(self, net: nn.Module, state: State) -> None:
        ball, x = self.attack.ball, state["x"]
        at = state["at"].detach().requires_grad_()
        logits = net(at)
        boundary = nearest_boundary(ball, logits, at, state["y"], state["against"])
        at = at.detach()
        state["done"] = weigh(state, ball, logits.detach(), at)
        # No boundary is farther off than the box is wide; a flat network has none, and `steepest` is 0 there.
        length = torch.minimum(boundary.distance, ball.norm(torch.ones_like(x))) + BEYOND
        state["moves"] = state["moves"] + per_image(length, x) * ball.steepest(boundary.grad)
        moved = (x + (1 + self.attack.overshoot) * state["moves"]).clamp_(0, 1)
        state["at"] = torch.where(per_image(state["done"], x), at, moved)
        state["adv"] = leashed(ball, x, state["at"])

    def judge(self, net: nn.Module, state: State) -> None:
        state["done"] = weigh(state, self.attack.ball, net(state["at"]), state["at"])
