"""Metrics of clarity: pure functions of a judge's output, one number per unit; and the catalogue with their roles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vizrobust.clarity.path_similarity import path_similarity
from vizrobust.intervals import auc_of_ranks
from vizrobust.plugins import Catalogue


def judge_log_odds(logits: Tensor, unit: Tensor) -> Tensor:
    """The judge's log-odds of the intended class: logits (N, classes), classes (N,) -> (N,), larger = clearer.

    log p / (1 - p) with p the softmax probability; whether a picture's class transfers to an outside network was asked by
    Fel et al. 2023 (arXiv 2306.06805).

    >>> judge_log_odds(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    tensor([0., 3.])
    """
    own = logits.gather(1, unit[:, None])[:, 0]
    others = torch.where(F.one_hot(unit, logits.shape[1]).bool(), -torch.inf, logits)
    return own - others.logsumexp(1)


def every_log_odds(logits: Tensor) -> Tensor:
    """`judge_log_odds` of every class: logits (N, classes) -> (N, classes), finite for finite logits.

    >>> every_log_odds(torch.tensor([[3.0, 0.0]]))
    tensor([[ 3., -3.]])
    """
    exact = logits.double()
    every = exact.logsumexp(1, keepdim=True)
    # A class below the largest has a probability of at most one half, so this does not cancel.
    odds = exact - every - torch.log1p(-torch.exp(exact - every).clamp(max=0.5))
    best = exact.argmax(1, keepdim=True)
    others = exact.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
    return odds.scatter(1, best, exact.gather(1, best) - others).float()


def judge_top1(logits: Tensor, unit: Tensor) -> Tensor:
    """Whether the judge's first guess is the intended class: logits (N, classes), classes (N,) -> (N,) bool.

    >>> judge_top1(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    tensor([False,  True])
    """
    return logits.argmax(1) == unit


def two_afc(exciting: Tensor, other: Tensor, queries: Tensor, distractors: Tensor) -> float:
    """Two-alternative forced choice by machine (after Borowski et al. 2021; Zimmermann et al. 2024): an AUC, chance .5.

    `exciting` (R, d) and `other` (R', d) are features of pictures that belong to the unit and that do not. `queries`
    (n, d) and `distractors` (m, d) are features of natural images that excite the unit and that do not. The score of a
    natural image is its mean cosine to the exciting pictures minus that to the others. The AUC, in [0, 1], says how well
    this score separates queries from distractors.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> two_afc(a, b, queries=a, distractors=b), two_afc(b, a, queries=a, distractors=b)
    (1.0, 0.0)
    """
    from scipy.stats import rankdata

    natural = torch.cat((queries, distractors))
    score = mean_cosine(natural, exciting) - mean_cosine(natural, other)
    # scikit-learn's area takes a hundred times as long.
    return float(auc_of_ranks(rankdata(score.numpy()), np.arange(len(score)) < len(queries)))


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n,): each row's mean cosine to the rows of b."""
    return (F.normalize(a.to(torch.float64), dim=1) @ F.normalize(b.to(torch.float64), dim=1).T).mean(1)


# Cosines closer than this are a tie: the same numbers summed in another order.
DIGITS = 12


@dataclass(frozen=True)
class IdentificationScores:
    """One value per unit, each (M,) float64 in [0, 1], larger = clearer.

    `top1` is the share of the unit's natural images whose most similar pictures are its own, `reciprocal_rank` their
    mean 1 / rank of its own pictures.
    """

    top1: Tensor
    reciprocal_rank: Tensor


def identification(queries: Sequence[Tensor], pictures: Sequence[Tensor]) -> IdentificationScores:
    """Which of M units a natural image belongs to, by the units' pictures. Larger = clearer, chance 1/M.

    Defined in docs/measuring-clarity.md, "Identification".

    `queries[u]` (n_u, d) are features of natural images of unit u, `pictures[u]` (R_u, d) those of its pictures; the
    numbers of rows may differ. Natural images and pictures lie in different parts of feature space, so the mean of each
    pool is subtracted first. A query's score for a unit is its mean cosine to that unit's pictures. Units that tie share
    their ranks evenly, so pictures without information get chance: 1/M, and for the reciprocal rank the mean of 1, 1/2 …
    1/M. Raises ``ValueError`` for fewer than two units and for a unit without images or pictures.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> identification(queries=[a, b], pictures=[a, b]).top1
    tensor([1., 1.], dtype=torch.float64)
    >>> identification(queries=[a, b], pictures=[b, a]).reciprocal_rank
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if len(queries) != len(pictures) or len(queries) < 2:
        raise ValueError(
            f"identification needs at least two units, each with images and pictures, got {len(queries)} and {len(pictures)}"
        )
    for kind, pools in (("natural images", queries), ("pictures", pictures)):
        empty = [position for position, pool in enumerate(pools) if len(pool) == 0]
        if empty:
            raise ValueError(f"unit {empty[0]} of {len(pools)} has no {kind} to identify; give each at least one")
    natural, shown = _directions(queries), _directions(pictures)
    own = torch.repeat_interleave(torch.arange(len(queries)), torch.tensor([len(pool) for pool in queries]))
    # The mean of unit vectors holds the mean cosine to all of them.
    similar = (natural @ _means(shown, pictures).T).round(decimals=DIGITS)
    score = similar.gather(1, own[:, None])
    better, tied = (similar > score).sum(1), (similar == score).sum(1)
    harmonic = torch.cat((torch.zeros(1, dtype=torch.float64), (1 / torch.arange(1.0, len(queries) + 1).double()).cumsum(0)))
    top1 = (better == 0) / tied.double()
    reciprocal = (harmonic[better + tied] - harmonic[better]) / tied
    return IdentificationScores(*(_means(value[:, None], queries)[:, 0] for value in (top1, reciprocal)))


def _directions(pools: Sequence[Tensor]) -> Tensor:
    """All rows of the pools, minus their mean, at length 1; a row that equals the mean becomes 0."""
    rows = torch.cat(list(pools)).to(torch.float64)
    rows = rows - rows.mean(0)
    # A row that differs from the mean by rounding alone has no direction.
    nothing = torch.linalg.vector_norm(rows, dim=1) <= 1e-12 * torch.linalg.vector_norm(torch.cat(list(pools)).double(), dim=1)
    return torch.where(nothing[:, None], 0.0, F.normalize(rows, dim=1))


def _means(rows: Tensor, pools: Sequence[Tensor]) -> Tensor:
    """(sum of n_u, k) -> (M, k): the mean row of each pool."""
    return torch.stack([part.mean(0) for part in torch.split(rows, [len(pool) for pool in pools])])


def nearest_neighbour_distance(pictures: Tensor, natural: Tensor) -> Tensor:
    """Cosine distance to the nearest natural image: (N, d), (n, d) -> (N,) float64 in [0, 2], smaller = clearer.

    Defined in docs/measuring-clarity.md, "Distance to natural images". The distance is 1 - cosine, because encoders differ in
    the length of their features. More natural images bring the nearest one nearer, so compare at one n. Raises ``ValueError``
    without natural images.

    >>> nearest_neighbour_distance(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0., 1.], dtype=torch.float64)
    """
    if len(natural) == 0:
        raise ValueError("the distance to the nearest natural image needs at least one natural image, got none")
    cosine = F.normalize(pictures.to(torch.float64), dim=1) @ F.normalize(natural.to(torch.float64), dim=1).T
    return 1 - cosine.amax(1)


def kid(pictures: Tensor, natural: Tensor) -> float:
    """Kernel inception distance of two sets of images (Bińkowski et al. 2018): (N, d), (n, d) -> number, smaller = clearer.

    The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) under the kernel
    (x . y / d + 1)^3. 0 on average where both sets are draws from one distribution, so it may be negative. Its size
    depends on the encoder: compare under one judge. Raises ``ValueError`` for fewer than two images on a side.

    >>> near, far = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[4.0, 4.0], [5.0, 5.0]])
    >>> kid(near, near) < kid(far, near)
    True
    """
    if len(pictures) < 2 or len(natural) < 2:
        raise ValueError(f"KID needs two images on either side, got {len(pictures)} and {len(natural)}")
    x, y = pictures.to(torch.float64), natural.to(torch.float64)
    return float(_mean_of_pairs(_kernel(x, x)) + _mean_of_pairs(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """The mean off the diagonal: an image paired with itself would bias the estimate."""
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def cross_seed_similarity(pictures: Sequence[Tensor]) -> Tensor:
    """Mean cosine among a unit's pictures minus that to all other units' pictures: M times (R_u, d) -> (M,) float64.

    Defined in docs/measuring-clarity.md, "Cross-seed similarity". In [-2, 2], larger = clearer, 0 where a unit's pictures are
    no more alike than pictures of different units. Every pair counts once and none is drawn at random. Raises
    ``ValueError`` for fewer than two units and for fewer than two pictures of a unit.

    >>> east, north = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    >>> cross_seed_similarity([east, north])
    tensor([1., 1.], dtype=torch.float64)
    >>> cross_seed_similarity([torch.stack((east[0], north[0]))] * 2)
    tensor([-0.5000, -0.5000], dtype=torch.float64)
    """
    counts = torch.tensor([len(pool) for pool in pictures])
    if len(counts) < 2 or int(counts.min()) < 2:
        few = f"{int(counts.min())} pictures" if len(counts) > 1 else f"{len(counts)} units"
        raise ValueError(f"cross-seed similarity needs two units with two pictures (seeds) each, got {few}")
    directions = [F.normalize(pool.to(torch.float64), dim=1) for pool in pictures]
    sums = torch.stack([one.sum(0) for one in directions])
    # The square of a sum of unit vectors holds the cosine of every pair twice, and each vector with itself.
    alone = torch.stack([one.square().sum() for one in directions])
    within = (sums.square().sum(1) - alone) / (counts * (counts - 1))
    between = (sums * (sums.sum(0) - sums)).sum(1) / (counts * (counts.sum() - counts))
    return within - between


# The power of rounding to 8 bits at every frequency, below which a picture holds nothing: the variance of a step is 1/12 step^2.
ROUNDING = (1 / 255) ** 2 / 12
SMALLEST = 4
HIGH = 0.25  # cycles per pixel


def spectrum_distance(images: Tensor, natural: Tensor) -> Tensor:
    """Distance of radial log-power profiles: (N, C, H, W), (n, C', H, W) -> (N,) float64, smaller = more natural.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): pictures of a random network may come out best. An image's
    profile is the mean of log10 power on each ring of frequencies from one cycle per image to half a cycle per pixel. The
    distance is the root mean square, over rings, of its difference from the natural images' mean profile. 0 for a natural
    average, 1 for an image with ten times the power everywhere. Raises ``ValueError`` where sizes differ.

    >>> noise = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    >>> spectrum_distance(noise, noise).max() < spectrum_distance(0.1 * noise, noise).min()
    tensor(True)
    """
    if images.shape[2:] != natural.shape[2:] or len(natural) == 0:
        sizes = f"{tuple(images.shape[2:])} and {len(natural)} of {tuple(natural.shape[2:])}"
        raise ValueError(f"spectra are compared with natural images of the same size, got {sizes}")
    return (_profile(images) - _profile(natural).mean(0)).square().mean(1).sqrt()


def high_frequency_share(images: Tensor) -> Tensor:
    """Share of an image's power above 1/4 cycle per pixel: (N, C, H, W) -> (N,) float64 in [0, 1], smaller = less noise.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): read it beside the natural images' own. The mean is left out;
    white noise has about .80, an image without any contrast 0.

    >>> stripes = torch.arange(8.0) % 2 * torch.ones(1, 1, 8, 1)
    >>> ramp = torch.arange(8.0) / 7 * torch.ones(1, 1, 8, 1)
    >>> high_frequency_share(torch.cat((stripes, ramp))).round(decimals=2)
    tensor([1.0000, 0.1600], dtype=torch.float64)
    """
    power = _power(images)
    power[:, 0, 0] = 0
    # A frequency of exactly 1/4 is not above it, however its square was rounded.
    high = _radius(power) > HIGH + 1e-9
    total = power.sum((1, 2)).clamp(min=ROUNDING * (power[0].numel() - 1))
    return power[:, high].sum(1) / total


def nyquist_ratio(images: Tensor) -> Tensor:
    """Power at the Nyquist frequency over that just below it: (N, C, H, W) -> (N,) float64, above 1 = a two-pixel grid.

    A diagnostic (docs/measuring-clarity.md, "Spectra"): strided convolutions leave such a grid (.92 for natural images of
    Imagenette). Summed are the rows and columns of the spectrum at exactly 1/2 cycle per pixel and their neighbours. Only
    an even number of pixels has that frequency, so an odd height or width loses its last row or column. 1 for white noise
    on average and for an image without contrast. Raises ``ValueError`` below 4 pixels.

    >>> grid = torch.arange(6.0) % 2 * torch.ones(1, 1, 6, 1)
    >>> bool(nyquist_ratio(0.5 + 0.01 * grid) > 2), nyquist_ratio(0 * grid)
    (True, tensor([1.], dtype=torch.float64))
    """
    height, width = (side - side % 2 for side in images.shape[2:])
    power = _power(images[..., :height, :width])
    at = power[:, height // 2].sum(1) + power[:, :, width // 2].sum(1)
    below = power[:, height // 2 - 1].sum(1) + power[:, :, width // 2 - 1].sum(1)
    rounding = ROUNDING * (height + width)
    return (at + rounding) / (below + rounding)


def _power(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W): mean over channels of the squared magnitudes of the orthonormal Fourier transform."""
    if images.dim() != 4 or min(images.shape[2:]) < SMALLEST:
        raise ValueError(f"spectra need images (N, C, H, W) of at least {SMALLEST} pixels, got {tuple(images.shape)}")
    return torch.fft.fft2(images.to(torch.float64), norm="ortho").abs().square().mean(1)


def _radius(power: Tensor) -> Tensor:
    """(H, W): the distance of each frequency from 0, in cycles per pixel."""
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in power.shape[1:])
    return torch.hypot(down[:, None], across)


