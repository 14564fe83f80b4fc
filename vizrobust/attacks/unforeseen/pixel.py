"""Pixel: blocks of the image turn into flat tiles."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vizrobust.attacks.balls import L2
from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, clip, strength
from vizrobust.attacks.unforeseen.scaling import between
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec


@spec
@dataclass(frozen=True)
class Pixel:
    """Each channel of each block is mixed with the value of its upper left pixel (Kaufmann et al. 2023).

    The variable (N, C, blocks down, blocks across) holds the shares, in [0, 1], with an L2 norm over all of at most
    `eps`; steps go along the gradient. Blocks have 4 pixels at side 32 and 16 at 224; those at the right and lower
    border may be cut (the reference enlarges such an image, which changes it at eps 0 too).
    """

    eps: float | None = None
    steps: int = 50
    alpha: float | None = None
    targeted: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        check(self)

    @property
    def reach(self) -> float:
        return strength(self)

    def stages(self, net: nn.Module, x: Tensor) -> tuple[Walk, ...]:
        return (Climb(self),)

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams, judge: bool = True) -> Attacked:
        return run(self.stages(net, x), net, x, y, streams, judge)

    def init(self, x: Tensor, streams: Streams) -> dict[str, Tensor]:
        block = _block(x)
        like = x[..., ::block, ::block]
        return {"z": self.project({"z": L2(strength(self)).sample(like, streams.child("shares")).abs()})}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        block = _block(x)
        share, corner = (
            tiles.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., : x.shape[2], : x.shape[3]]
            for tiles in (v["z"], x[..., ::block, ::block])
        )
        return clip(x + share * (corner - x))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * L2(1.0).steepest(grad)

    def project(self, v: Variables) -> Tensor:
        # A share below 0 does not count against the rest's; then clamping at 1 only shortens.
        return L2(strength(self)).project(v["z"].clamp_min(0)).clamp_max(1)


def _block(x: Tensor) -> int:
    return round(between(x, 4, 16))
