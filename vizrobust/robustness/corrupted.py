"""Accuracy under common corruptions, with the mean corruption error relative to AlexNet's."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vizrobust.compute import Compute, full_batches
from vizrobust.data import Split
from vizrobust.intervals import share, wilson
from vizrobust.models import evaluating
from vizrobust.models.stochastic import PerImageNoise
from vizrobust.rng import Streams, seeded
from vizrobust.robustness.accuracy import CLEAN
from vizrobust.robustness.corruptions import COMMON, CORRUPTIONS, SEVERITIES
from vizrobust.robustness.evaluation import BATCH_SIZE
from vizrobust.spec import lookup

# Top-1 error at severities 1 to 5: Hendrycks and Dietterich 2019, table in an earlier README of
# github.com/hendrycks/robustness ("AlexNet ImageNet-C Error").
ERRORS: dict[str, tuple[float, float, float, float, float]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    "speckle_noise": (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}
# Of the same weights, as torchvision states it (43.5 % in the paper).
CLEAN_ERROR = 1 - 0.56522


def alexnet_rows() -> list[dict[str, Any]]:
    """AlexNet's accuracies on ImageNet-C as rows of `corrupted`: a baseline for 1,000-class ImageNet networks alone."""
    clean = [{"corruption": "clean", "severity": 0, "accuracy": 1 - CLEAN_ERROR}]
    return clean + [
        {"corruption": name, "severity": severity, "accuracy": 1 - error}
        for name, errors in ERRORS.items()
        for severity, error in enumerate(errors, start=1)
    ]


Row = dict[str, Any]

OWN_FROST = "frost: own texture"
NO_COLOUR = "one channel has no colour to saturate"


def corrupted(
    net: nn.Module,
    images: Split,
    compute: Compute,
    corruptions: Sequence[str] = tuple(COMMON),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    done: Collection[tuple[str, int]] = (),
) -> Iterator[Row]:
    """Accuracy on the images as they are (``clean``, severity 0), then under each corruption at each severity.

    One row each, as soon as it is known: ``corruption, severity, n, accuracy, ci_low, ci_high, note, seconds``, with
    Wilson's 95 % interval; of a network that predicts one class for all clean images that row names it as
    ``constant_prediction``. What is `done` already, as (corruption, severity), is left out. An image draws the same
    random numbers at every severity and for every network. Raises ``ValueError`` for an unknown corruption or
    severity, or no images, before anything is computed.

    >>> from vizrobust.data import ArraySplit
    >>> images = ArraySplit(torch.rand(2, 1, 28, 28), torch.tensor([3, 3]))
    >>> rows = corrupted(nn.Flatten(), images, Compute("cpu"), ["contrast"], [5])
    >>> [(row["corruption"], row["severity"], row["n"]) for row in rows]
    [('clean', 0, 2), ('contrast', 5, 2)]
    """
    if not len(images):
        raise ValueError("there are no images to corrupt; choose a split that has some")
    chosen = [(name, lookup(CORRUPTIONS, name, "corruption")) for name in corruptions]
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"no severity {severity!r}; there are: {', '.join(map(str, SEVERITIES))}")
    conditions = [(corruption.__name__, severity) for _, corruption in chosen for severity in severities]
    wanted = [one for one in [(CLEAN, 0), *conditions] if one not in done]
    processes = compute.processes
    return processes.interleave(_row(net, images, compute, *one, seed, batch_size) for one in processes.shard(wanted))


@dataclass(frozen=True)
class CorruptionError:
    """Errors under the common corruptions that were evaluated, as fractions (an mCE of 0.767 is written 76.7 %).

    `by_type` is each corruption's error averaged over the severities, `mean` their mean: the plain, unnormalised mean
    corruption error. `mce` divides each type's error by the baseline's before the mean; `relative_mce` does so with
    what each error exceeds the clean one by. Both are None without a baseline, or where its errors leave nothing to
    divide by. `note` says what keeps the numbers from being the published ones.
    """

    mean: float
    clean: float
    by_type: dict[str, float]
    mce: float | None
    relative_mce: float | None
    note: str


