"""JPEG: the change lives in the coefficients that JPEG stores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.balls import L1, L2
from vizrobust.attacks.unforeseen.blocks import coefficients, decoded
from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, clip, strength
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec

NORMS = ("linf", "l2", "l1")
# No coefficient moves by more than this in the L2 and L1 attacks (UAR's choice).
LARGEST = 2.0


@spec
@dataclass(frozen=True)
class JPEG:
    """The coefficients that JPEG stores at quality 50 change; a change of 2 in the variable is one quantisation step.

    `eps` bounds the variable's `norm`: "linf", "l2" or "l1" (Kang et al. 2019). Linf takes sign steps, L2 steps along
    the gradient, L1 Frank-Wolfe steps of 1/t towards the best corner, which have no `alpha`; in L2 and L1 no
    coefficient moves by more than 2. Nothing is rounded, so JPEG is linear, and the change is added to the image:
    the image itself does not go through JPEG, whose chroma subsampling would blur it at eps 0 too.
    """

    eps: float | None = None
    norm: str = "linf"
    steps: int = 50
    alpha: float | None = None
    targeted: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        check(self)
        if self.norm not in NORMS:
            raise ValueError(f"JPEG: norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.norm == "l1" and self.alpha is not None:
            raise ValueError(f"JPEG: norm='l1' takes Frank-Wolfe steps, which have no alpha; leave out alpha={self.alpha:g}")

    @property
    def reach(self) -> float:
        return strength(self)

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return (Climb(self),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        streams, count = streams.child("coefficients"), coefficients(x)
        like, eps = x.new_empty(len(x), count), strength(self)
        match self.norm:
            case "linf":
                z = (2 * streams.uniform(count).to(x) - 1) * eps
            case "l2":
                z = L2(eps).sample(like, streams)
            case _:
                z = L1(eps).sample(like, streams)
        return {"z": self.project({"z": z})}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        return clip(x + decoded(v["z"] / 2, x))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        match self.norm:
            case "linf":
                return v["z"] + alpha * grad.sign()
            case "l2":
                return v["z"] + alpha * L2(1.0).steepest(grad)
        # The corner of the ball within the bounds: the coefficients of steepest ascent take all they may.
        order = grad.abs().argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(grad.shape[1], device=grad.device).expand_as(order))
        corner = grad.sign() * (strength(self) - LARGEST * rank).clamp(0, LARGEST)
        return v["z"] + (corner - v["z"]) / v["t"].to(grad)[:, None]

    def project(self, v: Variables) -> Tensor:
        eps, z = strength(self), v["z"]
        match self.norm:
            case "linf":
                return z.clamp(-eps, eps)
            case "l2":
                return L2(eps).project(z).clamp(-LARGEST, LARGEST)
        return L1(eps).project(z).clamp(-LARGEST, LARGEST)
