"""Attribution: which pixels a network's answer depends on, with measures that say what such a map is worth."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vizrobust.attacks.threat_models import widened
from vizrobust.attribution.methods import (
    ATTRIBUTIONS,
    Attribution,
    GuidedBackprop,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    Saliency,
    SmoothGrad,
    captum,
    parse_attribution,
)
from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.models import evaluating
from vizrobust.models.forward import predicted_classes
from vizrobust.rng import Streams, seeded

CURVE_STEPS = 14  # of deletion and insertion; each removes or shows the same number of pixels
RANDOM_ORDERS = 4
PATCHES, PATCH_SHARE = 64, 4  # of infidelity; a patch's side is a quarter of the image's shorter one
NOISE, NOISE_SAMPLES = 0.02, 4  # of sensitivity, in pixels of [0, 1]


def gini(maps: Tensor) -> Tensor:
    """(N, H, W) -> (N,): how few pixels hold the map's sizes, 0 for all alike, near 1 for one pixel; NaN for an empty map.

    Gini index (Hurley & Rickard 2009, equation 11; used for maps by Chalasani et al. 2020).

    >>> gini(torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]])).tolist()
    [0.0, 0.5]
    """
    sizes = widened(maps).abs().flatten(1).sort(1).values
    n = sizes.shape[1]
    weights = (n - torch.arange(1, n + 1, device=sizes.device) + 0.5) / n
    return (1 - 2 * (sizes * weights).sum(1) / sizes.sum(1)).float()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """(N, H, W) twice -> (N,): Spearman's correlation of the sizes of two maps; NaN where one is constant.

    >>> rank_correlation(torch.tensor([[[1.0, 2.0, -3.0]]]), torch.tensor([[[2.0, 4.0, 8.0]]])).tolist()
    [1.0]
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(maps.abs().flatten(1).cpu().numpy(), axis=1)) for maps in (a, b)]
    first, second = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    scale = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(1) / scale).where(scale > 0, torch.nan).float()


def curve_area(
    net: nn.Module, x: Tensor, y: Tensor, order: Tensor, background: Tensor, insert: bool, steps: int = CURVE_STEPS
) -> Tensor:
    """(N,): the mean probability of class y while pixels are removed, or with `insert` shown, in `order` (N, H * W).

    A removed pixel has the colour `background` (C,). Deletion and insertion of Petsiuk et al. 2018, §4.2.
    """
    n, _, height, width = x.shape
    empty = background.reshape(1, -1, 1, 1).to(x).expand_as(x)
    first, last = (empty, x) if insert else (x, empty)
    rank = order.argsort(1).reshape(n, 1, height, width)  # at which place a pixel comes
    values = []
    with torch.no_grad():
        for step in range(steps + 1):
            shown = torch.where(rank < step * height * width / steps, last, first)
            values.append(net(shown).float().softmax(1).gather(1, y[:, None])[:, 0])
    return torch.trapezoid(torch.stack(values), dim=0) / steps


def gains(net: nn.Module, x: Tensor, y: Tensor, maps: Tensor, background: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
    """Two (N,): how much less probability deletion leaves, and how much more insertion gives, than in random orders.

    Pixels go from the largest value of the map down, equal ones in a random order. 0 is the mean of random orders.
    """
    shuffles = [streams.child(f"order {number}").permutation(maps[0].numel()).to(x.device) for number in range(RANDOM_ORDERS + 1)]
    mixed = shuffles.pop()
    order = mixed.gather(1, maps.flatten(1).gather(1, mixed).sort(stable=True, dim=1, descending=True).indices)
    found = []
    for insert in (False, True):
        area = curve_area(net, x, y, order, background, insert)
        random = torch.stack([curve_area(net, x, y, shuffle, background, insert) for shuffle in shuffles]).mean(0)
        found.append(area - random if insert else random - area)
    return found[0], found[1]


def infidelity(net: nn.Module, x: Tensor, y: Tensor, shares: Tensor, background: Tensor, streams: Streams) -> Tensor:
    """(N,): the part of the logit's changes under hidden squares that the `shares` (N, C, H, W) do not tell; 0 is perfect.

    Infidelity of Yeh et al. 2019 (square removal), by captum, with the scale of the map left free, over that of an empty
    map: so networks with larger logits can be compared. NaN where no square changes the logit.
    """
    count, (n, _, height, width) = PATCHES, x.shape
    side = max(1, min(height, width) // PATCH_SHARE)
    empty = background.reshape(1, -1, 1, 1).to(x)
    tops = streams.child("tops").integers(height - side + 1, count)[:, :, None, None, None].to(x.device)
    lefts = streams.child("lefts").integers(width - side + 1, count)[:, :, None, None, None].to(x.device)
    rows = torch.arange(height, device=x.device).reshape(1, 1, 1, -1, 1)
    columns = torch.arange(width, device=x.device).reshape(1, 1, 1, 1, -1)
    hidden = (rows >= tops) & (rows < tops + side) & (columns >= lefts) & (columns < lefts + side)
    done = 0

    def hide(images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal done
        each = len(images) // n
        mask = hidden[:, done : done + each].flatten(0, 1).to(images)
        done = (done + each) % count
        return mask.expand_as(images), images - mask * (images - empty)

    def score(values: Tensor, normalize: bool) -> Tensor:
        return captum("metrics").infidelity(
            net, hide, x, values, target=y, n_perturb_samples=count, max_examples_per_batch=n * 16, normalize=normalize
        )

    with torch.no_grad():
        whole = score(torch.zeros_like(x), False)
        return (score(shares, True) / whole).where(whole > 0, torch.nan)


def sensitivity(explain: Callable[[Tensor, int], Tensor], x: Tensor, streams: Streams) -> Tensor:
    """(N,): the largest change of the map, relative to its size, under uniform noise of at most `NOISE` on each pixel.

    Max-sensitivity of Yeh et al. 2019 (definition 3.1), by captum. `explain` makes the maps of images that are each
    repeated so many times.
    """
    noise = (2 * streams.child("noise").uniform(NOISE_SAMPLES, *x.shape[1:]) - 1).flatten(0, 1)

    def explained(images: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        if isinstance(images, tuple):
            return (explain(images[0], 1),)
        return explain(images, NOISE_SAMPLES)

    def moved(images: Tensor, radius: float) -> Tensor:
        return (images + radius * noise.to(images)).clamp(0, 1)

    score: Tensor = captum("metrics").sensitivity_max(explained, x, moved, NOISE, NOISE_SAMPLES)
    return score


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


__all__ = [
    "ATTRIBUTIONS",
    "MEASURES",
    "Attribution",
    "Explained",
    "GuidedBackprop",
    "IntegratedGradients",
    "LayerCAM",
    "Occlusion",
    "Saliency",
    "SmoothGrad",
    "captum",
    "explained",
    "parse_attribution",
    "passes",
]
