"""What a run of APGD climbs: a loss of the label or of a target class, and which run of several it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vizrobust.attacks.losses import LOSSES, TARGETED_LOSSES
from vizrobust.attacks.rivals import rivals
from vizrobust.attacks.walk import State
from vizrobust.rng import Streams
from vizrobust.spec import lookup


@dataclass(frozen=True)
class Aim:
    """A loss; of the wrong classes the one of this `rank` by the clean logits, 1 the likeliest, 0 none; and a restart."""

    loss: str
    rank: int = 0
    restart: int = 0

    @property
    def member(self) -> str:
        if not self.rank:
            return f"APGD-{self.loss.upper()}"
        return "APGD-T" if self.loss == "dlr" else f"APGD-{self.loss.upper()}-T"

    @property
    def name(self) -> str:
        rank = f" {self.rank}" if self.rank else ""
        return f"{self.member}{rank}" + (f" restart {self.restart + 1}" if self.restart else "")

    def streams(self, streams: Streams) -> Streams:
        """Those of this run: each has a start point of its own."""
        streams = streams.child(f"target {self.rank}") if self.rank > 1 else streams
        return streams.child(f"restart {self.restart}") if self.restart else streams

    def towards(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The class that each image is driven to, (N,); its own where it is driven away from that."""
        if not self.rank:
            return y
        with torch.no_grad():
            return rivals(net(x), y)[:, self.rank - 1]

    def loss_of(self, logits: Tensor, state: State) -> Tensor:
        """(N,), larger = better for the attacker."""
        if self.rank:
            return lookup(TARGETED_LOSSES, self.loss, "loss")(logits, state["y"], state["towards"])
        return lookup(LOSSES, self.loss, "loss")(logits, state["y"])

    def climb(self, net: nn.Module, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The current iterate, the loss's gradient there, the loss (N,) and the logits, all detached."""
        adv = state["adv"].detach().requires_grad_()
        logits = net(adv)
        loss = self.loss_of(logits, state)
        # On the unwrapped network, summed: no weight gradient is computed and no image meets another.
        (grad,) = torch.autograd.grad(loss.sum(), adv)
        return adv.detach(), grad, loss.detach().to(adv.dtype), logits.detach()
