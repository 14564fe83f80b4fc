"""The examples that a network learns from: augmented images, and which of several attacks' examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.attacks import Attack, per_image
from vizrobust.features.transforms import Jitter
from vizrobust.models import evaluating
from vizrobust.rng import Streams
from vizrobust.spec import lookup, spec

Augmentation = Callable[[Tensor, Streams], Tensor]

SHIFT = 1 / 8
WINDOW = 3 / 4
# `heavy`: the ground rises to at most this, the contrast falls to at least that, and noise goes up to this deviation.
LIGHTEST_GROUND, LOWEST_CONTRAST, STRONGEST_NOISE = 0.5, 0.3, 0.3
# The widest blur's deviation in pixels of an image 28 px wide; wider images are blurred in proportion.
WIDEST_BLUR = 1.5


def none(x: Tensor, streams: Streams) -> Tensor:  # noqa: ARG001
    """The images as they are."""
    return x


def crop(x: Tensor, streams: Streams) -> Tensor:
    """Shifts of up to an eighth of the side, mirrored at the edge."""
    return Jitter(size=SHIFT)(x, streams.child("crop"))


def crop_flip(x: Tensor, streams: Streams) -> Tensor:
    """As `crop`, and every other image left to right."""
    mirrored = streams.child("flip").uniform(1, 1, 1).to(x) < 0.5
    x = crop(x, streams)
    return torch.where(mirrored, x.flip(3), x)


def window_flip(x: Tensor, streams: Streams) -> Tensor:
    """Windows of three quarters of each side, at random places, and every other one left to right.

    A network that ends in a mean over the map takes them as they are, at 9/16 of the cost of whole images; things
    keep their size in pixels, so it is tested on whole images.
    """
    height, width = (round(WINDOW * side) for side in x.shape[2:])
    mirrored = streams.child("flip").uniform(1, 1, 1).to(x) < 0.5
    place = streams.child("window").uniform(2)
    free = torch.tensor([x.shape[2] - height + 1, x.shape[3] - width + 1])
    corners = (place * free).floor().long().minimum(free - 1)
    x = torch.stack([image[:, i : i + height, j : j + width] for image, (i, j) in zip(x, corners.tolist(), strict=True)])
    return torch.where(mirrored, x.flip(3), x)


def heavy(x: Tensor, streams: Streams) -> Tensor:
    """As `crop`, then a lighter ground, less contrast, blur and noise, each to a random degree: for judges.

    A judge looks at feature images, which have grey grounds and noise that no photograph has; one that was trained
    on clean images alone gives them all the same class.
    """
    from torchvision.transforms.functional import gaussian_blur

    ground, contrast, blur, noise = streams.child("degree").uniform(4, 1, 1, 1).to(x).unbind(1)
    x = crop(x, streams)
    low = LIGHTEST_GROUND * ground
    x = low + (1 - low) * (LOWEST_CONTRAST + (1 - LOWEST_CONTRAST) * contrast) * x
    sigma = WIDEST_BLUR * x.shape[3] / 28
    x = x + blur * (gaussian_blur(x, [2 * round(2 * sigma) + 1] * 2, [sigma] * 2) - x)
    return (x + STRONGEST_NOISE * noise * streams.child("noise").normal(*x.shape[1:]).to(x)).clamp(0, 1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "crop": crop,
    "crop+flip": crop_flip,
    "window+flip": window_flip,
    "heavy": heavy,
}


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
