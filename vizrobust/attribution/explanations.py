"""Explain the images of a split: a map of each, with its measures, image by image whatever the batch."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.attribution.measures import (
    CURVE_STEPS,
    NOISE_SAMPLES,
    PATCHES,
    RANDOM_ORDERS,
    gains,
    gini,
    infidelity,
    rank_correlation,
    sensitivity,
)
from vizrobust.attribution.methods import Attribution
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.models import evaluating
from vizrobust.models.forward import predicted_classes
from vizrobust.rng import Streams, seeded

# What each measure is called, and whether more or less of it is better; 0 is neither.
MEASURES = {"deletion": 1, "insertion": 1, "infidelity": -1, "sensitivity": -1, "weights": -1, "gini": 0}


@dataclass(frozen=True)
class Explained:
    """The map (H, W) of the image `index` for the class that the network `predicted`; measures that do not exist are None.

    `nonfinite` says that entries of the map were not finite, as gradients of a square root at 0 are, and count as 0.
    Where the network's outputs are not finite nothing explains them: `predicted` is -1, the map is 0, all measures are None.

    `deletion` and `insertion` are gains over random orders, `infidelity` the unexplained part, `sensitivity` the largest
    relative change under small noise, `weights` the rank correlation with the map of random weights, `gini` the sparsity.
    """

    index: int
    predicted: int
    values: Tensor = field(repr=False)
    measures: dict[str, float | None]
    nonfinite: bool = False


def explained(
    net: nn.Module, method: Attribution, images: Split, background: tuple[float, ...], compute: Compute, *,
    random_net: nn.Module | None = None, seed: int = 0, batch_size: int = 8, known: Container[int] = (),
) -> Iterator[Explained]:  # fmt: skip
    """Each image's map and measures, but for the `known` ones; `background` is the colour of a pixel that is not there.

    `random_net` has the same architecture and other weights. Raises ``ValueError`` where the method cannot explain it.

    >>> from vizrobust.attribution.methods import Saliency
    >>> from vizrobust.data import ArraySplit
    >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), ArraySplit(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    >>> [one.values.shape for one in explained(net, Saliency(), images, (0.0,), Compute("cpu"))]
    [torch.Size([8, 8]), torch.Size([8, 8])]
    """
    compute.place(net)
    if random_net is not None:
        compute.place(random_net)
    empty = torch.tensor(background, device=compute.device)
    ready: Attribution | None = None
    for index, count in full_batches(len(images), batch_size):
        if all(number in known for number in index[:count].tolist()):
            continue
        x, streams = compute.images(images.take(index)), Streams(seed, index.tolist(), "explain")
        with evaluating(net), compute.autocast(), seeded(seed, compute.device):
            ready = ready or method.prepared(net, (int(x.shape[1]), int(x.shape[2]), int(x.shape[3])))
            with torch.no_grad():
                y = predicted_classes(net(x))
            shares, found, wrong = _measured(net, random_net, ready, x, y.clamp_min(0), empty, streams)
        maps = ready.pixels(shares).float().cpu()
        for place, number in enumerate(index[:count].tolist()):
            if number in known:
                continue
            if y[place] < 0:
                yield Explained(number, -1, torch.zeros_like(maps[place]), dict.fromkeys(found))
                continue
            values = {name: float(column[place]) for name, column in found.items()}
            measures = {name: None if value != value else value for name, value in values.items()}
            yield Explained(number, int(y[place]), maps[place], measures, bool(wrong[place]))


def passes(method: Attribution) -> float:
    """About how many gradient passes a map and all its measures take for one image.

    >>> from vizrobust.attribution.methods import Saliency
    >>> round(passes(Saliency()))
    99
    """
    without_gradient = 2 * (CURVE_STEPS + 1) * (RANDOM_ORDERS + 1) + 2 * PATCHES
    maps = 2 + NOISE_SAMPLES  # the image's own, that of random weights, and those of noisy copies
    return without_gradient / 3 + maps * method.passes


def _measured(
    net: nn.Module, random_net: nn.Module | None, method: Attribution, x: Tensor, y: Tensor, empty: Tensor, streams: Streams
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The shares (N, C, H, W), the measures (N,) by name, and whether some shares were not finite (N,)."""

    def maps_of(images: Tensor, repeats: int = 1, network: nn.Module = net) -> Tensor:
        places = torch.arange(len(x)).repeat_interleave(repeats)
        same = streams.take(places).child("method")
        return method.pixels(finite(method(network, images, y.repeat_interleave(repeats), empty, same))).float()

    raw = method(net, x, y, empty, streams.child("method"))
    shares, wrong = finite(raw), ~raw.isfinite().flatten(1).all(1)
    maps = method.pixels(shares).float()
    presence = shares * (x - empty.reshape(1, -1, 1, 1)) if method.local else shares
    deletion, insertion = gains(net, x, y, maps, empty, streams.child("orders"))
    found = {
        "deletion": deletion,
        "insertion": insertion,
        "infidelity": infidelity(net, x, y, presence.float(), empty, streams.child("infidelity")),
        "sensitivity": sensitivity(maps_of, x, streams.child("sensitivity")),
        "gini": gini(maps),
    }
    if random_net is not None:
        with evaluating(random_net):
            found["weights"] = rank_correlation(maps, maps_of(x, 1, random_net))
    return shares, found, wrong


def finite(shares: Tensor) -> Tensor:
    """The same with 0 for entries that are not finite, as in every attack's gradient."""
    return shares.where(shares.isfinite(), 0)
