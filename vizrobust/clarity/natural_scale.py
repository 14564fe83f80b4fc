"""The scale of clarity: how much of a natural photograph's structure must be left for a judge to see its class as well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vizrobust.clarity.judges import TIMES_CHANCE, Judge
from vizrobust.data import Split
from vizrobust.intervals import CONFIDENCE
from vizrobust.rng import Streams

Values = NDArray[np.float64]
# Shares of the phases that are left, from a scrambled image to the photograph.
COHERENCES = tuple(k / 10 for k in range(11))
# Natural images of each class on which a judge is calibrated where its scale is not recorded.
IMAGES = 12
RESAMPLES = 1000


def phases_scrambled(x: Tensor, coherence: float, streams: Streams) -> Tensor:
    """Natural images with part of their structure: (N, C, H, W) in [0, 1] -> the same, one stream for each image.

    The phases of a white noise image, times 1 - `coherence`, are added to the Fourier phases, the same for every channel;
    magnitudes stay. 1 gives the photograph back, 0 an image with its spectrum and mean alone. Pixels outside [0, 1] are
    clipped. Phase scrambling: Thomson 1999 (Vision Research 39); Dakin, Hess, Ledgeway & Achtman 2002 (Nature Neuroscience 5).

    >>> x = torch.rand(1, 3, 8, 8)
    >>> torch.allclose(phases_scrambled(x, 1.0, Streams(0, ["a"], "scale")), x, atol=1e-5)
    True
    """
    noise = torch.fft.rfft2(streams.normal(1, *x.shape[2:])).angle()
    turned = torch.fft.rfft2(x) * torch.exp(1j * (1 - coherence) * noise)
    # The mean is no structure: its phase stays 0.
    turned[..., 0, 0] = torch.fft.rfft2(x)[..., 0, 0]
    return torch.fft.irfft2(turned, s=x.shape[-2:]).clamp(0, 1)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    wide = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(wide, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3), groups=x.shape[1])


def degraded(x: Tensor, kind: str, strength: float, streams: Streams) -> Tensor:
    """Images degraded in another way, for the check that a judge's score falls with what is lost.

    ``blur``: a Gaussian of `strength` x 16 % of the side; ``noise``: Gaussian noise of deviation `strength`; ``contrast``: the
    contrast times 1 - `strength`.

    >>> degraded(torch.full((1, 1, 4, 4), 0.25), "contrast", 1.0, Streams(0, ["a"], "scale")).mean().item()
    0.25
    """
    if strength <= 0:
        return x
    if kind == "blur":
        return _blurred(x, 0.16 * strength * x.shape[-1])
    if kind == "noise":
        return (x + strength * streams.normal(*x.shape[1:])).clamp(0, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (1 - strength) * (x - mean)


STRENGTHS = {"blur": (0.1, 0.25, 0.5), "noise": (0.1, 0.2, 0.4), "contrast": (0.7, 0.9, 1.0)}


def _rising(table: Values) -> Values:
    """(coherences, classes) -> (coherences,): the rising curve nearest to the mean over classes."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(table.mean(1)).x)


