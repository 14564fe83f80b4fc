"""Dictionaries fitted to a layer's activations by PCA, NMF or a sparse autoencoder, and what one is worth on other images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizrobust.compute import Compute
from vizrobust.data import Split
from vizrobust.features.exemplars import BATCH_SIZE
from vizrobust.features.unit_facts import layer_maps
from vizrobust.intervals import mean_interval
from vizrobust.models.dictionaries import Dictionary, activated
from vizrobust.requests import ParameterError
from vizrobust.requests.understanding import L1
from vizrobust.rng import Streams

ROUNDS = 50  # of the encoder's regression
STEPS, BATCH, LR = 2000, 512, 3e-3  # of the autoencoder
RESAMPLED = 1000
NOT_FINITE = "the layer gives values that are not finite numbers, so it has no dictionary; see its weights"
Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]
Interval = tuple[float, float | None, float | None]


def layer_vectors(
    net: nn.Module, layer: str, images: Split, places: int, *, shape: Shape, compute: Compute, seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Tensor:  # fmt: skip
    """(n, channels) float32: a layer's vectors at so many different random places of every image's map, or at all of them."""
    found = []
    for first, maps in _maps(net, layer, images, shape, compute):
        at = Streams(seed, range(first, first + len(maps)), "dictionary").permutation(maps.shape[2])[:, :places]
        found.append(maps.gather(2, at[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2).flatten(0, 1))
        if progress is not None:
            progress(len(maps))
    return torch.cat(found)


def fit_dictionary(
    vectors: Tensor, method: str, units: int, k: int | None = None, seed: int = 0, *, l1: float = L1, steps: int = STEPS,
    progress: Callable[[int], object] | None = None,
) -> Dictionary:  # fmt: skip
    """A dictionary of so many units of vectors (n, channels), by scikit-learn or by an autoencoder.

    ``pca``: principal components, without a nonlinearity. ``nmf``: non-negative parts (Lee & Seung 1999); its own coefficients
    are the answer of a search for each vector, which pictures cannot follow, so the encoder is a linear map with a ReLU
    whose codes are nearest to those coefficients: a squared error where they are positive, one for being above 0 where they
    are 0. ``topk``: an autoencoder whose `k` largest codes count (Gao et al. 2024). ``relu``: one whose positive codes count, and
    cost `l1` times their sum beside the squared error, of vectors whose entries have a mean square of 1 (Bricken et al. 2023).
    Either has unit rows in the decoder and is trained by so many `steps` of Adam where the vectors are. Raises ``ValueError`` for
    what a method cannot take.

    >>> fit_dictionary(torch.rand(50, 4), "nmf", 3)
    Dictionary(3 units of 4 channels, relu)
    """
    if not vectors.isfinite().all():
        raise ValueError(NOT_FINITE)
    if method in ("pca", "nmf") and units > min(vectors.shape):
        raise ParameterError(
            "{units} %s is more than %s can have of %s vectors of %s channels; give fewer, or {method} topk or relu",
            units, method, *vectors.shape,
        )  # fmt: skip
    if method == "nmf" and bool((vectors < 0).any()):
        raise ParameterError(
            "{method} nmf needs activations without negative values; give a {layer} behind a ReLU, or {method} pca"
        )
    if method in ("topk", "relu"):
        return _autoencoder(vectors, units, (k or 1) if method == "topk" else None, l1, seed, steps, progress or (lambda _: None))
    from sklearn.decomposition import NMF, PCA
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    x = vectors.cpu().numpy().astype(np.float64)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a search that ended at its last iteration: `quality` says what came of it
        if method == "pca":
            pca = PCA(units, svd_solver="full").fit(x)
            rows, mean = (torch.tensor(part, dtype=torch.float32) for part in (pca.components_, pca.mean_))
            return Dictionary(rows, rows, None, mean, "linear", centered=True)
        nmf = NMF(units, init="nndsvda", max_iter=400, random_state=seed)
        wanted = nmf.fit_transform(x)
        ones = np.hstack([x, np.ones((len(x), 1))])
        solve = np.linalg.pinv(ones.T @ ones, hermitian=True) @ ones.T
        weights = solve @ wanted
        for _ in range(ROUNDS):
            weights = solve @ np.where(wanted > 0, wanted, np.minimum(ones @ weights, 0))
    encoder, bias, decoder = (torch.tensor(part, dtype=torch.float32) for part in (weights[:-1].T, weights[-1], nmf.components_))
    return Dictionary(encoder.contiguous(), decoder, bias)


def _autoencoder(
    vectors: Tensor, units: int, k: int | None, l1: float, seed: int, steps: int, progress: Callable[[int], object]
) -> Dictionary:
    """Of the `k` largest codes; without k, of all positive ones, which cost `l1` times their sum."""
    kind = "relu" if k is None else "topk"
    mean = vectors.mean(0)
    scale = (vectors - mean).square().mean().sqrt().clamp_min(1e-12)
    x, drawn = (vectors - mean) / scale, torch.Generator().manual_seed(seed)
    decoder = F.normalize(torch.randn(units, x.shape[1], generator=drawn), dim=1).to(x).requires_grad_()
    encoder, bias = decoder.detach().clone().requires_grad_(), x.new_zeros(units, requires_grad=True)
    origin = x.new_zeros(x.shape[1], requires_grad=k is None)  # what no unit has to explain
    optimizer = torch.optim.Adam([encoder, bias, decoder, *([origin] if k is None else [])], lr=LR)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    with torch.enable_grad():
        for step in range(steps):
            some = x[torch.randint(len(x), (BATCH,), generator=drawn).to(x.device)]
            codes = activated(F.linear(some - origin, encoder, bias), kind, k)
            loss = (codes @ decoder + origin - some).square().mean()
            if k is None:
                loss = loss + l1 * codes.sum(1).mean() / x.shape[1]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            falling.step()
            with torch.no_grad():
                decoder.copy_(F.normalize(decoder, dim=1))
            progress(step + 1)
    rows, columns, shift, center = (one.detach().cpu() for one in (encoder, decoder, bias * scale, mean + origin * scale))
    return Dictionary(rows, columns, shift, center, kind, k, centered=True)


@dataclass(frozen=True)
class DictionaryQuality:
    """What a dictionary is worth on images: the `explained` variance, and how many units are `active` (codes not 0) at a place.

    Both are (value, low, high), Student's 95 % interval over images. `effective` is the number of units that count: exp of the
    entropy of the units' shares of all contributions, a code's size times its decoder row's length (Bereska et al. 2025), with
    a bootstrap interval over images; 1 where one unit does everything, `units` where all do the same. `dimensions` is that of
    the layer itself without any dictionary: the participation ratio of its covariance, (sum of eigenvalues)^2 / sum of their
    squares (Gao et al. 2017). `shares` and `activity` (units,) are a unit's share and how often its code is not 0.
    """

    images: int
    explained: Interval
    active: Interval
    effective: Interval
    dimensions: float
    shares: Tensor = field(repr=False)
    activity: Tensor = field(repr=False)

    @property
    def dead(self) -> int:
        """Units whose code is 0 at every place of every image."""
        return int((self.activity == 0).sum())


def quality(
    net: nn.Module, layer: str, dictionary: Dictionary, images: Split, *, shape: Shape, compute: Compute, seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> DictionaryQuality:  # fmt: skip
    """What a dictionary of a layer is worth on images, at all places of its map; ``ValueError`` for a layer that is constant."""
    missed, sums, squares, active, parts, often = ([] for _ in range(6))
    places, moments = 1, torch.zeros((), dtype=torch.float64)
    lengths = dictionary.decoder.norm(dim=1)
    with torch.no_grad():
        for _, maps in _maps(net, layer, images, shape, compute):
            codes = dictionary.encode(maps)
            x, places = maps.double(), maps.shape[2]
            missed.append((dictionary.decode(codes).double() - x).square().sum((1, 2)))
            sums.append(x.sum(2))
            squares.append(x.square().sum((1, 2)))
            on = codes != 0
            active.append(on.double().sum((1, 2)) / places)
            often.append(on.double().mean(2))
            parts.append((codes.abs().mean(2) * lengths).double())
            moments = moments + torch.einsum("nap,nbp->ab", x, x)
            if progress is not None:
                progress(len(maps))
    total, n = torch.cat(sums), len(images)
    if not total.isfinite().all():
        raise ValueError(NOT_FINITE)
    mean = total.sum(0) / (n * places)
    spread = torch.cat(squares) - 2 * total @ mean + places * mean.square().sum()
    if float(spread.sum()) <= 0:
        raise ValueError(f"layer {layer!r} answers all images alike, so there is nothing to explain; choose another layer")
    covariance = moments / (n * places) - mean[:, None] * mean
    explained = 1 - float(torch.cat(missed).sum() / spread.sum())
    # The interval of a ratio of means: that of its linearization at the images.
    ratio = explained + ((1 - explained) * spread - torch.cat(missed)) / spread.mean()
    of_images = torch.cat(parts).numpy()
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLED)
    low, high = np.quantile(effective_number(weights @ of_images), [0.025, 0.975])
    shares = of_images.sum(0)
    return DictionaryQuality(
        n, mean_interval(ratio.tolist()), mean_interval(torch.cat(active).tolist()),
        (float(effective_number(shares)), float(low), float(high)), participation_ratio(covariance),
        torch.tensor(shares / max(shares.sum(), 1e-300)), torch.cat(often).mean(0),
    )  # fmt: skip


def effective_features(net: nn.Module, layer: str, images: Split, *, shape: Shape, compute: Compute) -> float | None:
    """The effective number of a layer's features: the participation ratio of its covariance over all places of all images.

    From 1, where all activations lie on a line, to the number of channels (Gao et al. 2017). None where the layer's values
    are not finite, or all alike.

    >>> from vizrobust.data import head, load
    >>> from vizrobust.models import architecture
    >>> net = architecture("small_cnn", (1, 8, 8), 10)()
    >>> 1 <= effective_features(net, "conv1", head(load("digits").val, 9), shape=(1, 8, 8), compute=Compute("cpu")) <= 16
    True
    """
    count, total, moments = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _, maps in _maps(net, layer, images, shape, compute):
        x = maps.double()
        count += x.shape[0] * x.shape[2]
        total, moments = total + x.sum((0, 2)), moments + torch.einsum("nap,nbp->ab", x, x)
    if not moments.isfinite().all():
        return None
    mean = total / count
    covariance = moments / count - mean[:, None] * mean
    rounding = 1e-12 * float(moments.trace()) / count
    return participation_ratio(covariance) if float(covariance.trace()) > rounding else None


def effective_number(sizes: Array) -> Array:
    """(..., units) -> (...): exp of the entropy of their shares (Hill's number of order 1); 0 where all are 0.

    >>> effective_number(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])).round(3).tolist()
    [2.0, 1.0]
    """
    total = sizes.sum(-1, keepdims=True)
    shares = sizes / np.where(total > 0, total, 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def participation_ratio(covariance: Tensor) -> float:
    """The dimensions that a covariance (d, d) has in effect: trace squared over the sum of the squares of all entries.

    >>> participation_ratio(torch.eye(5, dtype=torch.float64)), participation_ratio(torch.ones(5, 5))
    (5.0, 1.0)
    """
    return float(covariance.trace().square() / covariance.square().sum())


def _maps(net: nn.Module, layer: str, images: Split, shape: Shape, compute: Compute) -> Iterator[tuple[int, Tensor]]:
    """(number of the first image, its and the next ones' vectors (n, channels, places) on the CPU), until all images are read."""
    for places, maps in layer_maps(net, layer, images, shape=shape, compute=compute, size=min(BATCH_SIZE, len(images))):
        yield int(places[0]), maps.reshape(*maps.shape[:2], -1).contiguous()
