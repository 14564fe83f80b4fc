"""Kaleidoscope: bright shapes with dark rims lie on the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.unforeseen.climb import Climb, Variables, check, clip, fade, strength
from vizrobust.attacks.unforeseen.scaling import between
from vizrobust.attacks.unforeseen.shapes import bright, scattered
from vizrobust.attacks.walk import Attacked, Walk, run
from vizrobust.rng import Streams
from vizrobust.spec import spec

SMALLEST_EPS = 0.05


@spec
@dataclass(frozen=True)
class Kaleidoscope:
    """Bright circles, triangles and squares at random places, of colours within `eps` of random ones (Kaufmann et al. 2023).

    The variable (N, shapes * C + H * W) holds the shifts of their colours, |z| <= eps, then the brightness of their
    rims, 0 <= z <= eps; steps are signs. 5 shapes of 4 pixels at side 32, 40 of 15 at 224; of the image a share
    shines through (0.2 and 0.1). Where shapes overlap the last is on top (the reference adds their colours). Below
    eps 0.05, the smallest published, shapes and rims fade with eps.
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
        channels, height, width = x.shape[1:]
        count = round(between(x, 5, 40))
        top, rim = scattered(streams.child("shapes"), count, between(x, 4, 15), height, width)
        colours = bright(streams.child("colours"), count, channels).to(x)
        shifts = 2 * streams.child("shifts").uniform(count * channels).to(x) - 1
        rims = streams.child("rims").uniform(height * width).to(x)
        z = strength(self) * torch.cat((shifts, rims), dim=1)
        return {"z": z, "colours": colours, "top": top.to(x.device), "rim": rim.to(x.device)}

    def apply(self, x: Tensor, v: Variables) -> Tensor:
        n, channels, height, width = x.shape
        shift, rim = v["z"].tensor_split([v["colours"][0].numel()], dim=1)
        colours = v["colours"] + shift.reshape(v["colours"].shape)
        # Shape 0 is no shape: the place shows the image.
        palette = torch.cat((torch.zeros_like(colours[:, :, :1]), colours), dim=2)
        place = v["top"].reshape(n, 1, -1).expand(-1, channels, -1)
        painted = palette.gather(2, place).reshape(x.shape)
        through = torch.where(v["top"][:, None] > 0, between(x, 0.2, 0.1), 1.0).to(x)
        covered = torch.where(v["rim"][:, None], rim.reshape(n, 1, height, width), x * through + painted)
        return clip(x + fade(strength(self), SMALLEST_EPS) * (covered - x))

    def step(self, v: Variables, grad: Tensor, alpha: float) -> Tensor:
        return v["z"] + alpha * grad.sign()

    def project(self, v: Variables) -> Tensor:
        eps, colours = strength(self), v["colours"][0].numel()
        return torch.cat((v["z"][:, :colours].clamp(-eps, eps), v["z"][:, colours:].clamp(0, eps)), dim=1)