@dataclass(frozen=True)
class NaturalScale:
    """A judge's scores of natural images with known shares of their structure.

    `scores` (coherences, classes) are the mean log-odds of each class at each of `coherences`, `errors` their standard errors
    over `images` images of a class. `accuracy` is the share of the whole photographs that it recognises among these classes.
    `others` holds, for each other way to degrade, the mean over classes at each of `STRENGTHS`.

    >>> scale = NaturalScale("j", "", ("a",), (0.0, 0.5, 1.0), ((-4.0,), (-3.0,), (1.0,)), ((0.1,), (0.1,), (0.1,)), 9)
    >>> scale.clarity([-3.0]), scale.clarity([-1.0]), scale.clarity([5.0])
    (0.5, 0.75, 1.0)
    """

    judge: str
    network_sha256: str
    classes: tuple[str, ...]
    coherences: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    images: int
    data: str = ""
    accuracy: float = 1.0
    others: Mapping[str, tuple[float, ...]] | None = None

    def curve(self, units: Sequence[int] | None = None) -> Values:
        """(coherences,): the rising curve nearest to the scores' mean over the classes `units` (isotonic regression)."""
        table = np.asarray(self.scores, dtype=np.float64)
        return _rising(table if units is None else table[:, list(units)])

    def clarity(self, scores: Sequence[float], units: Sequence[int] | None = None) -> float:
        """The natural-equivalent clarity of pictures with these scores, one of each class of `units`, in [0, 1].

        The share of phase coherence at which natural photographs of the same classes have the same mean score: 0 is
        scrambled (or below), 1 a photograph (or above).
        """
        return float(inverse(self.curve(units), np.asarray(self.coherences), float(np.mean(scores))))

    @property
    def resolves_from(self) -> float:
        """The smallest coherence whose mean score is told from that of scrambled images (one-sided 97.5 %, over classes).

        Below it the curve is flat: the judge cannot say how little is left.
        """
        table, errors = np.asarray(self.scores), np.asarray(self.errors)
        gain = (table - table[0]).mean(1)
        error = np.sqrt((errors**2 + errors[0] ** 2).sum(1)) / table.shape[1]
        apart = [c for c, g, e in zip(self.coherences[1:], gain[1:], error[1:], strict=True) if g > 1.96 * e]
        return float(apart[0]) if apart else 1.0

    @property
    def disqualified(self) -> str:
        """Why the judge cannot measure clarity; empty where it can.

        It must recognise photographs at least twice as often as chance. Its scores must tell at least half of the photographs'
        structure from none, rise with the coherence (no fall beyond two standard errors), and fall under blur, noise and loss
        of contrast.
        """
        if self.accuracy < (needed := TIMES_CHANCE / len(self.classes)):
            return f"it recognises {100 * self.accuracy:.1f} % of natural images, less than twice chance ({100 * needed:.1f} %)"
        table, errors = np.asarray(self.scores), np.asarray(self.errors)
        photograph = float(table[-1].mean())
        if self.resolves_from > 0.5 + 1e-9:
            share = 100 * self.resolves_from
            return f"it does not tell photographs with less than {share:.0f} % of their phase coherence from scrambled ones"
        steps = np.diff(table, axis=0).mean(1)
        error = np.sqrt((errors[1:] ** 2 + errors[:-1] ** 2).sum(1)) / table.shape[1]
        if (steps < -2 * error - 1e-9).any():
            at = self.coherences[int(np.argmin(steps + 2 * error)) + 1]
            return f"its score falls where {100 * at:.0f} % of the phase coherence is left"
        for kind, values in (self.others or {}).items():
            if values[-1] >= photograph:
                return f"its score does not fall under {kind}"
        return ""

    def row(self) -> dict[str, Any]:
        """The scale as JSON: in the package's file, in the report of a study."""
        return {**asdict(self), "disqualified": self.disqualified, "resolves_from": self.resolves_from}

    @staticmethod
    def read(row: Mapping[str, Any]) -> NaturalScale:
        """The scale in a row that `row` made."""
        fields = {name: row[name] for name in NaturalScale.__dataclass_fields__}
        for name in ("classes", "coherences"):
            fields[name] = tuple(fields[name])
        for name in ("scores", "errors"):
            fields[name] = tuple(map(tuple, fields[name]))
        fields["others"] = {kind: tuple(values) for kind, values in (fields["others"] or {}).items()}
        return NaturalScale(**fields)


def inverse(curve: Values, coherences: Values, score: float) -> float:
    """Where a rising curve has a value, linear between its points; the middle of a flat piece, the ends beyond them.

    >>> inverse(np.array([0.0, 0.0, 2.0]), np.array([0.0, 0.5, 1.0]), 1.0)
    0.625
    >>> inverse(np.array([0.0, 0.0, 2.0]), np.array([0.0, 0.5, 1.0]), -1.0)
    0.0
    """
    if score < curve[0]:
        return float(coherences[0])
    levels, place = np.unique(curve, return_inverse=True)
    middles = np.array([coherences[place == k].mean() for k in range(len(levels))])
    middles[-1] = coherences[place == len(levels) - 1].min()
    return float(np.interp(score, levels, middles))


def natural_scale(judge: Judge, images: Split, data: str = "", most: int = IMAGES) -> NaturalScale:
    """Calibrate a judge on the first `most` natural held-out images of each class.

    `images` are labelled in the order of the judge's classes. Raises ``ValueError`` for a class without two images.
    """
    chosen = []
    for unit, name in enumerate(judge.classes):
        own = torch.nonzero(images.labels == unit)[:most, 0]
        if len(own) < 2:
            few = f"class {name!r} has {len(own)} held-out image{'s' if len(own) != 1 else ''}, expected two or more"
            raise ValueError(f"the judge {judge.name!r} cannot be calibrated: {few}")
        chosen.append(own)
    index, labels = torch.cat(chosen), torch.cat([torch.full((len(own),), unit) for unit, own in enumerate(chosen)])
    x = images.take(index)
    names = [f"scale/{k}" for k in index.tolist()]

    def scores(changed: Tensor) -> Tensor:
        return judge(changed).log_odds.gather(1, labels[:, None])[:, 0]

    accuracy = float((judge(x).logits.argmax(1) == labels).float().mean())
    rows = [scores(phases_scrambled(x, share, Streams(0, names, "scale"))) for share in COHERENCES]
    others = {
        kind: tuple(round(float(scores(degraded(x, kind, one, Streams(0, names, kind))).mean()), 4) for one in strengths)
        for kind, strengths in STRENGTHS.items()
    }
    means, errors = [], []
    for row in rows:
        by_class = [row[labels == unit] for unit in range(len(judge.classes))]
        means.append(tuple(round(float(one.mean()), 4) for one in by_class))
        errors.append(tuple(round(float(one.std() / len(one) ** 0.5), 4) for one in by_class))
    smallest = min(len(own) for own in chosen)
    return NaturalScale(
        judge.name,
        judge.network_sha256,
        judge.classes,
        COHERENCES,
        tuple(means),
        tuple(errors),
        smallest,
        data,
        round(accuracy, 4),
        others,
    )