def _profile(images: Tensor) -> Tensor:
    """(N, rings): the mean log10 power on rings one cycle per (shorter side of the) image wide; the corners are left out."""
    power = _power(images)
    side = min(power.shape[1:])
    ring = (_radius(power) * side + 0.5).floor().long()
    kept = (ring >= 1) & (ring <= side // 2)
    flat = (power[:, kept] + ROUNDING).log10()
    index = ring[kept] - 1
    totals = torch.zeros(len(images), side // 2, dtype=torch.float64).index_add_(1, index, flat)
    return totals / torch.bincount(index, minlength=side // 2)


Role = Literal["primary", "secondary", "diagnostic"]


@dataclass(frozen=True)
class Metric:
    """A metric of clarity: its name, its role in the verdict and how to read it.

    `name` is its id in files, which never changes, `title` its heading and `label` what a sentence calls it (default: the
    name). `direction` is 1 where larger is clearer and -1 where smaller is. `chance` is the level of pictures without
    information where that is one number; where it depends on a number of choices, `among` says of what. `class_units`
    metrics need the logits of a judge and exist for class units alone; `judged` metrics need a judge or an encoder.
    """

    name: str
    title: str
    role: Role
    direction: Literal[1, -1]
    function: Callable[..., Any]
    chance: float | None = None
    among: Literal["", "units", "classes"] = ""
    class_units: bool = False
    judged: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name.replace("_", " "))

    def chance_level(self, units: int, classes: int) -> float | None:
        """The chance level among `units` units, for a judge of `classes` classes; None where there is none.

        >>> METRICS["identification"].chance_level(units=20, classes=10), METRICS["transfer"].chance_level(20, 10)
        (0.05, None)
        """
        if self.name == "reciprocal_rank":
            return sum(1 / rank for rank in range(1, units + 1)) / units
        return 1 / {"units": units, "classes": classes}[self.among] if self.among else self.chance


def _catalogue(*metrics: Metric) -> Catalogue[Metric]:
    return Catalogue({metric.name: metric for metric in metrics}, "metrics")


# Roles: docs/measuring-clarity.md, "Metrics and their roles". The primary ones enter the verdict; diagnostics never do.
METRICS = _catalogue(
    Metric("transfer", "Judge log-odds", "primary", 1, judge_log_odds, class_units=True, label="judge log-odds"),
    Metric("forced_choice", "2AFC AUC, hard distractors", "primary", 1, two_afc, chance=0.5, label="2AFC AUC"),
    Metric("natural_equivalent", "Natural-equivalent clarity", "secondary", 1, every_log_odds, class_units=True),
    Metric("recognised", "Judge top-1", "secondary", 1, judge_top1, among="classes", class_units=True, label="judge top-1"),
    Metric("forced_choice_easy", "2AFC AUC, easy distractors", "secondary", 1, two_afc, chance=0.5, label="easy 2AFC AUC"),
    Metric("forced_choice_own", "2AFC AUC, own queries", "secondary", 1, two_afc, chance=0.5, label="own-query 2AFC AUC"),
    Metric("identification", "Identification (top-1)", "secondary", 1, identification, among="units"),
    Metric("reciprocal_rank", "Identification (mean reciprocal rank)", "secondary", 1, identification, among="units"),
    Metric("seed_agreement", "Cross-seed similarity (cosine)", "secondary", 1, cross_seed_similarity, chance=0.0,
           label="cross-seed similarity"),
    Metric("nearest_natural", "Nearest-neighbour distance (cosine)", "secondary", -1, nearest_neighbour_distance,
           label="nearest-neighbour distance"),
    Metric("kernel_distance", "KID", "secondary", -1, kid, label="KID"),
    Metric("spectrum_distance", "Spectrum distance", "diagnostic", -1, spectrum_distance, judged=False),
    Metric("high_frequency_share", "Power above 1/4 cycle per pixel", "diagnostic", -1, high_frequency_share, judged=False),
    Metric("nyquist_ratio", "Nyquist ratio", "diagnostic", -1, nyquist_ratio, judged=False),
    Metric("path_similarity", "Path similarity", "diagnostic", 1, path_similarity, judged=False),
)  # fmt: skip
