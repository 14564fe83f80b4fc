"""Training against several attacks at once: which of their examples a network learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import Attack, per_image
from vizrobust.models import evaluating
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec


@spec
@dataclass(frozen=True)
class MultiAttack:
    """Several attacks to train against (Tramèr & Boneh 2019), mixed as `mode` says.

    ``avg`` learns from the examples of all of them, ``max`` from each image's example of highest cross entropy, and
    ``random`` attacks each image by one of them, drawn anew in every epoch. The first two cost as many gradients as
    all the attacks together, ``random`` the mean of them.

    >>> from vizrobust.attacks import L2, PGD, Linf
    >>> MultiAttack(attacks=(PGD(steps=7, ball=Linf(eps=0.3)), PGD(steps=7, ball=L2(eps=2.0))), mode="max")
    MultiAttack(attacks=(PGD(steps=7, ball=Linf(eps=0.3)), PGD(steps=7, ball=L2(eps=2.0))), mode="max")
    """

    attacks: tuple[Attack, ...]
    mode: str

    def __post_init__(self) -> None:
        lookup(MIX_MODES, self.mode, "mix")
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise ValueError(f"MultiAttack: {attack!r} is not an attack; give attacks such as PGD(steps=7)")
        if len(self.attacks) < 2:
            raise ValueError(f"MultiAttack: give two attacks or more, got {len(self.attacks)}; a single one needs no MultiAttack")

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """Images (N, C, H, W), labels (N,) -> examples (k N, C, H, W): k = the number of attacks for ``avg``, else 1."""
        return lookup(MIX_MODES, self.mode, "mix")(self.attacks, net, x, y, streams)


def attacks_of(attack: Attack | MultiAttack | None) -> tuple[Attack, ...]:
    """The attacks of a recipe's `attack` field: none, one or several."""
    if attack is None:
        return ()
    return attack.attacks if isinstance(attack, MultiAttack) else (attack,)


def examples(attack: Attack | MultiAttack, net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
    """What the network learns from in place of `x`: (N, C, H, W) -> (k N, C, H, W), k copies of the batch in turn."""
    return (
        attack(net, x, y, streams=streams)
        if isinstance(attack, MultiAttack)
        else attack(net, x, y, streams=streams, evaluate=False).x
    )


def average(attacks: tuple[Attack, ...], net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
    """The examples of all attacks, one after the other: the mean loss over them is the mean of the attacks' losses."""
    return torch.cat([attack(net, x, y, streams=_own(streams, k), evaluate=False).x for k, attack in enumerate(attacks)])


def worst(attacks: tuple[Attack, ...], net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
    """For each image the example on which the network, in evaluation mode, has the highest cross entropy."""
    chosen, highest = x, torch.full((len(x),), -torch.inf, device=x.device)
    for k, attack in enumerate(attacks):
        adv = attack(net, x, y, streams=_own(streams, k), evaluate=False).x
        with evaluating(net), torch.no_grad():
            loss = F.cross_entropy(net(adv), y, reduction="none").to(highest)
        better = loss > highest
        chosen, highest = torch.where(per_image(better, x), adv, chosen), torch.where(better, loss, highest)
    return chosen


def drawn(attacks: tuple[Attack, ...], net: nn.Module, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
    """Each image attacked by one of them, drawn from the image's stream."""
    which = streams.child("which").integers(len(attacks))
    adv = torch.empty_like(x)
    for k, attack in enumerate(attacks):
        index = (which == k).nonzero()[:, 0]
        if len(index):
            there = index.to(x.device)
            adv[there] = attack(net, x[there], y[there], streams=_own(streams, k).take(index), evaluate=False).x
    return adv


def _own(streams: Streams, k: int) -> Streams:
    """Streams for the k-th attack, so that two attacks of a mix do not begin at the same random point."""
    return streams.child(f"attack {k}")


Pick = Callable[[tuple[Attack, ...], nn.Module, Tensor, Tensor, Streams], Tensor]
MIX_MODES: dict[str, Pick] = {"avg": average, "max": worst, "random": drawn}