RECORDED_IMAGES = 30
RECORDED = Path(__file__).with_name("natural_scales.json")


@cache
def recorded_scales() -> tuple[NaturalScale, ...]:
    """The scales that come with the package, so that clarity has its scale where the images are not at hand."""
    return tuple(NaturalScale.read(row) for row in json.loads(RECORDED.read_text()))


def recorded_scale(judge: Judge) -> NaturalScale | None:
    """The package's scale of a judge for its classes, found by the hash of its network; None where there is none."""
    for scale in recorded_scales():
        if (scale.network_sha256, scale.classes) == (judge.network_sha256, judge.classes):
            return scale
    return None


@dataclass(frozen=True)
class NaturalClarity:
    """Natural-equivalent clarity with its 95 % interval over units, judges' families and the calibration's images.

    `families` are the judges' families over whose means it is a mean. `below` says that the pictures lie where the judges
    cannot tell photographs from scrambled ones. `draws` are the bootstrap's values, the same units, families and curves
    for every network that the same judges scored.
    """

    value: float
    low: float
    high: float
    families: tuple[str, ...]
    below: bool = False
    draws: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def row(self) -> dict[str, Any]:
        """Value, interval, families and `below` as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "families": list(self.families), "below": self.below}

    def minus(self, other: NaturalClarity) -> NaturalClarity:
        """The paired difference of two networks' clarity, with its interval."""
        draws = tuple(a - b for a, b in zip(self.draws, other.draws, strict=True))
        return _of_draws(self.value - other.value, draws, self.families)


def _of_draws(value: float, draws: tuple[float, ...], families: tuple[str, ...], below: bool = False) -> NaturalClarity:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return NaturalClarity(value, min(float(low), value), max(float(high), value), families, below, draws)


def natural_clarity(
    scores: Mapping[str, Sequence[float]], scales: Mapping[str, NaturalScale], families: Mapping[str, str],
    units: Sequence[int], seed: int = 0,
) -> NaturalClarity | None:  # fmt: skip
    """The clarity of one network's class pictures on the natural scale, from each judge's scores of `units`.

    The mean over families of the mean over their qualified judges. The interval is a percentile bootstrap (Efron &
    Tibshirani 1993) over units and families, with the curves drawn anew within their standard errors. None where no
    judge is qualified.
    """
    used = {name: scale for name, scale in scales.items() if not scale.disqualified and len(scores.get(name, ())) == len(units)}
    if not used or not units:
        return None
    by_family: dict[str, list[str]] = {}
    for name in used:
        by_family.setdefault(families[name], []).append(name)
    rng = np.random.Generator(np.random.PCG64(seed))
    tables = {name: np.asarray(scale.scores)[:, list(units)] for name, scale in used.items()}
    errors = {name: np.asarray(scale.errors)[:, list(units)] for name, scale in used.items()}
    values = {name: np.asarray(scores[name], dtype=np.float64) for name in used}

    def over(groups: Sequence[str], chosen: NDArray[Any], noise: bool) -> float:
        found = []
        for group in groups:
            own = []
            for name in by_family[group]:
                table = tables[name] + (errors[name] * rng.standard_normal(errors[name].shape) if noise else 0.0)
                curve = _rising(table[:, chosen])
                own.append(inverse(curve, np.asarray(used[name].coherences), float(values[name][chosen].mean())))
            found.append(np.mean(own))
        return float(np.mean(found))

    groups, every = list(by_family), np.arange(len(units))
    draws = tuple(
        over(list(rng.choice(groups, len(groups))), rng.integers(0, len(units), len(units)), True) for _ in range(RESAMPLES)
    )
    value = over(groups, every, False)
    return _of_draws(value, draws, tuple(groups), value < min(scale.resolves_from for scale in used.values()))


def record(judges: Sequence[Judge], images: Split, data: str) -> str:
    """The text of `RECORDED` for these judges, whose images are those of `data`; one line for each."""
    rows = [json.dumps(natural_scale(judge, images, data, RECORDED_IMAGES).row()) for judge in judges]
    return "[\n" + ",\n".join(rows) + "\n]\n"