def mean_corruption_error(rows: Iterable[Row], baseline_rows: Iterable[Row] | None = None) -> CorruptionError:
    """The mean corruption error of rows of `corrupted` (Hendrycks and Dietterich 2019, section 4.2).

    With E the errors and B a baseline's, mCE = mean over types of (sum of E over severities) / (sum of B over
    severities), and relative mCE the same of E - E_clean and B - B_clean. The four extra corruptions do not count.
    For networks on 1,000-class ImageNet the baseline is `alexnet_rows`; on other data give the rows of a reference
    checkpoint, and compare only numbers with the same one.

    Raises ``ValueError`` for rows without a clean one, without a common corruption, with gaps in the severities, or
    with a baseline that lacks some of them.

    >>> clean = {"corruption": "clean", "severity": 0, "accuracy": 1.0}
    >>> fog = [{"corruption": "fog", "severity": severity, "accuracy": 0.4} for severity in (1, 2)]
    >>> mean_corruption_error([clean, *fog], alexnet_rows()).by_type
    {'fog': 0.6}
    """
    errors, clean = _errors(rows, "the rows")
    types = [name for name in COMMON if name in errors]
    if not types:
        raise ValueError("the rows hold none of the common corruptions, so there is no mean; evaluate some of COMMON")
    severities = sorted({severity for name in types for severity in errors[name]})
    for name in types:
        if sorted(errors[name]) != severities:
            raise ValueError(f"{name} has severities {sorted(errors[name])} where others have {severities}; evaluate the rest")
    by_type = {name: sum(errors[name].values()) / len(severities) for name in types}
    mce = relative = None
    notes = [OWN_FROST] if "frost" in types else []
    if len(types) < len(COMMON):
        notes.append(f"{len(types)} of {len(COMMON)} types")
    if severities != list(SEVERITIES):
        notes.append(f"severities {', '.join(map(str, severities))} alone")
    if baseline_rows is not None:
        base_errors, base_clean = _errors(baseline_rows, "the baseline")
        lacking = [f"{name} {severity}" for name in types for severity in severities if severity not in base_errors.get(name, {})]
        if lacking:
            raise ValueError(f"the baseline has no {', '.join(lacking[:3])}; evaluate it on the same corruptions")
        base = {name: sum(base_errors[name][severity] for severity in severities) / len(severities) for name in types}
        mce = _ratio([by_type[name] for name in types], [base[name] for name in types])
        relative = _ratio([by_type[name] - clean for name in types], [base[name] - base_clean for name in types])
        if mce is None or relative is None:
            notes.append("the baseline loses nothing under some type")
    return CorruptionError(sum(by_type.values()) / len(types), clean, by_type, mce, relative, "; ".join(notes))


def _row(net: nn.Module, images: Split, compute: Compute, name: str, severity: int, seed: int, batch_size: int) -> Row:
    began = time.perf_counter()
    compute.place(net)
    network, hits, channels, seen = PerImageNoise(net), [], 0, set[int]()
    for index, count in full_batches(len(images), batch_size):
        x, y = images.take(index), images.labels[index]
        if name != CLEAN:
            x = CORRUPTIONS[name](x, severity, Streams(seed, index.tolist(), "corruption"))
        network.noise_from(partial(Streams, seed, index.tolist(), name))
        with evaluating(net), compute.autocast(), torch.no_grad(), seeded(seed, compute.device):
            logits = network(compute.images(x)).cpu()
        hits.append(((logits.argmax(1) == y) & logits.isfinite().all(1))[:count])
        seen |= set(logits.argmax(1)[:count].tolist())
        channels = x.shape[1]
    correct = torch.cat(hits)
    low, high = wilson(int(correct.sum()), len(correct))
    note = {"frost": OWN_FROST, "saturate": NO_COLOUR if channels == 1 else ""}.get(name, "")
    return {
        "corruption": name,
        "severity": severity,
        "n": len(correct),
        "accuracy": share(correct),
        "ci_low": low,
        "ci_high": high,
        "note": note,
        **({"constant_prediction": seen.pop()} if name == CLEAN and len(seen) == 1 and not correct.all() else {}),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _errors(rows: Iterable[Row], whose: str) -> tuple[dict[str, dict[int, float]], float]:
    """The errors by corruption and severity, and the clean error."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["corruption"], {})[row["severity"]] = 1 - row["accuracy"]
    clean = found.pop(CLEAN, None)
    if clean is None:
        raise ValueError(f"{whose} hold no {CLEAN!r} accuracy; evaluate the images as they are too")
    return found, clean[0]


def _ratio(errors: list[float], base: list[float]) -> float | None:
    """The mean of the ratios; None where the baseline leaves nothing to divide by."""
    if min(base) <= 0:
        return None
    return sum(error / by for error, by in zip(errors, base, strict=True)) / len(base)
