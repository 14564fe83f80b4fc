"""Attacks that see nothing of a network but which class it predicts: HopSkipJump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vizrobust.attacks.attack import State, initial_state, step_streams
from vizrobust.attacks.minimum_norm import MinimumNormAttack, MinimumNormRun, projected, record_minimum_norm
from vizrobust.attacks.threat_models import L2, TINY, Ball, Linf, per_image
from vizrobust.rng import Streams
from vizrobust.spec import spec

# What an image's query is for: a misclassified image somewhere, the boundary on the way to it, the boundary's normal, and how
# far it is safe to go along that.
START, SEARCH, NORMAL, JUMP = range(4)
# A search halves its interval so often at the most, and a jump its length: float32 tells no more apart.
MOST_HALVINGS = 20
# Samples around a boundary point move a value by this much at least (root mean square), or rounding would swallow them.
LEAST_MOVE = 1e-6


class HopSkipJumpRun(MinimumNormRun["HopSkipJump"]):
    """One query a step; each image is at a query of its own, so none waits for another's search."""

    @property
    def steps(self) -> int:
        return self.attack.queries

    def start(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> State:
        zero, none = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(y)
        return {
            **initial_state(x, y, x, streams),
            "at": x,
            "purpose": none + START,
            "round": none,
            "left": none,  # queries for this purpose
            "end": x,  # the misclassified end of a search, which has come down to this share of the way to it
            "low": zero,
            "high": zero,
            "boundary": x,
            "signed": torch.zeros_like(x),  # sums over samples: moves times answers, moves, answers
            "moves": torch.zeros_like(x),
            "answers": zero,
            "normal": torch.zeros_like(x),
            "length": zero,
        }

    def step(self, net: nn.Module, state: State) -> None:
        with torch.no_grad():
            wrong = record_minimum_norm(state, self.attack.ball, net(state["at"]), state["at"])
        asked = state["purpose"]
        state["left"] = state["left"] - 1
        self._start_search(state, ((asked == START) | (asked == JUMP)) & wrong, state["at"])
        self._halve(state, asked == SEARCH, wrong)
        self._sample(state, asked == NORMAL, wrong)
        state["length"] = torch.where((asked == JUMP) & ~wrong, state["length"] / 2, state["length"])
        # No length is safe: another normal is asked for at the same point.
        self._start_search(state, (asked == JUMP) & ~wrong & (state["left"] == 0), state["boundary"])
        state["at"] = self._query(state)
        state["adv"] = projected(self.attack.ball, state["x"], state["at"])

    def _start_search(self, state: State, these: Tensor, end: Tensor) -> None:
        x = state["x"]
        # The share of the way that is told apart: d^-3/2 in L2, d^-2 in L-inf (section III-C of the paper).
        halvings = math.ceil((1.5 if isinstance(self.attack.ball, L2) else 2) * math.log2(x[0].numel()))
        _put(state, these, purpose=SEARCH, left=max(1, min(halvings, MOST_HALVINGS)), end=end, low=0.0, high=1.0)

    def _halve(self, state: State, these: Tensor, wrong: Tensor) -> None:
        """What the answer in the middle says of a search; at its end a round begins."""
        middle = (state["low"] + state["high"]) / 2
        _put(state, these & wrong, high=middle)
        _put(state, these & ~wrong, low=middle)
        over = these & (state["left"] == 0)
        if bool(over.any()):
            t = state["round"] + 1
            _put(
                state, over, purpose=NORMAL, round=t, left=self._samples(t), boundary=self._on_the_way(state, state["high"]),
                signed=0.0, moves=0.0, answers=0.0,
            )  # fmt: skip

    def _sample(self, state: State, these: Tensor, wrong: Tensor) -> None:
        """What the answer at a point beside the boundary says of its normal; after the last one the jump begins."""
        answer, move = torch.where(wrong, 1.0, -1.0).to(state["x"]), state["at"] - state["boundary"]
        _put(
            state, these, signed=state["signed"] + per_image(answer, move) * move, moves=state["moves"] + move,
            answers=state["answers"] + answer,
        )  # fmt: skip
        over = these & (state["left"] == 0)
        if bool(over.any()):
            mean = state["answers"] / self._samples(state["round"])
            # The mean is a baseline that lowers the variance (equation 16); where all answers are one there is none.
            baseline = per_image(mean.masked_fill(mean.abs() == 1, 0), move)
            normal = self.attack.ball.steepest_direction(state["signed"] - baseline * state["moves"])
            distance = self.attack.ball.norm(state["boundary"] - state["x"])
            length = distance / state["round"].clamp_min(1).sqrt()
            _put(state, over, purpose=JUMP, left=MOST_HALVINGS, normal=normal, length=length)

    def _samples(self, t: Tensor) -> Tensor:
        return (self.attack.samples * t.clamp_min(1).sqrt()).long()

    def _on_the_way(self, state: State, share: Tensor) -> Tensor:
        """The point at that share of the way from the images to the ends: the nearest one of its distance in the ball's norm."""
        x, end, share = state["x"], state["end"], per_image(share, state["x"])
        if isinstance(self.attack.ball, L2):
            return torch.lerp(x, end, share)
        reach = share * per_image(self.attack.ball.norm(end - x), x)
        return torch.maximum(torch.minimum(end, x + reach), x - reach)

    def _query(self, state: State) -> Tensor:
        """The next point to ask for, in [0, 1]."""
        x, boundary, purpose = state["x"], state["boundary"], state["purpose"]
        searched = self._on_the_way(state, (state["low"] + state["high"]) / 2)
        at = torch.where(per_image(purpose == SEARCH, x), searched, boundary + per_image(state["length"], x) * state["normal"])
        # Random numbers for those who need them alone; they are each image's own in any case.
        streams, starting, sampling = step_streams(state, "hopskipjump"), purpose == START, purpose == NORMAL
        if bool(starting.any()):
            (index,) = starting.nonzero(as_tuple=True)
            trial = state["step"][index].cpu() - 1
            at = at.index_copy(0, index, _patchwork(streams.take(index.cpu()), trial, x.shape[1:]).to(x))
        if bool(sampling.any()):
            (index,) = sampling.nonzero(as_tuple=True)
            # Independent values of mean 0 will do for the estimate, and cost less than Gaussian ones.
            noise = 2 * streams.take(index.cpu()).uniform(*x.shape[1:]) - 1
            noise = torch.zeros_like(x).index_copy(0, index, noise.to(x))
            d, distance = x[0].numel(), self.attack.ball.norm(boundary - x)
            reach = (distance / d).clamp_min(LEAST_MOVE * math.sqrt(d)) / noise.flatten(1).norm(dim=1).clamp_min(TINY)
            at = torch.where(per_image(sampling, x), boundary + per_image(reach, x) * noise, at)
        return at.clamp_(0, 1)


@spec
@dataclass(frozen=True)
class HopSkipJump(MinimumNormAttack):
    """HopSkipJump (Chen, Jordan & Wainwright 2020): the smallest perturbation from predicted classes alone.

    It uses neither gradients nor the values of logits, so it also attacks networks that answer with a label (one-hot
    outputs), and none that only hide their gradients resist it. It starts at a random image that is misclassified and
    goes to the boundary on the line to the image. There the answers at `samples` · sqrt(t) random points in round t give
    the boundary's normal; a jump along it, halved until it lands among misclassified points, and a search back to the
    boundary end the round. It takes `queries` forward passes beside that of the image itself. The ball is Linf or L2;
    without eps it is unbounded, with one only points in it break an image.

    The random images consist of squares, of one pixel up to the whole image: to plain noise a network may give one class
    always, the label's.

    >>> HopSkipJump(queries=20)(nn.Flatten(), torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
    AttackResult(3 images, 21 evaluated points each)
    """

    queries: int = 5000
    ball: Ball = Linf()
    samples: int = 100

    balls = (Linf, L2)
    least: ClassVar = {"queries": 0, "samples": 1}
    run = HopSkipJumpRun


def _put(state: State, these: Tensor, **values: Tensor | float) -> None:
    """Let the images at `these` (N,) have other values."""
    if not bool(these.any()):
        return
    for name, value in values.items():
        state[name] = torch.where(per_image(these, state[name]), value, state[name])


def _patchwork(streams: Streams, trial: Tensor, shape: torch.Size) -> Tensor:
    """(N, C, H, W) uniform in [0, 1), alike in squares whose side doubles with every `trial` (N,), from 1 to the image's."""
    _, height, width = shape
    side = 2 ** (trial % (math.ceil(math.log2(max(height, width))) + 1))[:, None]
    row, column = (torch.arange(size) // side * side for size in (height, width))
    image = streams.uniform(*shape)
    image = image.gather(2, row[:, None, :, None].expand_as(image))
    return image.gather(3, column[:, None, None, :].expand_as(image))
