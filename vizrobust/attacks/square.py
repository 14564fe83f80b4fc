"""The Square attack: a random search that asks the network for its logits and never for a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import Ball, Linf, per_image, radius
from vizrobust.attacks.losses import LOSSES
from vizrobust.attacks.square_windows import MOVES, Moves, level_of
from vizrobust.attacks.walk import Attacked, State, Walk, mark, opened, run, stronger
from vizrobust.attacks.walk import draws as drawn
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec


@spec
@dataclass(frozen=True)
class Square:
    """The Square attack (Andriushchenko et al. 2020): `queries` square windows tried, in the L-inf or the L2 ball.

    A window that raises the loss, or makes the image wrong, is kept. It covers the share `p_init` of the image at
    first and less and less later. With the point it starts from it takes queries + 1 forward passes and no gradient,
    so it breaks what only hides its gradients. Windows and signs are each image's own.

    >>> Square(queries=1000, ball=Linf(eps=0.3))
    Square(queries=1000, ball=Linf(eps=0.3))
    """

    queries: int = 5000
    ball: Ball = Linf()
    p_init: float = 0.8
    restarts: int = 1
    loss: str = "margin"

    def __post_init__(self) -> None:
        lookup(LOSSES, self.loss, "loss")
        if type(self.ball) not in MOVES:
            there = " and ".join(ball.__name__ for ball in MOVES)
            raise ValueError(f"Square has no windows for the {type(self.ball).__name__} ball; there are those for {there}")
        if self.queries < 0:
            raise ValueError(f"Square: queries must not be negative, got {self.queries}")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"Square: p_init must be above 0 and at most 1, got {self.p_init:g}")
        if self.restarts < 1:
            raise ValueError(f"Square: restarts must be at least 1, got {self.restarts}")

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        radius(self.ball)
        walk = SquareWalk
        return tuple(walk(self.ball, self.queries, self.p_init, self.loss, number) for number in range(self.restarts))

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)


@dataclass(frozen=True)
class SquareWalk:
    """`steps` windows, each put into the strongest point so far, which is `kept` in the state with its verdict."""

    ball: Ball
    steps: int
    p: float
    loss: str
    restart: int = 0

    @property
    def name(self) -> str:
        return f"Square {self.restart + 1}" if self.restart else "Square"

    @property
    def member(self) -> str:
        return "Square"

    @property
    def _moves(self) -> Moves:
        return MOVES[type(self.ball)]

    def begin(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        if self.restart:
            streams = streams.child(f"restart {self.restart}")
        state = opened(x, y, self._moves.start(x, radius(self.ball), streams), streams)
        # Beside `best`, `top` and `wrong`, which are not kept when nobody asks for verdicts.
        return {**state, "kept": state["best"], "kept_loss": state["top"], "kept_wrong": state["wrong"]}

    def step(self, net: nn.Module, state: State) -> None:
        self.judge(net, state)
        # The start point was judged too, and is no window.
        level = level_of(state["t"] - 1)
        streams = drawn(state, "square")
        state["adv"] = self._moves.change(state["x"], state["kept"], radius(self.ball), self.p, level, streams)

    def judge(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            logits = net(state["adv"])
            loss = LOSSES[self.loss](logits, state["y"]).to(state["kept_loss"].dtype)
            wrong = logits.argmax(1) != state["y"]
            better = stronger(wrong, loss, state["kept_wrong"], state["kept_loss"])
            state["kept"] = torch.where(per_image(better, state["adv"]), state["adv"], state["kept"])
            state["kept_loss"] = torch.where(better, loss, state["kept_loss"])
            state["kept_wrong"] = state["kept_wrong"] | wrong
            mark(state, logits, loss)
